"""An evaluation spread over threads, processes or machines.

Work is cut into jobs beforehand, by the data alone; every job computes with one thread and its results are
taken in the order of the jobs. How many workers there are changes nothing but the time, to the bit.

Threads of one process are the default: they start at once, and need no script that can be imported again.
Processes pay where there are many cores (one interpreter runs one piece of Python at a time) or several GPUs
(one process each). Each holds its own copy of the context; arrays that are memory-mapped files are shared.
Workers on other machines are handed in by who starts the evaluation, and see the same files.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch

from ecggen.eval.result import EvalError
from ecggen.utils.processes import started_executor

VARIABLE = "ECGGEN_PROCESSES"
#: Cores from which processes are worth their start.
FEWEST_CORES = 4

Context_co = TypeVar("Context_co", covariant=True)
Job = TypeVar("Job")
Out = TypeVar("Out")


def processes(device: torch.device) -> int:
    """How many processes a script should ask for: ECGGEN_PROCESSES, else one per GPU, or per thread of torch
    (OMP_NUM_THREADS) where there are FEWEST_CORES or more.

    Raises EvalError where the variable is no whole number from 1 on.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if said:
        if not said.isdecimal() or int(said) < 1:
            raise EvalError(f"{VARIABLE} is {said!r}: give the number of processes, 1 or more, or unset it.")
        return int(said)
    if device.type == "cuda":
        return max(1, torch.cuda.device_count())
    cores = torch.get_num_threads()
    return cores if device.type == "cpu" and cores >= FEWEST_CORES else 1


class Machines(Protocol):
    """Workers on other machines, as `ecggen.utils.workers.cluster` has them."""

    def room(self) -> int:
        """Jobs that may be under way."""

    def lend(self, value: bytes) -> Any:
        """What stands for value among the arguments of `submit`."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> _Awaited:
        """call(*arguments) on a worker."""


class _Awaited(Protocol):
    """A job under way."""

    def result(self) -> Any: ...

    def cancel(self) -> Any: ...


class Spread(Generic[Context_co]):
    """Calls functions of (context, job) on many jobs; to be used in a `with` block.

    processes 1: this process, on as many threads as torch may use where the device is a CPU. More: that many
    processes besides this one; context, jobs and results must be picklable, functions importable. Or workers
    on other machines, likewise.
    """

    def __init__(self, context: Context_co, device: torch.device, processes: int | Machines = 1) -> None:
        self.context = context
        self.machines = None if isinstance(processes, int) else processes
        self.processes = max(1, processes) if isinstance(processes, int) else 1
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.workers = self.processes if self.processes > 1 else threads
        self._pool: Executor | None = None
        self._lent: Any = None  # what stands for the context on other machines

    def __enter__(self) -> Spread[Context_co]:
        if self.machines is not None:
            self._lent = self.machines.lend(pickle.dumps(self.context))
        elif self.processes > 1:
            start = multiprocessing.get_context("spawn").Value("i", 0), pickle.dumps(self.context)
            self._pool = started_executor(self.processes, _begin, start)
        elif self.workers > 1:
            self._pool = ThreadPoolExecutor(self.workers, "ecggen-eval", torch.set_num_threads, (1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Context_co, Job], Out], jobs: Iterable[Job]) -> Iterator[Out]:
        """function(context, job) for every job, in order; few results wait, whatever the number of jobs.

        The first error of a job is raised. Raises EvalError where a process died.
        """
        if self._pool is None and self.machines is None:
            for job in jobs:
                yield function(self.context, job)
            return
        waiting: deque[_Awaited] = deque()
        try:
            for job in jobs:
                waiting.append(self._submit(function, job))
                if len(waiting) > self._room():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise EvalError(
                "A process of the evaluation was killed, most likely for want of memory: set "
                f"{VARIABLE} to fewer than {self.processes}."
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def _room(self) -> int:
        return 2 * self.workers if self.machines is None else self.machines.room()

    def _submit(self, function: Callable[[Context_co, Job], Out], job: Job) -> _Awaited:
        if self.machines is not None:
            return self.machines.submit(_call_lent, self._lent, function, job)
        assert self._pool is not None
        if self.processes > 1:
            return self._pool.submit(_call, function, job)
        return self._pool.submit(function, self.context, job)


# On another machine.


def _call_lent(context: bytes, function: Callable[[Any, Job], Out], job: Job) -> Out:
    torch.set_num_threads(1)
    return function(_unpickled(context), job)


_unpickled = functools.lru_cache(maxsize=1)(pickle.loads)

# In a process of the pool.

_context: Any = None


def _begin(count: Any, context: bytes) -> None:
    global _context
    torch.set_num_threads(1)
    with count.get_lock():
        number, count.value = count.value, count.value + 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    _context = pickle.loads(context)


def _call(function: Callable[[Any, Job], Out], job: Job) -> Out:
    return function(_context, job)
