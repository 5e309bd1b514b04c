"""ecggen beside networks without a heart: same windows, masks, loss and minutes.

    python benchmarks/peers.py CHECKPOINT WINDOWS --minutes 18 [--split validation] [--kind unet wide]

CHECKPOINT: a results folder or checkpoint.pt; WINDOWS: the folder it was trained on (data/windows). Peers:
  unet   five levels of 32-48-64-96-128 channels, two kernel-7 convolutions with GroupNorm and GELU each,
         average pooling, linear upsampling; leads over their RMS and the mask in, eight leads out
  wide   the same with its channels widened until it has the parameters of the checkpoint, as nearly as
         whole groups of eight allow
Prints Markdown: per lead set, mean r and RMSE of hidden independent leads, and how much higher r of ecggen
is, paired window by window, with a 95 % interval over patients. The linear regression of the evaluation
stands beside them. OMP_NUM_THREADS says on how many threads all of it runs.
"""

from __future__ import annotations

import math
import sys
import time
from itertools import pairwise

from common import interval, parser, section, short, table

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.data.pipeline import ECGDataset, WindowFolder, make_loader, read_window_folder
from ecggen.eval.baselines import LinearRegression, Method, ModelMethod, Training
from ecggen.eval.lead_sets import all_sets
from ecggen.eval.result import Array
from ecggen.eval.score import Split
from ecggen.inference.renderer import Renderer, load
from ecggen.leads import EXPAND
from ecggen.models.blocks import ConvBlock
from ecggen.models.objective import make_target, slot_errors
from ecggen.models.slots import SLOTS, LimbSlots
from ecggen.training.augmentation import augment
from ecggen.training.devices import SideBySide, autocast, pick_precision, sum_gradients
from ecggen.utils.config import LEAD_SETS
from ecggen.utils.seed import derive_seed, seed_everything

CHANNELS = (32, 48, 64, 96, 128)


class UNet(nn.Module):
    """ecg [B, 12, T] mV, observed [B, 12] -> leads [B, 12, T] mV, limb algebra exact."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.slots = LimbSlots()
        inside = [2 * SLOTS + 2, *channels[:-1]]
        self.down = nn.ModuleList(ConvBlock(a, b) for a, b in zip(inside, channels, strict=True))
        self.narrow = nn.ModuleList(nn.Conv1d(b, a, 1) for a, b in pairwise(channels))
        self.up = nn.ModuleList(ConvBlock(2 * c, c) for c in channels[:-1])
        self.out = nn.Conv1d(channels[0], SLOTS, 1)

    def forward(self, ecg: Tensor, observed: Tensor) -> Tensor:
        seen, scale = self.slots(ecg, observed).scaled()
        known = torch.cat([seen.mask.to(ecg.dtype), seen.rows[:, 0, :2]], 1)
        x = torch.cat([seen.values, known[..., None].expand(-1, -1, ecg.shape[2])], 1)
        maps = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool1d(x, 2) if level else x)
            maps.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.narrow[level](x), size=maps[level].shape[2], mode="linear")
            x = self.up[level](torch.cat([x, maps[level]], 1))
        return torch.tensor(EXPAND, dtype=ecg.dtype, device=ecg.device) @ self.out(x) * scale


def parameters(model: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def widened(count: int) -> UNet:
    """The U-Net nearest to `count` parameters; every width a multiple of eight."""
    factors = [factor / 100 for factor in range(40, 400, 2)]
    sizes = {tuple(max(8, 8 * round(c * factor / 8)) for c in CHANNELS) for factor in factors}
    return min((UNet(size) for size in sorted(sizes)), key=lambda net: abs(parameters(net) - count))


def train(net: UNet, renderer: Renderer, folder: WindowFolder, minutes: float, seed: int) -> int:
    """Train with the checkpoint's own masks, jitter, loss, precision and schedule, for so many minutes.

    Returns how many steps it took.
    """
    config = renderer.config
    options = config.train
    data = ECGDataset(folder, "train", seed=seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    cpu = torch.device("cpu")
    parallel, learned = SideBySide(cpu, options.shards), list(net.parameters())
    begin, step, epoch = time.perf_counter(), 0, 0
    net.train()
    while True:
        for batch in make_loader(data, batch_size=options.batch_size, shuffle=True, seed=seed, epoch=epoch):
            done = (time.perf_counter() - begin) / (60 * minutes)
            if done >= 1:
                return step
            warm = min(1.0, done / max(options.warmup, 1e-6))
            for group in optimiser.param_groups:
                group["lr"] = options.lr * warm * 0.5 * (1 + math.cos(math.pi * done))
            step_batch = augment(
                batch, config, np.random.default_rng(derive_seed(seed, "step", step)), net.slots
            )

            def share(part, whole: int = len(step_batch)) -> tuple[Tensor, ...]:
                target = make_target(net, part.ecg, part.recorded, part.observed, options.observed_weight)  # type: ignore[arg-type]
                with autocast(cpu, pick_precision(options.precision, cpu)):
                    rendered = net(part.ecg, part.observed)
                error, correlation = slot_errors(target, rendered.float())
                error = error + options.correlation_weight * (1 - correlation)
                loss = (error * target.weight).sum(-1).mean() * (len(part) / whole)
                return torch.autograd.grad(loss, learned)

            sum_gradients(learned, parallel.map(share, step_batch.parts(options.shards)))
            nn.utils.clip_grad_norm_(learned, options.clip)
            optimiser.step()
            step += 1
        epoch += 1


class Peer:
    """A trained network as a method of the evaluation."""

    def __init__(self, name: str, net: UNet) -> None:
        self.name, self.net = name, net.eval()

    def fit(self, training: Training) -> None:
        """It comes trained."""

    @torch.no_grad()
    def predict(self, ecg: Array, given: Array) -> Array:
        """ecg [n, 12, T] mV, given [12] bool -> [n, 12, T]."""
        mask = torch.from_numpy(np.asarray(given, bool))
        parts = torch.from_numpy(np.array(ecg, dtype=np.float32)).split(128)
        rendered = SideBySide(torch.device("cpu")).map(lambda x: self.net(x, mask.expand(len(x), -1)), parts)
        return torch.cat(rendered).numpy()


def main() -> None:
    """Train the peers, print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=18.0)
    arguments.add_argument("--kind", nargs="*", choices=("unet", "wide"), default=["unet", "wide"])
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    renderer, folder = load(args.checkpoint, device="cpu"), read_window_folder(args.windows)
    size = parameters(renderer.model)
    notes = [f"ecggen: {size} parameters, {renderer.data.get('train_windows')} training windows"]
    methods: list[Method] = [ModelMethod(renderer, 128)]
    for kind in args.kind:
        seed_everything(args.seed)
        net = UNet(CHANNELS) if kind == "unet" else widened(size)
        steps = train(net, renderer, folder, args.minutes, args.seed)
        time_taken = f"{steps} steps in {args.minutes:g} minutes, {torch.get_num_threads()} thread(s)"
        notes.append(f"{kind}: {parameters(net)} parameters, {time_taken}")
        methods.append(Peer(kind, net))
    regression = LinearRegression()
    regression.fit(Training(folder.windows, folder.rows("train"), folder.observed, folder.fs))
    methods.append(regression)
    options = renderer.config.missing_lead
    data = Split.read(folder, args.split, options.bootstrap, options.seed)
    notes.append(f"{data.name} split, {len(data.rows)} windows, {len(data.draws.names)} patients")
    print(section("Is it better than a U-Net on the same records, masks and loss?", sys.argv))
    print("; ".join(notes) + ".\n")
    print(report(methods, data), flush=True)


def report(methods: list[Method], data: Split) -> str:
    """Per lead set: r and RMSE of every method, and the difference of r from the first one."""
    rows = []
    for leads in all_sets(LEAD_SETS, True):
        use = np.flatnonzero(leads.usable(data.observed))
        line, first = [leads.name], None
        for method in methods:
            rendered = method.predict(data.read_ecg(use), leads.mask)
            scores = data.scores(rendered, use, leads).select(leads.headline)
            means = scores.means()
            line.append(f"{short(means['r'])} ({short(means['rmse_mv'])})")
            if first is None:
                first = scores.r
            else:
                line.append(interval(data.draws.mean(first - scores.r), signed=True))
        rows.append(line)
    head = ["given", "ecggen, r (RMSE, mV)"]
    for method in methods[1:]:
        head += [method.name.replace("_", " "), "r of ecggen above it"]
    return table(head, rows)


if __name__ == "__main__":
    main()
