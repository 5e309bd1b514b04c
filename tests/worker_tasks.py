"""Functions that tests have computed by other processes, which import this file alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def doubled(task: tuple[int, ...]) -> list[int]:
    """Twice each number; -1 ends the process that meets it, -2 the first one that does."""
    for number in task:
        if number == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -2 and not Path("met").exists():
            Path("met").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [2 * number for number in task]


def product(first: int, second: int, item: int) -> int:
    return first * second * item


def size(first: int, large: bytes, item: int) -> int:
    return len(large) * item


def environment(_: int = 0) -> list[str]:
    return [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]


def cut(task: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(number,) for number in task]
