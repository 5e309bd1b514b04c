"""How idle compute threads wait."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Idle compute threads do not spin: OpenMP's sleep, OpenBLAS has one. Values set by the user stand.

    Spinning threads make a training step 10 to 28 times slower as soon as anything else runs on a small
    machine. Those of OpenBLAS, which NumPy's wheels bring, cannot be told to sleep; on matrices of a few
    hundred rows, as here, two of them take several times as long as one even where nothing else runs. The
    libraries read the variables when they are loaded, so call this before NumPy and torch are imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
