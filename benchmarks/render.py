"""How long rendering takes: one recording at a time, and many.

    python benchmarks/render.py [CHECKPOINT] [--rounds 5] [--records 1000] [--seconds 10] [--fs 500]
                                [--leads I II V2] [--threads 1 2] [--batch 96] [--device cpu]

One process, synthetic recordings. Per number of threads: the median of `render` and of `embed` of one
recording after a warm-up, and how many recordings a second `render_batch` and `embed_batch` turn out. Rounds
go through all of them in turn; printed are medians over rounds. Without a checkpoint an untrained model of
the default size is used, which takes as long.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import options, section, table

import numpy as np
import torch

from ecggen.inference.renderer import Renderer, load
from ecggen.leads import EXPAND, lead_indices
from ecggen.models.ecggen import ECGGen
from ecggen.training.devices import SideBySide
from ecggen.utils.config import Config

SINGLE = 20  # recordings of a round that are rendered one by one


def signal(fs: float, seconds: float, seed: int) -> np.ndarray:
    """[12, n] mV, beats of a turning dipole with noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(fs * seconds)) / fs
    phase = (t * rng.uniform(0.9, 1.6)) % 1
    waves = [np.exp(-(((phase - at) / width) ** 2)) for at, width in ((0.3, 0.02), (0.34, 0.03), (0.6, 0.07))]
    return EXPAND @ (rng.normal(0, 0.5, (8, 3)) @ np.stack(waves) + rng.normal(0, 0.02, (8, len(t))))


def milliseconds(call: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    """Print the table."""
    parser = options(__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fs", type=float, default=500.0)
    parser.add_argument("--leads", nargs="+", default=["I", "II", "V2"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=96, help="windows")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.checkpoint:
        model = load(args.checkpoint, device=args.device)
    else:
        config = Config()
        network = ECGGen(config.model, config.data.fs, config.data.time_len).to(args.device)
        model = Renderer(network, config, {"low_hz": 0.67, "high_hz": 40.0, "order": 3})
    rows = lead_indices(args.leads)
    recordings = [signal(args.fs, args.seconds, seed)[rows] for seed in range(50)]
    many = [recordings[i % len(recordings)] for i in range(args.records)]
    times: dict[int, dict[str, list[float]]] = {threads: {} for threads in args.threads}
    for turn in range(args.rounds + 1):
        for threads, lines in times.items():
            torch.set_num_threads(threads)
            model.parallel = SideBySide(model.device)
            amount = many if turn else many[:100]  # the first round warms up
            one = {
                "render, ms": lambda ecg: model.render(ecg, args.fs, args.leads),
                "embed, ms": lambda ecg: model.embed(ecg, args.fs, args.leads),
            }
            row = {
                name: statistics.median(milliseconds(lambda f=call, x=x: f(x)) for x in recordings[:SINGLE])
                for name, call in one.items()
            }
            for name, batch in {"render_batch": model.render_batch, "embed_batch": model.embed_batch}.items():
                begin = time.perf_counter()
                count = sum(1 for _ in batch(amount, args.fs, args.leads, batch_size=args.batch))
                row[f"{name}, records/s"] = count / (time.perf_counter() - begin)
            for name, value in row.items() if turn else ():
                lines.setdefault(name, []).append(value)
    names = list(next(iter(times.values())))
    print(section("Rendering", sys.argv))
    print(
        f"{args.seconds:g} s at {args.fs:g} Hz from {', '.join(args.leads)}; {args.records} in batch, "
        f"{args.rounds} rounds, medians.\n"
    )
    body = [
        [str(threads), *(f"{statistics.median(lines[name]):.1f}" for name in names)]
        for threads, lines in times.items()
    ]
    print(table(["threads", *names], body))


if __name__ == "__main__":
    main()
