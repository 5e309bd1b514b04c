"""Training on several processes: torchrun's agent starts them, and `all_reduce` sums their gradients.

`train` starts `train.nproc` processes on this machine; when one is lost, all start again, `train.restarts`
times at most, and go on from the last checkpoint. Under torchrun itself (several machines) a process is
already one of them. Each holds the whole model and takes the same steps; it computes its parts of each batch.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ecggen.training.devices import DeviceError, Out, Part, SideBySide, pick_device
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError

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
        """What `function` returns on each process, by rank. An EcggenError of one is raised on all."""
        if self.size == 1:
            return [function()]
        values: list[Any] = [None] * self.size
        _exchange(dist.all_gather_object, values, _attempt(function))
        return [_raised(value) for value in values]

    def from_main(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on rank 0, the only one that calls it. Its EcggenError is raised on all."""
        if self.size == 1:
            return function()
        values: list[Any] = [_attempt(function) if self.main else None]
        _exchange(dist.broadcast_object_list, values, src=0)
        return _raised(values[0])

    def map(self, parallel: SideBySide, function: Callable[[Part], Out], parts: Iterable[Part]) -> list[Out]:
        """[function(part) for part in parts], each computed by one process. Results: small, on the CPU."""
        parts = list(parts)
        by_rank = self.gather(lambda: parallel.map(function, parts[self.rank :: self.size]))
        return [by_rank[index % self.size][index // self.size] for index in range(len(parts))]

    def copy_from_main(self, module: torch.nn.Module) -> None:
        """Give every process the weights and buffers of rank 0."""
        for tensor in (*module.parameters(), *module.buffers()) if self.size > 1 else ():
            values = tensor.detach().contiguous()
            _exchange(dist.broadcast, values, src=0)
            tensor.detach().copy_(values)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; None where no process has one."""
        if self.size == 1:
            return
        pieces = [p.new_tensor([p.grad is not None for p in parameters]) for p in parameters[:1]]
        pieces += [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        flat = torch.cat(pieces)
        _exchange(dist.all_reduce, flat)
        counts, *sums = flat.split([len(piece) for piece in pieces])
        for parameter, count, total in zip(parameters, counts.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if count else None


def ranks_of_environment() -> Ranks:
    """The place that torchrun gave this process; alone where torchrun did not start it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(*(int(os.environ.get(name) or d) for name, d in zip(names, "01010", strict=True)))


@contextlib.contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """The processes of this training, connected: gloo between processors, NCCL between GPUs.

    device_name: `train.device`. Raises DeviceError.
    """
    ranks = ranks_of_environment()
    if ranks.size == 1 or dist.is_initialized():
        yield ranks
        return
    _exchange(_join, ranks, device_name)
    try:
        device = ranks.gather(lambda: pick_device(device_name, ranks.local))[ranks.rank]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield ranks
    finally:
        dist.destroy_process_group()


def _join(ranks: Ranks, device_name: str) -> None:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    host = ranks.main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store: dist.Store = dist.TCPStore(address, port, ranks.size, is_master=host, timeout=TIMEOUT)
    # The agent's store outlives a restart, and with it the addresses of processes that are gone.
    store = dist.PrefixStore(f"start_{ranks.restarts}", store)
    gpus = torch.cuda.is_available() and device_name.startswith(("auto", "cuda"))
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT)


def _attempt(function: Callable[[], Value]) -> Value | EcggenError:
    try:
        return function()
    except EcggenError as error:
        return error


def _raised(value: Any) -> Any:
    if isinstance(value, EcggenError):
        raise value
    return value


def _exchange(call: Callable[..., Value], *args: Any, **options: Any) -> Value:
    try:
        return call(*args, **options)
    except RuntimeError as error:  # of gloo, NCCL and the store alike
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise LostProcessError(
            f"Another process of this training cannot be reached ({reason}): torchrun starts all of them "
            "again as often as --max-restarts says; after that the same command with --resume goes on."
        ) from error


def train(
    config: Config,
    out: str | Path,
    *,
    on_epoch: Listener | None = None,
    resume: bool = False,
    pick_up: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """`ecggen.trainer.train` on `train.nproc` processes; in this one where that is one, or under torchrun.

    on_epoch is called in this process, once for every row of the history. Raises what `trainer.train` does,
    and LaunchError.
    """
    from ecggen import trainer

    count, options = process_count(config), {"resume": resume, "pick_up": pick_up, "quiet": quiet}
    if count == 1 or "TORCHELASTIC_RUN_ID" in os.environ or ranks_of_environment().size > 1:
        return trainer.train(config, out, on_epoch=on_epoch, **options)
    with _listening(on_epoch) as (sender, failures):
        results = _launch(count, config, failures, (config, str(out), options, sender))
    for result in results.values():
        if isinstance(result, EcggenError):
            raise result
    return results[0]


def process_count(config: Config) -> int:
    """`train.nproc`, or for 0 the GPUs of this machine. Raises DeviceError where these are too few."""
    options = config.train
    device = pick_device(options.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    count = options.nproc or max(1, gpus)
    if count > 1 and (device.type == "mps" or device.index is not None):
        pick_device(options.device, 0)
    if count > gpus > 0:
        raise DeviceError(
            f"train.nproc is {count} and this machine has {gpus} GPU(s): use train.nproc=0 (one process per "
            "GPU), or train.device=cpu."
        )
    return count


def _launch(count: int, config: Config, failures: list[str], args: tuple[Any, ...]) -> dict[int, Any]:
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
            max_restarts=config.train.restarts,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            return elastic_launch(launch, _worker)(*args)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                how = f"was ended by {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"
            else:
                how = f"failed ({failures[-1] if failures else f'exit code {failure.exitcode}'})"
            raise LaunchError(
                f"Training on {count} processes was given up after {config.train.restarts} restart(s) "
                f"(train.restarts): process {rank} {how}; once the reason is gone, the same command goes on "
                "from the last checkpoint."
            ) from error
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise SystemExit(128 + int(error.sigval)) from error


def _worker(config: Config, out: str, options: dict[str, bool], sender: Connection) -> Any:
    """One process: the metrics, or the EcggenError that all processes met."""
    from ecggen import trainer

    for number in (signal.SIGINT, signal.SIGTERM):  # by which the agent ends the others: at once, silently
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        return trainer.train(config, out, on_epoch=sender.send, **options)
    except LostProcessError:
        time.sleep(1.0)  # the agent then sees the lost process first, and names that one
        os._exit(1)
    except EcggenError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _listening(on_epoch: Listener | None) -> Iterator[tuple[Connection, list[str]]]:
    """(where workers send rows of the history and descriptions of failures, the failures so far).

    Rows go to on_epoch, each once, though a restart sends the earlier ones again. Its error is raised at the
    end.
    """
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    failures: list[str] = []
    errors: list[Exception] = []

    def listen() -> None:
        last = -1
        with contextlib.suppress(EOFError):  # all have closed their end
            while True:
                item = receiver.recv()
                if isinstance(item, str):
                    failures.append(item)
                elif on_epoch is not None and item["epoch"] > last and not errors:
                    last = item["epoch"]
                    try:
                        on_epoch(item)
                    except Exception as error:
                        errors.append(error)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield sender, failures
    finally:
        sender.close()
        thread.join()
        receiver.close()
    if errors:
        raise errors[0]
