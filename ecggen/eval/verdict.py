"""What a 95 % interval of a difference shows, in words."""

from __future__ import annotations

ABOVE, BELOW, UNDECIDED, TOO_FEW = "above", "below", "no difference shown", "too few patients"
FEWEST_PATIENTS = 20  # nothing is said of a difference between fewer


def verdict(low: float, high: float, patients: float) -> str:
    """low, high: the interval; patients: how many it was drawn over."""
    if patients < FEWEST_PATIENTS:
        return TOO_FEW
    return ABOVE if low > 0 else BELOW if high < 0 else UNDECIDED
