"""File locks that the operating system drops when their owner ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Files that this process holds. A POSIX lock is the process's own: it could take it a second time, and
#: closing the second handle would drop the first.
_OWN: dict[Path, int] = {}


def take(path: Path, text: str = "") -> bool:
    """Take the lock on a file (made where it is missing); False where another process, or this one, has it.

    text: what others then read in the file. The lock is the process's: children that it forks do not hold
    it, so that a worker that outlives a killed stage does not make the stage look alive; opening and closing
    the file anew in this process would drop it. Raises OSError where it cannot be opened for writing.
    """
    path = path.absolute()
    if path in _OWN:
        return False
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        _lock(handle)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    _OWN[path] = handle
    if text:
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())
    return True


def drop(path: Path) -> None:
    """Give a lock back; nothing happens where this process does not hold it."""
    handle = _OWN.pop(path.absolute(), None)
    if handle is not None:
        os.close(handle)


def moved(old: Path, new: Path) -> None:
    """A folder was renamed: the locks on files inside it are known by their new names from now on."""
    old, new = old.absolute(), new.absolute()
    for path in [path for path in _OWN if path.is_relative_to(old)]:
        _OWN[new / path.relative_to(old)] = _OWN.pop(path)


def held(path: Path) -> bool:
    """Whether any process holds the lock; False where there is no such file."""
    if path.absolute() in _OWN:
        return True
    try:
        taken = not path.exists() or take(path)
    except FileNotFoundError:  # its folder went away meanwhile
        return False
    drop(path)
    return not taken


@contextmanager
def lock(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold the lock, waiting for it. Raises TimeoutError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    while not take(path):
        if time.monotonic() > until:
            raise TimeoutError(f"{path} was held by another process for {seconds:g} s.")
        time.sleep(0.02)
    try:
        yield
    finally:
        drop(path)


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
