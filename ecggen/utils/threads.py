"""Settings of threads and memory that libraries read when they are loaded."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Set up threads and memory, before NumPy and torch are imported. Values set by the user stand.

    Idle threads do not spin: OpenMP's sleep, OpenBLAS has one. Spinning threads make a training step 10 to
    28 times slower as soon as anything else runs on a small machine; those of OpenBLAS, which NumPy's wheels
    bring, cannot sleep, and on matrices of a few hundred rows two of them take longer than one.

    Worker processes keep freed memory from their start on, as `reuse_freed_arrays` makes this one do.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))  # free bytes that are kept
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))  # bytes of an array that is never kept


def reuse_freed_arrays() -> None:
    """Let this process reuse the memory of freed arrays of up to 32 MB, whatever it was started with.

    The GNU C library returns a freed block to the system if it is larger than the largest one freed before
    (mallopt(3), dynamic mmap threshold). One large block, never touched, raises that limit; filters of
    recordings of 10 s at 500 Hz then take little more than half of the time.
    """
    import numpy as np

    np.empty((32 << 20) - (1 << 16), dtype=np.uint8)
