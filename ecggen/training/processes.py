"""Training on several processes: torchrun's agent starts them, and `all_reduce` sums their gradients.

`train` starts `train.nproc` processes on this machine; when one is lost, all start again, `train.restarts`
times at most, and go on from the last checkpoint. Under torchrun itself (several machines) a process is
already one of them. Each holds the whole model and takes the same steps; it computes its parts of each batch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from ecggen.training.devices import Out, Part, SideBySide, pick_device
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError
from ecggen.utils.parallel import end_with_parent

Value = TypeVar("Value")
Listener = Callable[[dict[str, Any]], None]

#: How long processes wait for each other: for a slow disk under a checkpoint. The connections of a process
#: that has ended are closed, which the others notice at once.
TIMEOUT = timedelta(hours=1)


class LostProcessError(EcggenError):
    """Another process of the training has ended, or cannot be reached."""


class LaunchError(EcggenError):
    """Processes that were lost more often than `train.restarts` allows."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together: number `rank` of `size`, `local` of `beside` on this
    machine; restarts: how often the agent has started all of them again."""

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1
    restarts: int = 0

    @property
    def main(self) -> bool:
        """The process that writes files, logs and progress."""
        return self.rank == 0

    def gather(self, function: Callable[[], Value]) -> list[Value]:
        """What `function` returns on each process, by rank. The error of one is raised on all."""
        if self.size == 1:
            return [function()]
        values: list[Any] = [None] * self.size
        value = _attempt(function)
        with _exchange():
            dist.all_gather_object(values, value)
        _raise_error(values)
        return values

    def from_main(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on rank 0, the only one that calls it. Its error is raised on all."""
        if self.size == 1:
            return function()
        values: list[Any] = [_attempt(function) if self.main else None]
        with _exchange():
            dist.broadcast_object_list(values, src=0)
        _raise_error(values)
        return values[0]

    def map(self, parallel: SideBySide, function: Callable[[Part], Out], parts: Iterable[Part]) -> list[Out]:
        """[function(part) for part in parts], each computed by one process. Results: small, on the CPU."""
        parts = list(parts)
        by_rank = self.gather(lambda: parallel.map(function, parts[self.rank :: self.size]))
        return [by_rank[index % self.size][index // self.size] for index in range(len(parts))]

    def copy_from_main(self, module: torch.nn.Module) -> None:
        """Give every process the weights and buffers of rank 0."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            values = tensor.contiguous()
            with _exchange():
                dist.broadcast(values, src=0)
            tensor.copy_(values)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; None where no process has one."""
        if self.size == 1:
            return
        present = parameters[0].new_tensor([p.grad is not None for p in parameters])
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        flat = torch.cat([present, *gradients])
        with _exchange():
            dist.all_reduce(flat)
        present, *sums = flat.split([len(piece) for piece in (present, *gradients)])
        for parameter, count, total in zip(parameters, present.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if count else None


def ranks_of_environment() -> Ranks:
    """The place that torchrun gave this process; alone where torchrun did not start it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(*(int(os.environ.get(name) or d) for name, d in zip(names, "01010", strict=True)))


@contextmanager
def process_group(device_name: str) -> Iterator[Ranks]:
    """The processes of this training, connected: gloo between processors, NCCL between GPUs.

    device_name: `train.device`. Raises DeviceError.
    """
    ranks = ranks_of_environment()
    if ranks.size == 1 or dist.is_initialized():
        yield ranks
        return
    host = ranks.main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    gpus = torch.cuda.is_available() and device_name.startswith(("auto", "cuda"))
    with _exchange():
        store: dist.Store = dist.TCPStore(address, port, ranks.size, is_master=host, timeout=TIMEOUT)
        # The agent's store outlives a restart, and with it the addresses of processes that are gone.
        store = dist.PrefixStore(f"start_{ranks.restarts}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT,
        )  # fmt: skip
    try:
        device = ranks.gather(lambda: pick_device(device_name, ranks.local))[ranks.rank]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield ranks
    finally:
        dist.destroy_process_group()


def _attempt(function: Callable[[], Value]) -> Value | EcggenError | OSError:
    try:
        return function()
    except (EcggenError, OSError) as error:
        return error


def _raise_error(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, (EcggenError, OSError)):
            raise value


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL and the store alike
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise LostProcessError(
            f"Another process of this training cannot be reached ({reason}): torchrun starts all of them "
            "again as often as --max-restarts says; after that the same command with --resume goes on."
        ) from error


def train(
    config: Config, out: str | Path, *, on_epoch: Listener = lambda row: None, **options: bool
) -> dict[str, Any]:
    """`ecggen.trainer.train` on `train.nproc` processes; in this one where that is one, or under torchrun.

    on_epoch is called in this process, once for every row of the history; options: see `trainer.train`.
    Raises what that does, and LaunchError.
    """
    from ecggen import trainer

    count = process_count(config)
    if count == 1 or "TORCHELASTIC_RUN_ID" in os.environ or ranks_of_environment().size > 1:
        return trainer.train(config, out, on_epoch=on_epoch, **options)
    with _history_pipe(on_epoch) as sender:
        results = _launch(count, config.train.restarts, (config, str(out), options, sender))
    _raise_error(results.values())
    return results[0]


def process_count(config: Config) -> int:
    """`train.nproc`, or for 0 the GPUs of this machine. Raises DeviceError where these are too few."""
    name = config.train.device
    gpus = torch.cuda.device_count() if pick_device(name).type == "cuda" else 1
    count = config.train.nproc or gpus
    if count > 1:
        pick_device(name, count - 1)
    return count


def _launch(count: int, restarts: int, args: tuple[Any, ...]) -> dict[int, Any]:
    """What `_worker(*args)` returns on each of `count` processes, by rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # pages about what one sentence says
    with tempfile.TemporaryDirectory(prefix="ecggen-") as logs:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="127.0.0.1",
            max_restarts=restarts,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            return elastic_launch(launch, _worker)(*args)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            message: Any = failure.message  # {"message": ..., "extraInfo": ...} where it raised an exception
            reason = message["message"].splitlines()[0][:200] if isinstance(message, dict) else message
            memory = " (often: out of memory)" if failure.signal_name() == "SIGKILL" else ""
            raise LaunchError(
                f"Training on {count} processes was given up after {restarts} restart(s) (train.restarts): "
                f"process {rank} ended with {reason}{memory}; once the reason is gone, the same command goes "
                "on from the last checkpoint."
            ) from error
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise SystemExit(128 + int(error.sigval)) from error


@record
def _worker(config: Config, out: str, options: dict[str, bool], sender: Connection) -> Any:
    """One process: the metrics, or the error that all processes met."""
    from ecggen import trainer

    for number in (signal.SIGINT, signal.SIGTERM):  # by which the agent ends the others: at once, silently
        signal.signal(number, signal.SIG_DFL)
    end_with_parent()
    try:
        return trainer.train(config, out, on_epoch=sender.send, **options)
    except LostProcessError:
        time.sleep(1.0)  # the agent then sees the lost process first, and names that one
        os._exit(1)
    except (EcggenError, OSError) as error:
        return error
    except Exception:
        traceback.print_exc()
        raise


@contextmanager
def _history_pipe(on_epoch: Listener) -> Iterator[Connection]:
    """Where workers send rows of the history. A thread hands each to on_epoch, once, though a restart sends
    the earlier ones again; an error of on_epoch is raised."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)

    def listen() -> None:
        epoch = -1
        with receiver:  # closed after an error too: then no process waits for room in it
            for row in iter(receiver.recv, None):
                if row["epoch"] > epoch:
                    epoch = row["epoch"]
                    on_epoch(row)

    with sender, ThreadPoolExecutor(1) as executor:
        listener = executor.submit(listen)
        try:
            yield sender
        finally:
            with suppress(BrokenPipeError):
                sender.send(None)
            listener.result()
