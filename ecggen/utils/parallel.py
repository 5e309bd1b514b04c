"""Work on several processes, of this machine or of a Dask cluster; results come in the order of the items.

    with workers(scheduler, processes) as pool:
        for result in ordered_map(function, items, pool):
            ...

The results do not depend on who computes them. Functions (of a module), items and results are pickled. A
process that is lost is replaced, and its items are computed again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from ecggen.utils.errors import EcggenError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3  # items under way per process
CONNECT_S, FIRST_WORKER_S = 10.0, 60.0  # for a scheduler's answer, for its first worker
NO_WORKER_S = 600.0  # for another worker where all were lost: a queue may start new ones
LOOK_S = 2.0  # between two looks at the number of a scheduler's workers
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkerError(EcggenError):
    """Workers that cannot be used, or were lost."""


class Pool:
    """What `ordered_map` hands items to: an executor; None = this process, when the result is next.

    shared: first arguments of every call; count: items that are computed at once.
    """

    retries = 0  # of an item, alone, after its process was lost

    def __init__(
        self, executor: Executor | None = None, count: int = 1, shared: tuple[Any, ...] = ()
    ) -> None:
        self.executor, self.count, self.shared = executor, count, shared

    def room(self) -> int:
        """Items that may be under way."""
        return AHEAD * self.count if self.executor else 1

    def submit(self, function: Callable[..., Result], item: Any) -> Future[Result]:
        """function(*shared, item), sooner or later."""
        if self.executor:
            return self.executor.submit(function, *self.shared, item)
        future: Future[Result] = Future()
        future.set_result(function(*self.shared, item))
        return future

    def result(self, future: Future[Result]) -> Result:
        """Waits. Raises BrokenProcessPool where the process has ended, and what the function raises."""
        return future.result()

    def restart(self) -> None:
        """Replace lost processes."""

    def close(self) -> None:
        """Drop what is under way."""
        if self.executor:
            self.executor.shutdown(cancel_futures=True)


def ordered_map(
    function: Callable[..., Result],
    items: Iterable[Item],
    pool: Pool,
    *,
    describe: Callable[[Item], str] = str,
    split: Callable[[Item], list[Item]] = lambda item: [],
) -> Iterator[Result]:
    """function(*pool.shared, item) of each item, in order; the next few items are computed meanwhile.

    An item that ends its process every time is replaced by split(item), smaller ones with a result each;
    where there are none, the WorkerError has its description. What the function raises is raised.
    """
    source = iter(items)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        while True:
            for item in itertools.islice(source, max(0, pool.room() - len(waiting))):
                waiting.append((item, pool.submit(function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                result = pool.result(future)
            except BrokenProcessPool:
                yield from _compute_again(function, item, pool, describe, split)
                for _ in range(len(waiting)):  # those that were lost with it
                    other, future = waiting.popleft()
                    lost = future.cancelled() or (
                        future.done() and isinstance(future.exception(), BrokenProcessPool)
                    )
                    waiting.append((other, pool.submit(function, other) if lost else future))
            else:
                yield result
    finally:
        for _, future in waiting:
            future.cancel()


def _compute_again(
    function: Callable[..., Result],
    item: Item,
    pool: Pool,
    describe: Callable[[Item], str],
    split: Callable[[Item], list[Item]],
) -> Iterator[Result]:
    """An item whose process was lost: alone, so that no other item can be the cause; then in parts."""
    pool.restart()
    for _ in range(pool.retries):
        try:
            yield pool.result(pool.submit(function, item))
            return
        except BrokenProcessPool:
            pool.restart()
    parts = split(item)
    if len(parts) < 2:
        raise WorkerError(
            f"The process that computed {describe(item)} ended every time: it crashes there or needs more "
            "memory than there is; leave it out, or give a process more memory (fewer processes, smaller "
            "batches)."
        )
    yield from ordered_map(function, parts, pool, describe=describe)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def workers(
    scheduler: str = "",
    processes: int = 1,
    *,
    shared: tuple[Any, ...] = (),
    prepare: Callable[[], object] | None = None,
) -> Iterator[Pool]:
    """The pool of a Dask scheduler (tcp://host:port), else of so many local processes; 1 = this process.

    shared: see Pool; it travels to each process once. prepare: is called in each other process. Raises
    WorkerError where the scheduler cannot be used.
    """
    start = pickle.dumps((shared, prepare)) if scheduler or processes > 1 else b""
    with contextlib.ExitStack() as stack:
        if scheduler:
            pool: Pool = ClusterPool(stack.enter_context(_client(scheduler)), scheduler, start)
        else:
            pool = ProcessPool(processes, start) if processes > 1 else Pool(shared=shared)
        stack.callback(pool.close)
        yield pool


class ProcessPool(Pool):
    """Processes of this machine, with one thread each; they end when this process does, however it ends."""

    retries = 2

    def __init__(self, count: int, start: bytes) -> None:
        self._start = start
        super().__init__(self._executor(count), count)

    def submit(self, function: Callable[..., Result], item: Any) -> Future[Result]:
        try:
            return super().submit(_call, (function, item))
        except BrokenProcessPool as error:  # lost while nobody waited
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def restart(self) -> None:
        self.close()
        self.executor = self._executor(self.count)

    def _executor(self, count: int) -> ProcessPoolExecutor:
        """Spawned, as a fork of a process with threads may hang; all at once, as a process that starts while
        another is lost is waited for without end; without the main module, a script that would run again."""
        executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (self._start,))
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            for _ in range(count):
                executor.submit(int)
        finally:
            sys.modules["__main__"] = main
        return executor


_shared: tuple[Any, ...] = ()  # in a local process


def _begin(start: bytes) -> None:
    """First in a local process, before NumPy and torch are imported."""
    global _shared
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shared, prepare = pickle.loads(start)
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(task: tuple[Callable[..., Result], Any]) -> Result:
    function, item = task
    return function(*_shared, item)


class ClusterPool(Pool):
    """The workers of a Dask scheduler; there may be more or fewer of them at any time."""

    def __init__(self, client: Any, address: str, start: bytes) -> None:
        super().__init__(client.get_executor(pure=False))
        self._client, self._address = client, address
        # A task's result, which is computed again; scattered data are lost with the workers that hold them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is large
            self._start = client.submit(bytes, start, pure=False)
        self._looked, self._seen = -math.inf, time.monotonic()  # when threads were counted, and were there

    def room(self) -> int:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            try:
                self.count = sum(self._client.nthreads().values())
            except (OSError, RuntimeError, AttributeError, CancelledError) as error:
                raise self._lost() from error  # a client without a scheduler has no address: AttributeError
            self._looked, self._seen = now, now if self.count else self._seen
        return max(4, AHEAD * self.count)

    def submit(self, function: Callable[..., Result], item: Any) -> Future[Result]:
        assert self.executor is not None
        if self._client.status != "running":
            raise self._lost()
        return self.executor.submit(_call_remote, code_version(), self._start, function, item)

    def result(self, future: Future[Result]) -> Result:
        from distributed import KilledWorker

        while not wait([future], LOOK_S).done:
            if self._client.status != "running":  # then no result ever comes
                raise self._lost()
            self.room()
            if time.monotonic() - self._seen > NO_WORKER_S:
                raise WorkerError(
                    f"All workers of {self._address} were lost and none came back in {NO_WORKER_S:g} s: "
                    "start workers and run the stage again."
                )
        try:
            return future.result()
        except KilledWorker as error:  # on several workers
            raise BrokenProcessPool from error
        except CancelledError as error:
            raise self._lost() from error
        except ImportError as error:
            raise WorkerError(f"A worker of {self._address} lacks {error.name}: install it there.") from error

    def close(self) -> None:
        """Its client is closed by who opened it."""

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"The Dask scheduler at {self._address} was lost: start it again and run the stage again."
        )


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    """A connection to a scheduler that has workers. Raises WorkerError."""
    from distributed import Client
    from distributed import TimeoutError as LateError  # not the built-in one in Python 3.10

    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a WorkerError says it
    with contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_S, set_as_default=False))
            client.get_versions(check=True)
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except (OSError, ValueError, LateError) as error:
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise WorkerError(
                f"The Dask scheduler at {address} cannot be used ({words}): start one with workers of the "
                f"same versions (dask scheduler, dask worker {address}) and set data.scheduler to its "
                "address, tcp://host:port, or leave it empty for processes of this machine."
            ) from error
        yield client


def _call_remote(version: str, start: bytes, function: Callable[..., Result], item: Any) -> Result:
    if version != code_version():
        raise WorkerError(
            f"The worker on {socket.gethostname()} has {code_version()}, and the stage has {version}: the "
            "results may differ; install the same on both."
        )
    shared, prepare = _unpickle_once(start)
    if prepare is not None:
        prepare()
    return function(*shared, item)


_unpickle_once = functools.lru_cache(maxsize=1)(pickle.loads)


@functools.cache
def code_version() -> str:
    """What results depend on: a hash of the files of ecggen, and the versions of some packages."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.*")):
        if path.suffix in (".py", ".csv", ".json", ".yaml"):
            digest.update(path.read_bytes())
    versions = [f"ecggen {digest.hexdigest()[:12]}"]
    for name in ("numpy", "scipy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)
