"""Who computes an evaluation: threads of this process, processes beside it, or a Dask scheduler's workers.

The data alone say how the work is cut into jobs; each job computes with one thread, and results come in the
order of the jobs. So the numbers do not depend on the workers, to the bit where the processors are alike.

Threads start at once. Processes pay where there are many cores (one interpreter runs one piece of Python at a
time) or several GPUs (one process each). Workers of a scheduler see the same files under the same paths.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ecggen.eval.result import Array, EvalError
from ecggen.utils.display import Progress
from ecggen.utils.parallel import Pool, ordered_map, workers

VARIABLE = "ECGGEN_PROCESSES"
FEWEST_CORES = 4  # from which processes are worth their start

Context = TypeVar("Context", covariant=True)
Job = TypeVar("Job")
Out = TypeVar("Out")
Measured = dict[Any, Array]  # name -> [n, ...], a row for each window; NaN = not measured
#: A function of (context, job) that measures windows, name -> [k, ...]; the places [k] of the windows of each
#: job, together 0 to n - 1; the job of such places.
Task = tuple[Callable[[Any, Any], Mapping[Any, Array]], Sequence[Array], Callable[[Array], Any]]


def default_processes(device: torch.device) -> int:
    """ECGGEN_PROCESSES, else one per GPU, or per thread of torch where there are FEWEST_CORES or more.

    Raises EvalError where the variable is no whole number from 1 on.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise EvalError(f"{VARIABLE} is {text!r}: give the number of processes, 1 or more, or unset it.")
        return int(text)
    if device.type == "cuda":
        return max(1, torch.cuda.device_count())
    threads = torch.get_num_threads()
    return threads if device.type == "cpu" and threads >= FEWEST_CORES else 1


def batches(count: int, most: int) -> list[Array]:
    """The places 0 to count - 1, `most` at a time."""
    return [np.arange(at, min(at + most, count)) for at in range(0, count, most)]


def row_task(function: Callable[[Any, Any], Mapping[Any, Array]], rows: Array, most: int, *more: Any) -> Task:
    """The task of these rows of a folder, `most` at a time; a job is (*more, its rows)."""
    return function, batches(len(rows), most), lambda at: (*more, rows[at])


class Workers(Generic[Context]):
    """Calls functions of (context, job) on many jobs, in a `with` block.

    processes: 1 = as many threads of this process as torch may use on a CPU; more = that many processes, each
    with a copy of the context; or the address of a Dask scheduler, tcp://host:port. Context, jobs and results
    are picklable, functions belong to a module.
    """

    def __init__(self, context: Context, device: torch.device, processes: int | str = 1) -> None:
        self.context, self._processes = context, processes
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._stack = ExitStack()

    def __enter__(self) -> Workers[Context]:
        shared, where = (self.context,), self._processes
        if where == 1 and self._threads > 1:
            threads = ThreadPoolExecutor(self._threads, "ecggen-eval", torch.set_num_threads, (1,))
            self._pool = Pool(threads, self._threads, shared)
            self._stack.callback(self._pool.close)
        else:
            scheduler, processes = (where, 1) if isinstance(where, str) else ("", where)
            self._pool = self._stack.enter_context(
                workers(scheduler, processes, shared=shared, prepare=_use_one_thread)
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def map(self, function: Callable[[Context, Job], Out], jobs: Iterable[Job]) -> Iterator[Out]:
        """function(context, job) of each job, in order. Raises WorkerError, and what the function raises."""
        return ordered_map(function, jobs, self._pool, describe=lambda job: "a part of the evaluation")

    def measure(self, tasks: Sequence[Task], name: str = "windows") -> Iterator[Measured]:
        """What was measured on all windows of each task, in order; later jobs run meanwhile.

        name: what the progress counts.

        A task's dictionary is emptied when the next one is read: two at once would be most of the memory of
        an evaluation.
        """
        results = self.map(_call, ((function, job(at)) for function, places, job in tasks for at in places))
        progress = Progress(name, sum(len(at) for _, places, _ in tasks for at in places))
        for _, places, _ in tasks:
            measured: Measured = {}
            count = sum(map(len, places))
            for at in places:
                for key, values in next(results).items():
                    if key not in measured:
                        measured[key] = np.full((count, *values.shape[1:]), np.nan, values.dtype)
                    measured[key][at] = values
                progress.add(len(at))
            yield measured
            measured.clear()
        progress.close()


def _call(context: Any, task: tuple[Callable[[Any, Any], Mapping[Any, Array]], Any]) -> Mapping[Any, Array]:
    function, job = task
    return function(context, job)


def _use_one_thread() -> None:
    """In another process: one thread, and its own GPU where there are several."""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        number = multiprocessing.current_process().name.rpartition("-")[2]
        torch.cuda.set_device(int(number) % torch.cuda.device_count() if number.isdecimal() else 0)
