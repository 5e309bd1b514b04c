"""Processes that tests look at."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def workers_of(pid: int) -> list[psutil.Process]:
    """Processes that another one has spawned with multiprocessing, in the order of their start."""
    children = sorted(psutil.Process(pid).children(), key=psutil.Process.create_time)
    return [child for child in children if runs(child) and "spawn_main" in str(child.cmdline())]


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
