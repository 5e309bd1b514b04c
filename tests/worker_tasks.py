"""Functions that tests have computed by other processes, which import this file alone."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ecggen.prepare.window.writer import Block


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


def environment(_: int = 0) -> list[str]:
    return [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]


def cut(task: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(number,) for number in task]


def write_block_and_end(block: Block) -> NDArray[np.float64]:
    """Write its windows, then end this process."""
    from ecggen.prepare.window.writer import write_block

    write_block(block)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("never reached")


def write_block_and_end_once(block: Block) -> NDArray[np.float64]:
    """The first time that anybody does the third task, its process ends with half of its windows written."""
    from dataclasses import replace

    from ecggen.prepare.window.writer import write_block

    if block.first == 2 * len(block.starts) and not Path("met").exists():
        Path("met").touch()
        half = len(block.starts) // 2
        write_block_and_end(replace(block, starts=block.starts[:half], observed=block.observed[:half]))
    return write_block(block)


def write_block_on_a_full_disk(block: Block) -> NDArray[np.float64]:
    if block.first:
        raise OSError(errno.ENOSPC, "No space left on device")
    from ecggen.prepare.window.writer import write_block

    return write_block(block)
