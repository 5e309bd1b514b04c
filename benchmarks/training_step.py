"""How much faster a training step is when the parts of a batch run side by side.

    python benchmarks/training_step.py [--rounds 5] [--steps 8] [KEY=VALUE ...]

One process, one model, synthetic windows: in turn, `train.shards` parts on the threads there are, the same
parts on one thread, and the whole batch with all threads inside each operation. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from ecggen.utils.threads import wait_passively

wait_passively()

import torch  # noqa: E402

from ecggen.data.pipeline import make_loader, read_window_folder  # noqa: E402
from ecggen.parallel import SideBySide  # noqa: E402
from ecggen.prepare.synthetic import write_windows  # noqa: E402
from ecggen.trainer import Trainer  # noqa: E402
from ecggen.utils.config import Config, load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


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


def seconds(trainer: Trainer, threads: int, steps: int) -> float:
    """Seconds per step."""
    torch.set_num_threads(threads)
    rules = trainer.config.train
    loader = make_loader(trainer.train_set, batch_size=rules.batch_size, shuffle=True, seed=rules.seed)
    batches = [batch for batch, _ in zip(loader, range(steps), strict=False)]
    begin = time.perf_counter()
    for batch in batches:
        trainer._step(batch)
    return (time.perf_counter() - begin) / len(batches)


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    config = load_config(ROOT / "params.yaml", args.overrides)
    cores = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "windows"
        count = args.steps * config.train.batch_size * 2
        write_windows(root, config.synthetic, config.data.fs, config.data.time_len, n=count)
        shards = config.train.shards
        kinds = {
            f"{shards} parts side by side on {cores} threads": (cores, shards),
            f"{shards} parts one after the other, one thread": (1, shards),
            f"whole batch, {cores} threads inside operations": (cores, 1),
            "whole batch, one thread": (1, 1),
        }
        trainers = {name: make_trainer(config, root, *kind) for name, kind in kinds.items()}
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(args.rounds + 1):
            for name, (threads, _) in kinds.items():
                value = seconds(trainers[name], threads, args.steps)
                if turn:  # the first round warms up
                    taken[name].append(value)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    first = next(iter(medians.values()))
    for name, value in medians.items():
        print(f"{name:48s} {1e3 * value:7.0f} ms a step   {value / first:5.2f} x the first")


if __name__ == "__main__":
    main()
