"""Who does the tasks: this process, processes beside it, or the workers of a Dask scheduler.

All three are a pool with one method, `in_order`: the results come in the order of the tasks, whoever was
faster, and only a few tasks are under way, so that memory does not grow with their number. A worker that is
lost costs the work it had begun: its tasks are done again. A task that ends its worker every time is cut
into smaller ones, until it is known which one it is.

A worker computes with one thread for each task: OpenBLAS, MKL and OpenMP are told so before they are loaded.
The only file that imports distributed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ecggen.utils.allocator import keep_freed_memory
from ecggen.utils.errors import EcggenError
from ecggen.utils.processes import started_executor

In = TypeVar("In")
Out = TypeVar("Out")

_AHEAD = 3  # tasks under way for each thread that works
_ALONE = 2  # times that a local task is tried alone before it is held to end its worker
_COUNT_S = 2.0  # between two looks at how many threads a scheduler has
_LOOK_S = 5.0  # between two looks whether there are workers at all
CONNECT_S = 10.0  # for an answer of the scheduler
WORKERS_S = 60.0  # for its first worker
GONE_S = 600.0  # for another one where all were lost: a queue may send new ones
_PACKAGES = ("numpy", "scipy", "wfdb", "torch")  # those whose version may change a result


class WorkerError(EcggenError):
    """Workers that cannot be used, or were lost."""


class _TaskKilledError(Exception):
    """A task that ended each worker it was given to."""


class Pool:
    """This process alone, a task at a time."""

    def in_order(
        self,
        call: Callable[[In], Out],
        tasks: Iterable[In],
        split: Callable[[In], list[In]],
        name: Callable[[In], str],
    ) -> Iterator[Out]:
        """call(task) of every task, in order; `call` is a function of a module.

        split: the same task as smaller ones, in order, or as one that is no smaller; name: what it is, in a
        sentence. Raises what `call` raises, and WorkerError.
        """
        for task in tasks:
            yield call(task)


@contextlib.contextmanager
def pool(scheduler: str = "", processes: int = 1) -> Iterator[Pool]:
    """The workers: of a scheduler (tcp://host:port), else so many local processes; one is this process.

    Raises WorkerError.
    """
    if scheduler:
        with _dask_pool(scheduler) as made:
            yield made
    elif processes > 1:
        with contextlib.closing(_LocalPool(processes)) as local:
            yield local
    else:
        yield Pool()


def local_processes(asked: int, many: bool) -> int:
    """As many as were asked for; of 0, one per core for many records, else one."""
    return asked or (cores() if many else 1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _AheadPool(Pool):
    """A pool that works on some tasks ahead of the one whose result is next."""

    def in_order(
        self,
        call: Callable[[In], Out],
        tasks: Iterable[In],
        split: Callable[[In], list[In]],
        name: Callable[[In], str],
    ) -> Iterator[Out]:
        waiting: deque[tuple[In, Any]] = deque()
        source = iter(tasks)
        more = True
        while True:
            while more and len(waiting) < self._room():
                for task in source:
                    waiting.append((task, self._submit(call, task)))
                    break
                else:
                    more = False
            if not waiting:
                return
            task, handle = waiting.popleft()
            try:
                out = self._result(handle)
            except _TaskKilledError as error:
                smaller = split(task)
                if len(smaller) <= 1:
                    raise WorkerError(
                        f"Preparing {name(task)} ended its worker process {error}: it crashes there or needs "
                        "more memory than there is; leave it out of the folder or list, or prepare it alone."
                    ) from None
                waiting.extendleft((part, self._submit(call, part)) for part in reversed(smaller))
                continue
            yield out

    def _room(self) -> int:
        """Tasks that may be under way."""
        raise NotImplementedError

    def _submit(self, call: Callable[[In], Out], task: In) -> Any:
        raise NotImplementedError

    def _result(self, handle: Any) -> Any:
        """Waits for it. Raises _TaskKilledError, WorkerError, and what the task raised."""
        raise NotImplementedError


@dataclass
class _Local:
    """A task of the local pool."""

    call: Callable[[Any], Any]
    task: Any
    future: Future[Any]


class _LocalPool(_AheadPool):
    """Processes of this machine."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._handles: list[_Local] = []
        self._executor = started_executor(self._processes)

    def _room(self) -> int:
        return _AHEAD * self._processes

    def _submit(self, call: Callable[[In], Out], task: In) -> _Local:
        handle = _Local(call, task, self._future(call, task))
        self._handles.append(handle)
        return handle

    def _result(self, handle: _Local) -> Any:
        """One process lost takes all down with it: the awaited task is then tried alone, the others again."""
        self._handles.remove(handle)
        try:
            return handle.future.result()
        except BrokenProcessPool:
            pass
        for _ in range(_ALONE):
            self._restart()
            try:
                out = self._future(handle.call, handle.task).result()
            except BrokenProcessPool:
                continue
            self._again()
            return out
        self._restart()
        self._again()
        raise _TaskKilledError(f"{_ALONE} times, with no other beside it")

    def _restart(self) -> None:
        self._executor.shutdown()
        self._executor = started_executor(self._processes)

    def _again(self) -> None:
        """Do again what is under way, in the executor that is now."""
        for handle in self._handles:
            done = handle.future.done() and handle.future.exception() is None
            if not done:
                handle.future = self._future(handle.call, handle.task)

    def _future(self, call: Callable[[In], Out], task: In) -> Future[Out]:
        try:
            return self._executor.submit(call, task)
        except BrokenProcessPool as error:  # lost while nobody waited
            broken: Future[Out] = Future()
            broken.set_exception(error)
            return broken

    def close(self) -> None:
        """End the processes; what is under way is let go."""
        self._executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Said(Generic[Out]):
    """What a remote worker returns: the result, and what made it."""

    out: Out
    made_by: dict[str, str]


class _DaskPool(_AheadPool):
    """The workers of a Dask scheduler; there may be more or fewer of them at any time."""

    def __init__(self, client: Any, address: str) -> None:
        from distributed import KilledWorker
        from distributed import TimeoutError as LateError  # not the built-in one in Python 3.10

        self._client, self._address = client, address
        self._killed: type[Exception] = KilledWorker
        self._late: type[Exception] = LateError
        self._own = made_by()
        self._counted = (-math.inf, 0)  # when, and the threads there were

    def _room(self) -> int:
        if time.monotonic() - self._counted[0] > _COUNT_S:
            try:
                threads = sum(self._client.nthreads().values())
            except (OSError, RuntimeError, CancelledError) as error:
                raise self._lost() from error
            self._counted = time.monotonic(), threads
        return max(4, _AHEAD * self._counted[1])

    def _submit(self, call: Callable[[In], Out], task: In) -> Any:
        return self.hand_in(call, task)

    def hand_in(self, call: Callable[..., Out], *arguments: Any) -> Any:
        """A handle for what a worker makes of it. Raises WorkerError."""
        if self._client.status != "running":
            raise self._lost()
        return self._client.submit(_remote, call, *arguments, pure=False)

    def lend(self, value: bytes) -> Any:
        """What stands for value among the arguments of `hand_in`: it travels to each worker once, and comes
        back where all that had it were lost."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is large
            return self._client.submit(bytes, value, pure=False)

    def _result(self, handle: Any) -> Any:
        try:
            said = self._wait(handle)
        except self._killed as error:
            raise _TaskKilledError(f"{getattr(error, 'allowed_failures', 3) + 1} times") from None
        except ModuleNotFoundError as error:
            raise WorkerError(
                f"A worker of {self._address} lacks the package {error.name}: install ecggen, the same "
                "version, on every worker."
            ) from error
        except (CancelledError, OSError, RuntimeError) as error:
            if handle.status == "error":  # the task's own
                raise
            raise self._lost() from error
        finally:
            handle.release()
        for name, value in said.made_by.items():
            if self._own.get(name) != value:
                raise WorkerError(
                    f"A worker of {self._address} has {name} {value} and this process "
                    f"{self._own.get(name, 'none')}: the results may differ; install the same on both."
                )
        return said.out

    def _wait(self, handle: Any) -> Any:
        """The task's result, however long it takes, unless all workers are gone and none comes back."""
        empty_since = math.inf
        while True:
            try:
                return handle.result(timeout=_LOOK_S)
            except self._late:
                if handle.status == "error":  # the task's own
                    raise
            now = time.monotonic()
            empty_since = math.inf if self._client.nthreads() else min(empty_since, now)
            if now - empty_since > GONE_S:
                raise WorkerError(
                    f"All workers of {self._address} were lost and none came back in {GONE_S:g} s: nothing "
                    "was written; start workers and run the stage again."
                )

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"The Dask scheduler at {self._address} was lost: nothing was written; start it again and run "
            "the stage again."
        )


class Cluster:
    """The workers of a Dask scheduler, for jobs that share what they are about."""

    def __init__(self, pool: _DaskPool) -> None:
        self._pool = pool

    def room(self) -> int:
        """Jobs that may be under way."""
        return self._pool._room()

    def lend(self, value: bytes) -> Any:
        """What stands for value among the arguments of `submit`, so that it travels to each worker once."""
        return self._pool.lend(value)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> _Job:
        """call(*arguments) on a worker, with one thread; `call` is a function of a module."""
        return _Job(self._pool, self._pool.hand_in(call, *arguments))


@dataclass
class _Job:
    """A job under way."""

    pool: _DaskPool
    handle: Any

    def result(self) -> Any:
        """Waits for it. Raises WorkerError, and what the job raised."""
        try:
            return self.pool._result(self.handle)
        except _TaskKilledError as error:
            raise WorkerError(
                f"A part of the evaluation ended its worker process {error}: most likely it needs more "
                "memory than the worker has; give workers more, or set a smaller batch_size of the stage."
            ) from None

    def cancel(self) -> None:
        """Let it go."""
        self.handle.release()


@contextlib.contextmanager
def cluster(scheduler: str) -> Iterator[Cluster]:
    """The workers of a scheduler, tcp://host:port. Raises WorkerError."""
    with _dask_pool(scheduler) as made:
        yield Cluster(made)


@contextlib.contextmanager
def _dask_pool(address: str) -> Iterator[_DaskPool]:
    from distributed import Client
    from distributed import TimeoutError as NoWorkersError  # not the built-in one in Python 3.10

    # What it would log is said by WorkerError.
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with _client(Client, address) as client:
            try:
                client.get_versions(check=True)
            except ValueError as error:
                words = " ".join(str(error).split())
                raise WorkerError(
                    f"The Dask scheduler at {address} or a worker of it has other versions than "
                    f"this process: {words[:400]}"
                ) from error
            try:
                client.wait_for_workers(1, timeout=WORKERS_S)
            except NoWorkersError as error:
                raise WorkerError(
                    f"The Dask scheduler at {address} has no workers after {WORKERS_S:g} s: start some (dask "
                    f"worker {address})."
                ) from error
            yield _DaskPool(client, address)
    finally:
        logger.setLevel(level)


def _client(kind: Any, address: str) -> Any:
    try:
        return kind(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"No Dask scheduler answers at {address} ({' '.join(str(error).split())[:200]}): start one (dask "
            "scheduler) and set data.scheduler to its address, tcp://host:port, or leave it empty for "
            "processes of this machine."
        ) from error


def _remote(call: Callable[..., Out], *arguments: Any) -> _Said[Out]:
    """What a remote worker runs."""
    keep_freed_memory(whatever_is_set=True)
    return _Said(call(*arguments), made_by())


@functools.cache
def made_by() -> dict[str, str]:
    """Versions of what a result of this process depends on; of this package, a hash of its files."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.*")):
        if path.suffix in (".py", ".csv", ".json"):
            digest.update(path.read_bytes())
    said = {"code of ecggen": digest.hexdigest()[:12]}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            said[name] = importlib.metadata.version(name)
    return said
