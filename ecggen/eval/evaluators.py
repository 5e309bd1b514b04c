"""Who computes an evaluation: this process, processes beside it, or the machines of a Dask scheduler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ecggen.eval.spread import Machines, processes
from ecggen.utils.workers import cluster


@contextlib.contextmanager
def evaluators(scheduler: str, device: torch.device) -> Iterator[int | Machines]:
    """What the evaluations take as `processes`.

    scheduler: `data.scheduler`, empty = this machine. The numbers are the same wherever processors and
    versions are. Raises WorkerError, EvalError.
    """
    if scheduler:
        with cluster(scheduler) as machines:
            yield machines
    else:
        yield processes(device)
