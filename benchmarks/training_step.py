"""What a training step costs: test-time training, the arithmetic it must do, loading.

    python benchmarks/training_step.py [--rounds 5] [--steps 8] [KEY=VALUE ...]

One thread, synthetic windows, the configurations in turn; CPU time, medians of the rounds. First table: steps
with K inner steps beside the same encoder with none. Second: floating-point operations of convolutions and
products of matrices in a step (forward, backward, optimiser; counted by torch.utils.flop_counter, a
multiplication and an addition are two) at the rate at which this machine multiplies square float32 matrices,
the best of several sizes: the shortest time that a step could take. Everything else that a step does counts
as none. Data loading: reading a batch and choosing what it shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ecggen.utils.threads import wait_passively

wait_passively()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import section, table  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ecggen.data.pipeline import make_loader, read_window_folder  # noqa: E402
from ecggen.prepare.synthetic.windows import write_windows  # noqa: E402
from ecggen.trainer import Trainer  # noqa: E402
from ecggen.training.augmentation import show  # noqa: E402
from ecggen.utils.config import Config, load_config  # noqa: E402

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
#: Inner steps and order, beside none.
INNER = ((3, "first"), (3, "second"), (5, "first"), (5, "second"), (10, "second"))
SIZES = (512, 768, 1024, 1536, 2048)
GOALS = {(3, "second"): "<= 2.5", (3, "first"): "<= 1.6"}


def make_trainer(config: Config, root: Path) -> Trainer:
    """A trainer that computes whole batches on one thread."""
    options = dataclasses.replace(config.train, shards=1, threads=1, device="cpu")
    changed = dataclasses.replace(config, train=options)
    trainer = Trainer(changed, read_window_folder(root), root / "out", quiet=True)
    trainer.model.train()
    return trainer


def batches(trainer: Trainer, count: int) -> Iterator[dict[str, Any]]:
    """The first batches of an epoch."""
    options = trainer.config.train
    loader = make_loader(trainer.train_set, batch_size=options.batch_size, shuffle=True, seed=options.seed)
    return islice(iter(loader), count)


def cpu_seconds(function: Callable[..., Any], *args: Any) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    function(*args)
    return time.process_time() - begin


def step_seconds(trainer: Trainer, steps: int) -> float:
    """Of a step on batches loaded beforehand; the median."""
    return statistics.median(cpu_seconds(trainer._step, batch) for batch in list(batches(trainer, steps)))


def in_turn(measurements: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """What each measurement returns, round by round, [rounds]; one round before them warms up."""
    taken = [[measure() for measure in measurements.values()] for _ in range(rounds + 1)][1:]
    return dict(zip(measurements, np.array(taken).T, strict=True))


def inner_steps(config: Config, root: Path, rounds: int, steps: int) -> str:
    """Steps with K inner steps beside none."""
    trainers = {}
    for kind in ((0, "second"), *INNER):
        ttt = dataclasses.replace(config.model.ttt, steps=kind[0], order=kind[1])
        model = dataclasses.replace(config.model, ttt=ttt)
        trainers[kind] = make_trainer(dataclasses.replace(config, model=model), root)
    names = {kind: f"K = {kind[0]}, {kind[1]} order" if kind[0] else "no inner step" for kind in trainers}
    measurements = {names[k]: lambda one=one: step_seconds(one, steps) for k, one in trainers.items()}
    taken = in_turn(measurements, rounds)  # type: ignore[arg-type]
    rows = []
    for kind, name in names.items():
        ratio = np.median(taken[name] / taken["no inner step"])  # both were measured side by side
        rows.append([name, f"{1e3 * np.median(taken[name]):.0f}", f"{ratio:.2f}", GOALS.get(kind, "")])
    return table(["a step of training", "ms", "x no inner step", "goal"], rows)


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of square matrices, the best of SIZES, each the best of eight."""
    best = 0.0
    for size in SIZES:
        a, b = torch.randn(2, size, size).to(dtype)
        seconds = [cpu_seconds(torch.mm, a, b) for _ in range(10)]
        best = max(best, 2 * size**3 / min(seconds[2:]))
    return best


def operations(trainer: Trainer) -> dict[str, float]:
    """Of one step, by what does them."""
    batch = next(batches(trainer, 1))
    trainer._step(batch)
    with FlopCounterMode(display=False) as whole:
        trainer._step(batch)
    with FlopCounterMode(display=False) as optimiser:
        for each in trainer.optimisers:
            each.step()
    counts = whole.get_flop_counts()["Global"].items()
    convolution = sum(n for name, n in counts if str(name).startswith("aten.convolution"))
    total, last = whole.get_total_flops(), optimiser.get_total_flops()
    products = total - convolution - last
    return {"convolutions": convolution, "other products": products, "optimiser": last, "all": total}


def arithmetic(config: Config, root: Path, rounds: int, steps: int) -> str:
    """A step beside the arithmetic it must do, and loading beside a step."""
    trainer = make_trainer(config, root)
    count = operations(trainer)
    read = list(batches(trainer, steps))

    def choose() -> None:
        for batch in read:
            show(batch, config, np.random.default_rng(0), trainer.slots)

    taken = in_turn(
        {
            "rate": matmul_rate,
            "bf16": lambda: matmul_rate(torch.bfloat16),
            "step": lambda: step_seconds(trainer, steps),
            "load": lambda: cpu_seconds(lambda: list(batches(trainer, steps))) / len(read),
            "show": lambda: cpu_seconds(choose) / len(read),
        },
        rounds,
    )
    step, limit = taken["step"], count["all"] / taken["rate"]
    faster = count["all"] / np.maximum(taken["rate"], taken["bf16"])
    loading = taken["load"] + taken["show"]
    precision = str(trainer.precision or torch.float32).removeprefix("torch.")
    parts = ", ".join(f"{name} {count[name] / 1e9:.1f}" for name in count if name != "all")
    rows = [
        [f"arithmetic of a step, GFLOP ({parts})", f"{count['all'] / 1e9:.1f}", ""],
        ["float32 matrices, GFLOP a second", f"{np.median(taken['rate']) / 1e9:.0f}", ""],
        ["bf16 matrices, GFLOP a second", f"{np.median(taken['bf16']) / 1e9:.0f}", ""],
        ["limit by the arithmetic, ms", f"{1e3 * np.median(limit):.0f}", ""],
        [f"a step, ms ({precision})", f"{1e3 * np.median(step):.0f}", ""],
        ["share of the limit reached", f"{100 * np.median(limit / step):.0f} %", ">= 50 %"],
        ["the same at the faster rate", f"{100 * np.median(faster / step):.0f} %", ""],
        ["reading a batch, ms", f"{1e3 * np.median(taken['load']):.1f}", ""],
        ["choosing what it shows, ms", f"{1e3 * np.median(taken['show']):.1f}", ""],
        ["both, of a step", f"{100 * np.median(loading / step):.1f} %", "<= 3 %"],
    ]
    return table(["one thread", "median", "goal"], rows)


def main() -> None:
    """Print the tables."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps a round")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    config = load_config(PARAMS, args.overrides)
    print(section("A training step", sys.argv))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "windows"
        count = args.steps * config.train.batch_size * 2
        people = dataclasses.replace(config.synthetic, patients=-(-count // 2))  # two windows of each
        write_windows(root, dataclasses.replace(config, synthetic=people))
        for measure in (inner_steps, arithmetic):
            print(measure(config, root, args.rounds, args.steps), flush=True)


if __name__ == "__main__":
    main()
