"""Training on several processes of this machine, through torchrun's own machinery.

`train.nproc` processes are started by PyTorch's elastic agent (what torchrun and torch.distributed.run start
as well) with a rendezvous of their own on 127.0.0.1. When one is lost, the agent starts all of them again,
`train.restarts` times at most, and they go on from the last checkpoint. An error in words is no loss: it
comes back and is raised here, once. Under torchrun itself (several machines) a process is already one of the
ranks and trains as such.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ecggen import trainer
from ecggen.training.devices import DeviceError, pick_device
from ecggen.training.distributed import LostRankError, ranks_of_environment
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_json, write_json

Listener = Callable[[dict[str, Any]], None]

_YIELD_S = 1.0  # ten times as long as the agent takes to see that a process has ended


class LaunchError(EcggenError):
    """Processes that were lost more often than they may be."""


def train(
    config: Config,
    out: str | Path,
    *,
    on_epoch: Listener | None = None,
    resume: bool = False,
    pick_up: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """`trainer.train` on `train.nproc` processes; here where that is one, or where torchrun started this one.

    on_epoch is called in this process, once for every row. Raises what `trainer.train` does, and LaunchError.
    """
    count = processes(config)
    how = {"resume": resume, "pick_up": pick_up, "quiet": quiet}
    if count == 1 or "TORCHELASTIC_RUN_ID" in os.environ or ranks_of_environment().size > 1:
        return trainer.train(config, out, on_epoch=on_epoch, **how)
    with tempfile.TemporaryDirectory(prefix="ecggen-") as folder, _told(Path(folder), on_epoch):
        results = _run(count, config, str(out), how, Path(folder))
    error = next((result for result in results.values() if isinstance(result, EcggenError)), None)
    if error is not None:
        raise error
    return results[0]


def processes(config: Config) -> int:
    """`train.nproc`, or for 0 the GPUs of this machine. Raises DeviceError where these are too few."""
    import torch

    rules = config.train
    device = pick_device(rules.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    count = rules.nproc or max(1, gpus)
    if count > 1 and (device.type == "mps" or device.index is not None):
        pick_device(rules.device, 0)
    if count > gpus > 0:
        raise DeviceError(
            f"train.nproc is {count} and this machine has {gpus} GPU(s): use train.nproc=0 (one process per "
            "GPU), or train.device=cpu."
        )
    return count


def _run(count: int, config: Config, out: str, how: dict[str, bool], folder: Path) -> dict[int, Any]:
    """What each rank returned, by rank."""
    import torch.multiprocessing as mp
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="127.0.0.1",
        max_restarts=config.train.restarts,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    alive, hold = mp.get_context("spawn").Pipe(duplex=False)
    with _quiet_agent(), alive, hold:
        try:
            return elastic_launch(launch, _worker)(config, out, how, str(folder), alive)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise LaunchError(_lost(count, rank, failure.exitcode, folder, config)) from error
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise SystemExit(128 + int(error.sigval)) from error


def _worker(config: Config, out: str, how: dict[str, bool], folder: str, alive: Connection) -> Any:
    """One rank: the metrics, or the error in words that all ranks met."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the agent's way to end the others: at once, and no words
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
    ranks, failed = ranks_of_environment(), Path(folder) / "error.json"
    if ranks.main:
        failed.unlink(missing_ok=True)  # of an earlier start

    def on_epoch(row: dict[str, Any]) -> None:
        write_json(Path(folder) / "epochs" / f"{int(row['epoch']):06d}.json", row)

    try:
        return trainer.train(config, out, on_epoch=on_epoch, **how)
    except LostRankError as error:  # the agent knows of the one that is gone, unless none of them met
        write_json(Path(folder) / "lost.json", {"rank": ranks.rank, "error": str(error)})
        time.sleep(_YIELD_S)  # of two that have ended the agent tells of the first one by number
        os._exit(1)
    except EcggenError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        write_json(failed, {"rank": ranks.rank, "error": f"{type(error).__name__}: {error}"})
        os._exit(1)


def _die_with_parent(alive: Connection) -> None:
    """End this process as soon as the one that started it is gone: nobody else would."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)


def _lost(count: int, rank: int, exit_code: int, folder: Path, config: Config) -> str:
    last = next((path for name in ("error", "lost") if (path := folder / f"{name}.json").is_file()), None)
    if last is not None and exit_code >= 0:
        told = read_json(last)
        rank, how = told["rank"], f"failed ({told['error'].splitlines()[0][:200]})"
    elif exit_code < 0:
        name = signal.Signals(-exit_code).name
        how = f"was ended by {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"
    else:
        how = f"ended with exit code {exit_code}"
    again = config.train.restarts
    return (
        f"Training on {count} processes was given up after {again} restart{'' if again == 1 else 's'} "
        f"(train.restarts): process {rank} {how}; once the reason is gone, the same command goes on from the "
        "last checkpoint."
    )


@contextlib.contextmanager
def _told(folder: Path, on_epoch: Listener | None) -> Iterator[None]:
    """Hand on the rows that rank 0 leaves in folder/epochs, each once, in their order.

    A restarted rank writes some of them again, the same.
    """
    (folder / "epochs").mkdir()
    ended, seen = threading.Event(), set[str]()
    failed: list[Exception] = []

    def listen() -> None:
        assert on_epoch is not None
        last = False
        while not last and not failed:
            last = ended.wait(0.2)  # what was written before the end is still read
            for path in sorted(folder.glob("epochs/[0-9]*.json")):
                if path.name not in seen:
                    seen.add(path.name)
                    try:
                        on_epoch(read_json(path))
                    except Exception as error:  # of the listener; raised where it was called for
                        failed.append(error)
                        break

    thread = threading.Thread(target=listen)
    if on_epoch is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if on_epoch is not None:
            thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """Leave out the agent's own pages about processes that end: they are told of in one sentence."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    before = [(logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, (level, _) in zip(loggers, before, strict=True):
            logger.setLevel(level)
