"""Errors that a user can cause and mend, and other people's errors in the same words."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


class EcggenError(ValueError):
    """Input that cannot be used; the message says what, its value, what is allowed and what to do."""


def in_words(error: BaseException) -> str | None:
    """One sentence for what goes wrong outside the program: disk, permissions, memory; an EcggenError's own.

    None for anything else: that is a defect, and its traceback is what helps.
    """
    if isinstance(error, EcggenError):
        return str(error)
    if isinstance(error, MemoryError) or _is_memory(error):
        detail = "".join(str(error).strip().splitlines()[:1])[:200]
        return (
            f"Not enough memory{f' ({detail})' if detail else ''}: close other programs, or make the work "
            "smaller (batch_size, workers), then run dvc repro again."
        )
    if type(error).__module__ == "sqlite3" and "disk is full" in str(error):  # a download's own book-keeping
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return disk_words(error) if isinstance(error, OSError) else None


def _is_memory(error: BaseException) -> bool:
    """PyTorch says it by a RuntimeError of its own: a subclass for accelerators, by its text on the CPU."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def disk_words(error: OSError, where: str | Path = "", size: int = 0) -> str:
    """One sentence for a disk or file system that does not do what it should.

    where: what was read or written, by default what the error names; size: bytes that are to be written, 0 =
    not known.
    """
    named = where or error.filename2 or error.filename
    where = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else ""
    free = _free(where)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        room = [f"{_shown(size)} are needed"] * bool(size)
        room += [] if free is None else [f"{_shown(free)} are free there"]
        shown = f" ({', '.join(room)})" if room else ""
        return (
            f"{where or 'The disk'}: no space left on device{shown}: make "
            "room or choose another disk, and run the same command again; what was there before is whole."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{where or 'A file'}: larger than this system or user may write (ulimit -f): raise that limit."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where or 'A file'}: {_strerror(error)}: give this user the right to read and write there, "
            "then run dvc repro again."
        )
    return f"{f'{where}: ' if where else ''}{_strerror(error)}."


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _strerror(error: OSError) -> str:
    words = error.strerror or str(error) or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def _free(where: str) -> int | None:
    """Bytes free on the disk of a path, the path itself perhaps not made yet; None where that is unknown."""
    path = Path(where or ".").absolute()
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
