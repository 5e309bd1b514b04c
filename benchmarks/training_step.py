"""What a training step costs: test-time training, the arithmetic it must do, loading, parts side by side.

    python benchmarks/training_step.py [--rounds 5] [--steps 8] [--only ttt,arithmetic,shards] [KEY=VALUE ...]

One process, synthetic windows, the configurations in turn; medians of the rounds, and the ratios that count.
- ttt: steps with K inner steps beside the same encoder with none, one thread.
- arithmetic: floating-point operations of convolutions and products of matrices in a step (forward, backward,
  optimiser; counted by torch.utils.flop_counter, a multiplication and an addition are two) at the rate at
  which this machine multiplies square float32 matrices, the best of several sizes: the shortest time that a
  step could take. Everything else that a step does counts as none. Data loading: reading a batch and choosing
  what it shows.
- shards: the parts of a batch on threads of their own beside the whole batch.
Seconds of the first two are CPU time of one thread, which other programs disturb less; the last are by the
clock.
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

from ecggen import trainer as trainer_module  # noqa: E402
from ecggen.data.pipeline import make_loader, read_window_folder  # noqa: E402
from ecggen.prepare.synthetic.population import write_windows  # noqa: E402
from ecggen.trainer import Trainer  # noqa: E402
from ecggen.training.devices import SideBySide  # noqa: E402
from ecggen.utils.config import Config, load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("ttt", "arithmetic", "shards")
#: Inner steps and order, beside none.
INNER = ((3, "first"), (3, "second"), (5, "first"), (5, "second"), (10, "second"))
SIZES = (512, 768, 1024, 1536, 2048)
MOST, LEAST, LOADING = {(3, "second"): 2.5, (3, "first"): 1.6}, 0.5, 0.03  # what is wanted

Turns = dict[str, Callable[[], float]]


def make_trainer(config: Config, root: Path, threads: int, shards: int) -> Trainer:
    """A trainer that computes `shards` parts on `threads` threads."""
    torch.set_num_threads(threads)
    rules = dataclasses.replace(config.train, shards=shards, threads=0, device="cpu")
    trainer = Trainer(
        dataclasses.replace(config, train=rules), read_window_folder(root), root / "out", quiet=True
    )
    trainer.parallel = SideBySide(trainer.device, shards)
    trainer.model.train()
    return trainer


def with_inner(config: Config, steps: int, order: str) -> Config:
    """The same with other inner steps."""
    ttt = dataclasses.replace(config.model.ttt, steps=steps, order=order)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ttt=ttt))


def loaded(trainer: Trainer, count: int) -> Iterator[dict[str, Any]]:
    """The first batches of an epoch."""
    rules = trainer.config.train
    loader = make_loader(trainer.train_set, batch_size=rules.batch_size, shuffle=True, seed=rules.seed)
    return islice(iter(loader), count)


def seconds(trainer: Trainer, threads: int, steps: int, clock: Callable[[], float]) -> float:
    """Seconds per step on batches loaded beforehand; the median."""
    torch.set_num_threads(threads)
    taken = []
    for batch in list(loaded(trainer, steps)):
        begin = clock()
        trainer._step(batch)
        taken.append(clock() - begin)
    return statistics.median(taken)


def in_turn(ways: Turns, rounds: int) -> dict[str, list[float]]:
    """What each way returns, round by round; one round before them warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if turn:
                taken[name].append(value)
    return taken


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the rounds' ratios: both halves of one were measured side by side."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def ttt(config: Config, root: Path, rounds: int, steps: int) -> str:
    """Steps with K inner steps beside none."""
    none = "no inner step"
    kinds = {none: (0, "second")} | {f"K = {k}, {order} order": (k, order) for k, order in INNER}
    trainers = {name: make_trainer(with_inner(config, *kind), root, 1, 1) for name, kind in kinds.items()}
    ways: Turns = {
        name: lambda one=one: seconds(one, 1, steps, time.process_time)  # type: ignore[misc]
        for name, one in trainers.items()
    }
    taken = in_turn(ways, rounds)
    rows = []
    for name, kind in kinds.items():
        most = MOST.get(kind)
        times = ratio(taken[name], taken[none])
        wanted = f"<= {most}" if most else ""
        rows.append([name, f"{1e3 * statistics.median(taken[name]):.0f}", f"{times:.2f}", wanted])
    return table(["a step of training", "ms", "x no inner step", "goal"], rows)


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of square matrices, the best of SIZES, each the best of eight."""
    best = 0.0
    for size in SIZES:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for turn in range(10):
            begin = time.process_time()
            a @ b
            if turn > 1:
                best = max(best, 2 * size**3 / (time.process_time() - begin))
    return best


def operations(trainer: Trainer) -> dict[str, float]:
    """Of one step, by what does them."""
    batch = next(loaded(trainer, 1))
    trainer._step(batch)
    with FlopCounterMode(display=False) as whole:
        trainer._step(batch)
    with FlopCounterMode(display=False) as optimiser:
        for each in trainer.optimisers:
            each.step()
    kinds = {str(name).removeprefix("aten."): n for name, n in whole.get_flop_counts()["Global"].items()}
    convolution = sum(n for name, n in kinds.items() if name.startswith("convolution"))
    total, last = whole.get_total_flops(), optimiser.get_total_flops()
    return {
        "convolutions": convolution,
        "other products": total - convolution - last,
        "optimiser": last,
        "all": total,
    }


def arithmetic(config: Config, root: Path, rounds: int, steps: int) -> str:
    """A step beside the arithmetic it must do, and loading beside a step."""
    trainer = make_trainer(config, root, 1, 1)
    counted = operations(trainer)
    batches = list(loaded(trainer, steps))

    def load() -> float:
        begin = time.process_time()
        count = sum(1 for _ in loaded(trainer, steps))
        return (time.process_time() - begin) / count

    def choose() -> float:
        begin = time.process_time()
        for batch in batches:
            trainer_module.show(batch, config, np.random.default_rng(0), trainer.slots)
        return (time.process_time() - begin) / len(batches)

    ways: Turns = {
        "rate": matmul_rate,
        "bf16": lambda: matmul_rate(torch.bfloat16),
        "step": lambda: seconds(trainer, 1, steps, time.process_time),
        "load": load,
        "show": choose,
    }
    taken = in_turn(ways, rounds)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    limit = [counted["all"] / rate for rate in taken["rate"]]
    brisk = [counted["all"] / max(rates) for rates in zip(taken["rate"], taken["bf16"], strict=True)]
    loading = [a + b for a, b in zip(taken["load"], taken["show"], strict=True)]
    precision = str(trainer.precision or torch.float32).removeprefix("torch.")
    parts = ", ".join(f"{name} {counted[name] / 1e9:.1f}" for name in counted if name != "all")
    rows = [
        [f"arithmetic of a step, GFLOP ({parts})", f"{counted['all'] / 1e9:.1f}", ""],
        ["float32 matrices, GFLOP a second", f"{middle['rate'] / 1e9:.0f}", ""],
        ["bf16 matrices, GFLOP a second", f"{middle['bf16'] / 1e9:.0f}", ""],
        ["limit by the arithmetic, ms", f"{1e3 * statistics.median(limit):.0f}", ""],
        [f"a step, ms ({precision})", f"{1e3 * middle['step']:.0f}", ""],
        [
            "share of the limit reached",
            f"{100 * ratio(limit, taken['step']):.0f} %",
            f">= {100 * LEAST:.0f} %",
        ],
        ["the same if all were done at the faster rate", f"{100 * ratio(brisk, taken['step']):.0f} %", ""],
        ["reading a batch, ms", f"{1e3 * middle['load']:.1f}", ""],
        ["choosing what it shows, ms", f"{1e3 * middle['show']:.1f}", ""],
        ["both, of a step", f"{100 * ratio(loading, taken['step']):.1f} %", f"<= {100 * LOADING:.0f} %"],
    ]
    return table(["one thread", "median", "goal"], rows)


def side_by_side(config: Config, root: Path, rounds: int, steps: int, cores: int) -> str:
    """Parts of a batch on threads of their own beside the whole batch."""
    shards = config.train.shards
    kinds = {
        f"{shards} parts side by side on {cores} threads": (cores, shards),
        f"{shards} parts one after the other, one thread": (1, shards),
        f"whole batch, {cores} threads inside operations": (cores, 1),
        "whole batch, one thread": (1, 1),
    }
    trainers = {name: make_trainer(config, root, *kind) for name, kind in kinds.items()}
    ways: Turns = {
        name: lambda one=trainers[name], threads=kind[0]: seconds(  # type: ignore[misc]
            one, threads, steps, time.perf_counter
        )
        for name, kind in kinds.items()
    }
    taken = in_turn(ways, rounds)
    first = taken[next(iter(kinds))]
    rows = [
        [name, f"{1e3 * statistics.median(values):.0f}", f"{ratio(values, first):.2f}"]
        for name, values in taken.items()
    ]
    return table(["a step, by the clock", "ms", "x the first"], rows)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps a round")
    parser.add_argument("--only", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := [name for name in chosen if name not in KINDS]:
        parser.error(f"--only names {', '.join(unknown)}: use {', '.join(KINDS)}")
    config = load_config(ROOT / "params.yaml", args.overrides)
    cores = torch.get_num_threads()
    print(section("A training step", sys.argv))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "windows"
        count = args.steps * config.train.batch_size * 2
        write_windows(root, config.synthetic, config.data.fs, config.data.time_len, n=count)
        if "ttt" in chosen:
            print(ttt(config, root, args.rounds, args.steps), flush=True)
        if "arithmetic" in chosen:
            print(arithmetic(config, root, args.rounds, args.steps), flush=True)
        if "shards" in chosen:
            print(side_by_side(config, root, args.rounds, args.steps, cores), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
