"""Processes of this machine that compute beside this one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def started_executor(
    count: int, begin: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """An executor of `count` processes, all of which have been started; each first calls begin(*arguments).

    They start anew, not as copies: this process may have threads. An executor starts one when a task is
    handed in, in whatever environment there is then; and one that starts while another is being lost is not
    told to end, and would be waited for without end. They end with this process, however it ends.
    """
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (begin, arguments))
    with _starting():
        for _ in range(count):
            executor.submit(_nothing)
    return executor


def _nothing() -> None:
    """A first task."""


@contextmanager
def _starting() -> Iterator[None]:
    """What processes that start meanwhile find: one thread for each, and no main module.

    They would import it again, and with it whatever a script does that nothing guards.
    """
    main = sys.modules["__main__"]
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# In a process of the executor.


def _begin(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    """The executor itself leaves its processes waiting for tasks where its own process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that was started has one"
    connection.wait([parent.sentinel])
    os._exit(1)
