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
LOOK_S = 2.0  # between two looks at a scheduler that owes a result
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkerError(EcggenError):
    """Workers that cannot be used, or were lost."""


class Pool:
    """What `ordered_map` hands items to: an executor; None = this process, when the result is next.

    shared: first arguments of every call; count: items that are computed at once.
    """

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

    def result(self, future: Future[Result], function: Callable[..., Result], item: Any) -> Result:
        """What was submitted, computed again where its process was lost. Raises what the function raises, and
        BrokenProcessPool where every process that computes the item ends."""
        return future.result()

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
                result = pool.result(future, function, item)
            except BrokenProcessPool as error:
                parts = split(item)
                if len(parts) < 2:
                    raise WorkerError(
                        f"The process that computed {describe(item)} ended every time: it crashes there or "
                        "needs more memory than there is; leave it out, or give a process more memory (fewer "
                        "processes, smaller batches)."
                    ) from error
                yield from ordered_map(function, parts, pool, describe=describe)
            else:
                yield result
    finally:
        for _, future in waiting:
            future.cancel()


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
            pool: Pool = ClusterPool(_connect(scheduler, stack), scheduler, start)
        else:
            pool = ProcessPool(processes, start) if processes > 1 else Pool(shared=shared)
            stack.callback(pool.close)
        yield pool


class ProcessPool(Pool):
    """Processes of this machine, with one thread each; they end when this process does, however it ends.

    Where one is lost, the executor is replaced, and every item that was under way is computed again as soon
    as its result is next.
    """

    def __init__(self, count: int, start: bytes) -> None:
        self._start = start
        super().__init__(self._processes(count), count)

    def submit(self, function: Callable[..., Result], item: Any) -> Future[Result]:
        try:
            return super().submit(_call, (function, item))
        except BrokenProcessPool:
            self.close()
            self.executor = self._processes(self.count)
            return super().submit(_call, (function, item))

    def result(self, future: Future[Result], function: Callable[..., Result], item: Any) -> Result:
        # Another item may have ended the process the first and the second time; the third time this one is
        # alone, as the second loss was that of all others.
        for _ in range(2):
            with contextlib.suppress(BrokenProcessPool):
                return future.result()
            future = self.submit(function, item)
        return future.result()

    def _processes(self, count: int) -> ProcessPoolExecutor:
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
    end_with_parent()
    _shared, prepare = pickle.loads(start)
    if prepare is not None:
        prepare()


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


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

    def room(self) -> int:
        return max(4, AHEAD * self._threads())

    def submit(self, function: Callable[..., Result], item: Any) -> Future[Result]:
        assert self.executor is not None
        if self._client.status != "running":
            raise self._lost()
        return self.executor.submit(_call_remote, code_version(), self._start, function, item)

    def result(self, future: Future[Result], function: Callable[..., Result], item: Any) -> Result:
        from distributed import KilledWorker

        worker_seen = time.monotonic()
        while not wait([future], LOOK_S).done:
            if self._threads():
                worker_seen = time.monotonic()
            elif time.monotonic() - worker_seen > NO_WORKER_S:
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

    def _threads(self) -> int:
        """Of all workers together. Raises WorkerError where the scheduler is gone, which never answers."""
        if self._client.status == "running":
            with contextlib.suppress(OSError, RuntimeError, AttributeError, CancelledError):
                return sum(self._client.nthreads().values())
        raise self._lost()

    def _lost(self) -> WorkerError:
        return WorkerError(
            f"The Dask scheduler at {self._address} was lost: start it again and run the stage again."
        )


def _connect(address: str, stack: contextlib.ExitStack) -> Any:
    """The client of a scheduler that has workers; `stack` closes it. Raises WorkerError."""
    from distributed import Client
    from distributed import TimeoutError as LateError  # not the built-in one in Python 3.10

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a WorkerError says it
    try:
        client = stack.enter_context(Client(address, timeout=CONNECT_S, set_as_default=False))
        client.get_versions(check=True)
        client.wait_for_workers(1, timeout=FIRST_WORKER_S)
    except (OSError, ValueError, LateError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise WorkerError(
            f"The Dask scheduler at {address} cannot be used ({words}): start one with workers of the same "
            f"versions (dask scheduler, dask worker {address}) and set data.scheduler to its address, "
            "tcp://host:port, or leave it empty for processes of this machine."
        ) from error
    return client


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
    versions = [f"ecggen {hash_of_package('.py', '.csv', '.json', '.yaml')}"]
    for name in ("numpy", "scipy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


def hash_of_package(*suffixes: str, parts: Iterable[str] = ("",)) -> str:
    """Of the files of ecggen with these suffixes, or of some parts of it; the same wherever they lie."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in (package / part for part in parts):
        for file in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
            if file.suffix in suffixes:
                digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]
