"""Errors that a user can cause and mend, and errors of the system in the same words."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


class EcggenError(ValueError):
    """Input that cannot be used; the message says what, its value, what is allowed and what to do."""


def in_words(error: BaseException) -> str | None:
    """One sentence for an EcggenError and for what goes wrong outside the program: disk, permissions, memory.

    None for anything else: that is a defect, and its traceback is what helps.
    """
    if isinstance(error, EcggenError):
        return str(error)
    # PyTorch raises a RuntimeError for memory: a subclass for accelerators, known by its text on the CPU.
    of_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )
    if isinstance(error, MemoryError) or of_torch:
        detail = "".join(str(error).strip().splitlines()[:1])[:200]
        return (
            f"Not enough memory{f' ({detail})' if detail else ''}: close other programs, or make the work "
            "smaller (batch_size, workers), then run dvc repro again."
        )
    if type(error).__module__ == "sqlite3" and "disk is full" in str(error):  # large tables are sorted there
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return disk_words(error) if isinstance(error, OSError) else None


def disk_words(error: OSError, where: str | Path = "", size: int = 0) -> str:
    """One sentence for a disk or file system that does not do what it should.

    where: what was read or written, by default what the error names; size: bytes to be written, 0 = unknown.
    """
    named = where or error.filename2 or error.filename
    where = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else ""
    reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = _free_bytes(where)
        room = [f"{_size_text(size)} are needed"] * bool(size)
        room += [] if free is None else [f"{_size_text(free)} are free there"]
        space = f" ({', '.join(room)})" if room else ""
        return (
            f"{where or 'The disk'}: no space left on device{space}: make room or choose another disk, and "
            "run the same command again; what was there before is whole."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{where or 'A file'}: larger than this system or user may write (ulimit -f): raise that limit."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where or 'A file'}: {reason}: give this user the right to read and write there, then run dvc "
            "repro again."
        )
    return f"{f'{where}: ' if where else ''}{reason}."


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _free_bytes(where: str) -> int | None:
    """Free space on the disk of a path, which need not exist yet; None where that is unknown."""
    path = Path(where or ".").absolute()
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
