"""Training steps on several processes: how much faster than on one, and which way to sum the gradients.

    python benchmarks/processes.py [--rounds 5] [--steps 8] [--nproc 2] [KEY=VALUE ...]

Synthetic windows, the model of params.yaml. One process with a thread per part of the batch and `nproc`
processes (ranks of gloo, forked from one that has imported torch) take the same steps in turn, round by
round. The ranks sum gradients as training does; with one all_reduce of the flat gradient; with the exchange
of three ranks and more; and wrapped in DistributedDataParallel, which reduces while `backward` runs. Medians,
medians of the rounds' ratios, and the processor time of the busiest process, which other programs on the
machine disturb least.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ecggen.utils.threads import wait_passively

wait_passively()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - optimisers import it: once, not in every process
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from common import section, table  # noqa: E402

from ecggen.data.pipeline import make_loader, read_window_folder  # noqa: E402
from ecggen.models.objective import make_target, training_loss  # noqa: E402
from ecggen.prepare.synthetic.population import write_windows  # noqa: E402
from ecggen.trainer import Trainer  # noqa: E402
from ecggen.training.augmentation import show  # noqa: E402
from ecggen.training.distributed import Ranks, joined  # noqa: E402
from ecggen.utils.config import Config, load_config  # noqa: E402
from ecggen.utils.seed import derive_seed  # noqa: E402

warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
ROOT = Path(__file__).resolve().parents[1]
Step = Callable[[dict[str, Any]], object]


class Replica(torch.nn.Module):
    """The loss of a part as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model, self.rules = trainer.model, trainer.config.train

    def forward(self, part: Any) -> torch.Tensor:
        out = self.model(
            part.ecg, part.observed, reference=part.reference,
            reference_observed=part.reference_observed, views=part.view[None],
        )  # fmt: skip
        target = make_target(self.model, part.ecg, part.recorded, part.observed, self.rules.observed_weight)
        return training_loss(self.model, out, target, self.rules)[0]


def wrapped_step(trainer: Trainer) -> Step:
    """A step of the same arithmetic through DistributedDataParallel's hooks."""
    replica = torch.nn.parallel.DistributedDataParallel(Replica(trainer), broadcast_buffers=False)
    size, rank = trainer.ranks.size, trainer.ranks.rank

    def step(batch: dict[str, Any]) -> None:
        rules, at = trainer.config.train, trainer.at
        rng = np.random.default_rng(derive_seed(rules.seed, "step", at.step))
        shown = show(batch, trainer.config, rng, trainer.slots)
        parts = shown.parts(size)
        for optimiser in trainer.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = replica(parts[rank]) * (size * len(parts[rank]) / len(shown))  # the reducer divides by size
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.spread.parameters(), rules.clip)
        torch.nn.utils.clip_grad_norm_(trainer.trunk, rules.clip)
        for optimiser in trainer.optimisers:
            optimiser.step()

    return step


def ring_sum(self: Ranks, flat: torch.Tensor) -> torch.Tensor:
    """One all_reduce, whatever the number of ranks."""
    dist.all_reduce(flat)
    return flat


def ordered_sum(self: Ranks, flat: torch.Tensor) -> torch.Tensor:
    """The exchange of three ranks and more (`Ranks.add`), on two as well."""
    length = -(-len(flat) // self.size)
    sent = torch.nn.functional.pad(flat, (0, length * self.size - len(flat)))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    stretch = received.view(self.size, length).sum(0)
    dist.all_gather(list(sent.split(length)), stretch)
    return sent[: len(flat)]


def serve(config: Config, root: Path, place: dict[str, str], threads: int, orders: Connection) -> None:
    """A process that takes steps when it is told to, and says how long they took."""
    os.environ |= place
    torch.set_num_threads(threads)
    with joined("cpu") as ranks:
        trainer = Trainer(config, read_window_folder(root), root / "out", quiet=True, ranks=ranks)
        trainer.model.train()
        rules = config.train
        steps: dict[str, Step] = {"own": trainer._step}
        if ranks.size > 1:
            steps["DistributedDataParallel"] = wrapped_step(trainer)
        sums = {"own": Ranks.add, "all_reduce": ring_sum, "ordered": ordered_sum}
        while (order := orders.recv()) is not None:
            kind, count = order
            loader = make_loader(
                trainer.train_set, batch_size=rules.batch_size, shuffle=True, seed=rules.seed
            )
            batches = [batch for batch, _ in zip(loader, range(count), strict=False)]
            Ranks.add = sums.get(kind, Ranks.add)  # type: ignore[method-assign]
            if ranks.size > 1:
                dist.barrier()
            begin, used = time.perf_counter(), time.process_time()
            for batch in batches:
                steps.get(kind, trainer._step)(batch)
            taken = (time.perf_counter() - begin, time.process_time() - used)
            orders.send([seconds / len(batches) for seconds in taken])


class Group:
    """Processes that train together, started once and told to take steps."""

    def __init__(self, config: Config, root: Path, size: int, threads: int) -> None:
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            port = str(any_port.getsockname()[1])
        context = mp.get_context("fork")
        self.ends = []
        for rank in range(size):
            place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            whole = {name: str(value) for name, value in place.items()}
            whole |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            here, there = context.Pipe()
            context.Process(target=serve, args=(config, root, whole, threads, there), daemon=True).start()
            self.ends.append(here)

    def seconds(self, kind: str, steps: int) -> tuple[float, float]:
        """Of a step: the slowest rank's, and the processor time of the busiest."""
        for end in self.ends:
            end.send((kind, steps))
        walls, busy = zip(*(end.recv() for end in self.ends), strict=True)
        return max(walls), max(busy)

    def close(self) -> None:
        for end in self.ends:
            end.send(None)


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    config = load_config(ROOT / "params.yaml", ["train.device=cpu", *args.overrides])
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "windows"
        count = args.steps * config.train.batch_size * 2
        write_windows(root, config.synthetic, config.data.fs, config.data.time_len, n=count)
        one_part = dataclasses.replace(config, train=dataclasses.replace(config.train, shards=1))
        threads = Group(config, root, 1, cores)
        single = Group(one_part, root, 1, 1)
        many = Group(config, root, args.nproc, max(1, cores // args.nproc))
        kinds: dict[str, Callable[[], tuple[float, float]]] = {
            f"1 process, {config.train.shards} parts on {cores} threads": lambda: threads.seconds(
                "own", args.steps
            ),
            "1 process, whole batch, one thread": lambda: single.seconds("own", args.steps),
            f"{args.nproc} processes": lambda: many.seconds("own", args.steps),
            f"{args.nproc} processes, all_reduce": lambda: many.seconds("all_reduce", args.steps),
            f"{args.nproc} processes, all_to_all and all_gather": lambda: many.seconds("ordered", args.steps),
            f"{args.nproc} processes, DistributedDataParallel": lambda: many.seconds(
                "DistributedDataParallel", args.steps
            ),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for turn in range(args.rounds + 1):
            for name, measure in kinds.items():
                value = measure()
                if turn:  # the first round warms up
                    taken[name].append(value)
        for group in (threads, single, many):
            group.close()
    first = next(iter(taken))
    rows = []
    for name, values in taken.items():
        ratio = statistics.median(a / b for (a, _), (b, _) in zip(taken[first], values, strict=True))
        wall, busy = (1e3 * statistics.median(each) for each in zip(*values, strict=True))
        rows.append((name, f"{wall:.0f}", f"{ratio:.2f}", f"{busy:.0f}"))
    print(section(f"Training steps on {args.nproc} processes", sys.argv))
    print(table(("", "ms a step", "times as fast as the first", "processor ms"), rows))


if __name__ == "__main__":
    main()
