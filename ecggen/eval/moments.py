"""Second moments of the training windows: what every linear baseline is fitted from.

One pass over the data gives the Gram matrix of all leads at all lags; the normal equations of any lead set
are a block of it. Windows are grouped by which leads were truly recorded, so that a lead that is missing
somewhere neither enters nor spoils the sums.
"""

from __future__ import annotations

import numpy as np

from ecggen.eval.result import Array
from ecggen.leads import LEADS

CHUNK = 128  # windows per step
N_LEADS = len(LEADS)


def lagged(ecg: Array, context: int) -> Array:
    """[n, C, T] -> [n, C * (2k+1), T], lag -k..k of each channel side by side, edges repeated."""
    n, channels, length = ecg.shape
    if not context:
        return ecg
    padded = np.pad(ecg, ((0, 0), (0, 0), (context, context)), mode="edge")
    view = np.lib.stride_tricks.sliding_window_view(padded, length, axis=2)
    return view.reshape(n, channels * (2 * context + 1), length)


class Moments:
    """Uncentred second moments in mV^2 (the windows are high-passed: no intercept is needed)."""

    def __init__(self, context: int) -> None:
        self.context = context
        self.lags = 2 * context + 1
        self._patterns: dict[bytes, tuple[Array, Array]] = {}

    def add(self, ecg: Array, observed: Array) -> None:
        """ecg [n, 12, T] mV, observed [n, 12] bool."""
        observed = np.asarray(observed, dtype=bool)
        for pattern in np.unique(observed, axis=0):
            rows = np.flatnonzero((observed == pattern).all(axis=1))
            size = N_LEADS * self.lags
            _, gram = self._patterns.setdefault(pattern.tobytes(), (pattern, np.zeros((size, size))))
            for at in range(0, len(rows), CHUNK):
                block = np.asarray(ecg[rows[at : at + CHUNK]], dtype=np.float64) * pattern[:, None]
                flat = np.ascontiguousarray(lagged(block, self.context).transpose(1, 0, 2)).reshape(size, -1)
                gram += flat @ flat.T

    def gram(self, needed: Array) -> Array:
        """[12 * lags, 12 * lags], summed over windows in which all leads of `needed` [12] were recorded."""
        total = np.zeros((N_LEADS * self.lags, N_LEADS * self.lags))
        for pattern, gram in self._patterns.values():
            if pattern[needed].all():
                total += gram
        return total

    def centre(self, leads: Array) -> Array:
        """Positions of lag 0 of the given lead numbers."""
        return np.asarray(leads) * self.lags + self.context

    def columns(self, leads: Array, context: int) -> Array:
        """Positions of lags -context..context of the given lead numbers, lead by lead."""
        assert context <= self.context, f"moments hold {self.context} samples of context, not {context}"
        offsets = np.arange(-context, context + 1)
        return (self.centre(leads)[:, None] + offsets).reshape(-1)


def ridge_solve(gram: Array, cross: Array, ridge: float) -> Array:
    """Weights [..., F, targets] of (gram + ridge * mean diagonal) w = cross; zero where nothing was seen.

    The tiny ridge makes redundant limb leads harmless; it is relative, so amplitude does not matter.
    """
    size = gram.shape[-1]
    level = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    return np.linalg.solve(gram + np.maximum(ridge * level, 1e-12) * np.eye(size), cross)
