"""Trainings on several processes that are forked from one that has imported torch: cheap to try.

    python -m tests.forking JOB.json

Says in JSON what tests/test_distributed.py looks at; the runs lie in folders beside the job. Not a test
itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # what an optimiser imports; once, not in every child
import torch.distributed.launcher.api as api

from ecggen import trainer as module
from ecggen.data.pipeline import DataError
from ecggen.trainer import Trainer, TrainError
from ecggen.training import calibration, launch
from ecggen.training.checkpoint import CheckpointError
from ecggen.training.distributed import Ranks, ranks_of_environment
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.errors import EcggenError

Prepare = Callable[[int], None]


def nothing(rank: int) -> None:
    pass


def ranks(
    size: int, config: Config, out: Path, prepare: Prepare = nothing, *, dies: bool = False
) -> list[str]:
    """Train on `size` forked processes; what went wrong on each ("" = nothing)."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    children, told = [], []
    for rank in range(size):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in place.items()}
            text = ""
            try:
                prepare(rank)
                module.train(config, out, pick_up=True, quiet=True)
            except EcggenError as error:
                text = f"{type(error).__name__}: {error}"
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    for child, reader in children:
        with os.fdopen(reader) as stream:
            told.append(stream.read())
        status = os.waitpid(child, 0)[1]
        assert dies or status == 0, status
    return told


def changed(config: Config, **rules: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **rules))


def at_step(step: int, act: Callable[[], None], only: int | None = None) -> Prepare:
    """Something happens when a rank (or all) computes a share of this step."""

    def prepare(rank: int) -> None:
        share = Trainer._share

        def acting(self: Trainer, *args: Any) -> Any:
            if self.at.step == step and only in (None, self.ranks.rank):
                act()
            return share(self, *args)

        Trainer._share = acting  # type: ignore[method-assign]

    return prepare


def spoilt() -> None:
    raise TrainError("the second part of step 1 is spoilt")


def spoilt_window(rank: int) -> None:
    read = module.ECGDataset.__getitems__

    def reading(self: Any, indices: Any) -> Any:
        if self.split == "validation" and 3 in indices:
            raise DataError("window 3 is spoilt")
        return read(self, indices)

    module.ECGDataset.__getitems__ = reading  # type: ignore[method-assign]


def no_room(rank: int) -> None:
    def failing(*args: Any) -> None:
        assert rank == 0, "only rank 0 writes"
        raise CheckpointError("no room")

    module.save_step = failing


def elastic(config: Config, out: Path, prepare: Prepare) -> tuple[str, int, list[int]]:
    """Through the elastic agent, with forked workers: (what went wrong, starts, epochs told)."""
    starts, epochs = out.with_suffix(".starts"), []
    worker = launch._worker

    def counted(*args: Any) -> Any:
        place = ranks_of_environment()
        if place.main:
            with starts.open("a") as stream:
                stream.write("x")
        prepare(place.rank)
        return worker(*args)

    def forking(*args: Any, **rules: Any) -> Any:
        return real(*args, **rules | {"start_method": "fork"})

    real, text = api.LaunchConfig, ""
    with (
        mock.patch.object(launch, "_worker", counted),
        mock.patch.object(api, "LaunchConfig", forking),
        # A forked worker holds the other end of the pipe itself: the parent's death is tried with the stage.
        mock.patch.object(launch, "_die_with_parent", lambda alive: None),
    ):
        try:
            launch.train(
                changed(config, nproc=2),
                out,
                pick_up=True,
                quiet=True,
                on_epoch=lambda row: epochs.append(row["epoch"]),
            )
        except EcggenError as error:
            text = f"{type(error).__name__}: {error}"
    return text, len(starts.read_text()), epochs


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_once(mark: Path) -> Callable[[], None]:
    def act() -> None:
        if not mark.exists():
            mark.touch()
            kill()

    return act


def divide() -> None:
    _ = 1 // 0


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    calibration.SETS = calibration.SETS[:4]
    config, root = config_from_dict(job["config"]), Path(job["root"])
    four = changed(config, shards=4)
    for size, rules, name in (
        *((1, config, "1 rank, 2 parts"), (2, config, "2 ranks, 2 parts"), (3, config, "3 ranks, 2 parts")),
        *((1, four, "1 rank, 4 parts"), (2, four, "2 ranks, 4 parts"), (4, four, "4 ranks, 4 parts")),
    ):
        ranks(size, rules, root / name)
    for first, second in ((1, 2), (2, 1)):
        out = root / f"{first} then {second} ranks"
        ranks(first, config, out, at_step(5, lambda: os._exit(1)), dies=True)
        ranks(second, config, out)
    told: dict[str, Any] = {
        "error of one rank": ranks(2, config, root / "error", at_step(1, spoilt, only=1)),
        "error in validation": ranks(2, config, root / "window", spoilt_window),
        "error of the writer": ranks(2, config, root / "room", no_room),
    }
    error, _, told["rows of one lost"] = elastic(
        config, root / "one lost", at_step(5, kill_once(root / "killed"), only=1)
    )
    assert not error, error
    told["elastic error"], told["starts of elastic error"], _ = elastic(
        config, root / "elastic", at_step(1, spoilt, only=1)
    )
    once = changed(config, restarts=1)
    told["always lost"], told["starts of always lost"], _ = elastic(
        once, root / "lost", at_step(1, kill, only=1)
    )
    told["broken"], _, _ = elastic(changed(config, restarts=0), root / "broken", at_step(1, divide, only=1))
    assert Ranks() == ranks_of_environment(), "the launcher leaves its own process alone"
    return told


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
