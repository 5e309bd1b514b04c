"""How idle compute threads wait."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin; a value set by the user stands.

    Spinning threads make a training step 10 to 28 times slower as soon as anything else runs on a small
    machine. The OpenMP library reads the variable when it is loaded, so call this before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
