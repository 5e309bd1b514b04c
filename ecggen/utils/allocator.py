"""What becomes of memory: that was freed, and at the end of the process."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import sys

#: Names and values of <malloc.h> of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes free at the top of the heap before they go back to the system
_OWN_PAGES = 32 << 20  # bytes from which an array has pages of its own, which do; the most that is allowed


@functools.cache
def keep_freed_memory(*, whatever_is_set: bool = False) -> bool:
    """Let this process and those that it starts keep freed memory for the next array of its size.

    The GNU C library returns blocks from 128 KiB on to the system, or those beyond the largest that was freed
    so far, and fetches them again page by page. Where arrays of a megabyte come and go, as in filters and in
    rendering batches, that is 15 % of the time and more. What is set already (MALLOC_TRIM_THRESHOLD_,
    MALLOC_MMAP_THRESHOLD_) stands, except with whatever_is_set: Dask's nanny sets a small threshold for its
    workers. Returns whether this call set it: False with another C library.
    """
    names = {_TRIM_THRESHOLD: "MALLOC_TRIM_THRESHOLD_", _MMAP_THRESHOLD: "MALLOC_MMAP_THRESHOLD_"}
    said = not whatever_is_set and any(name in os.environ for name in names.values())
    if said or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        done = [mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_MMAP_THRESHOLD, _OWN_PAGES)]
    except (OSError, AttributeError):
        return False
    os.environ.update({names[_TRIM_THRESHOLD]: str(_KEPT), names[_MMAP_THRESHOLD]: str(_OWN_PAGES)})
    return all(done)


@functools.cache
def end_quickly() -> None:
    """Spare this process, when it ends, the search for cycles among all that it holds: .7 s with torch."""
    atexit.register(gc.freeze)
