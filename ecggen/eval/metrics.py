"""Agreement between recorded and rendered leads, and ranking quality of scores.

Conventions. Every number is computed per window and lead over its samples, in mV, and averaged afterwards:
r is Pearson's correlation; SNR is 10 log10(sum x^2 / sum (x - y)^2) in dB, averaged in dB, at most 120;
MAE is the mean of |x - y|; RMSE is the root of the mean of (x - y)^2, so a mean RMSE is not the root of a
mean over windows, which would be larger. A recorded lead that is constant in the window has no r and no SNR:
it is skipped there and counted. A *rendered* lead that is constant scores r = 0, because a method must not
gain by leaving a lead flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecggen.eval.result import Array, EvalError

CONSTANT_MV = 1e-5  # standard deviation below which a signal is constant
MAX_SNR_DB = 120.0
MEASURES = ("r", "rmse_mv", "mae_mv", "snr_db")


@dataclass(frozen=True)
class LeadScores:
    """Scores per window and lead: values [n, L, 4] in the order of MEASURES; NaN = not scored."""

    values: Array

    @property
    def r(self) -> Array:
        """[n, L]."""
        return np.asarray(self.values[..., 0])

    @property
    def rmse(self) -> Array:
        """[n, L] mV."""
        return np.asarray(self.values[..., 1])

    @property
    def scored(self) -> Array:
        """[n] bool, windows of which at least one lead was scored."""
        return np.asarray(np.isfinite(self.rmse).any(axis=1))

    @property
    def constant(self) -> Array:
        """[n, L] bool, a scored lead that is constant in the window."""
        return np.asarray(np.isfinite(self.rmse) & np.isnan(self.r))

    def select(self, leads: Array) -> LeadScores:
        """The same scores with only the leads of `leads` [L] or [n, L] bool kept."""
        return LeadScores(np.where(np.asarray(leads, dtype=bool)[..., None], self.values, np.nan))

    def lead(self, index: int) -> LeadScores:
        """[n, 1], the scores of one lead."""
        return LeadScores(self.values[:, [index]])

    def means(self) -> dict[str, float]:
        """Each of MEASURES over everything that was scored; NaN where nothing was."""
        return {name: nanmean(self.values[..., i]) for i, name in enumerate(MEASURES)}


def nanmean(values: Array) -> float:
    """Mean of what is not NaN; NaN, without a warning, of nothing."""
    good = np.asarray(values)[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def row_means(values: Array) -> Array:
    """[n], `nanmean` of each row of values [n, ...]."""
    return np.array([nanmean(row) for row in values])


def nanmedian(values: Array) -> float:
    """Median of what is not NaN; NaN, without a warning, of nothing."""
    good = np.asarray(values)[np.isfinite(values)]
    return float(np.median(good)) if good.size else float("nan")


def score_leads(truth: Array, rendered: Array, scored: Array, start: Array | None = None) -> LeadScores:
    """Scores [n, L] of truth, rendered [n, L, T] mV.

    scored [L] or [n, L] bool; start [n]: first sample that counts (0). Raises EvalError where a rendered lead
    that is to be scored is not finite: it must not count as a lead that was not scored.
    """
    n, leads, length = truth.shape
    assert rendered.shape == truth.shape, f"{rendered.shape} against {truth.shape}"
    scored = np.broadcast_to(np.asarray(scored, dtype=bool), (n, leads))
    values = np.full((n, leads, len(MEASURES)), np.nan)
    first = np.zeros(n, dtype=np.int64) if start is None else np.asarray(start, dtype=np.int64)
    weight = (np.arange(length) >= first[:, None]).astype(np.float64) if first.any() else None
    for lead in np.flatnonzero(scored.any(axis=0)):
        rows = np.flatnonzero(scored[:, lead] & (first < length))
        row_weight = None if weight is None else weight[rows]
        values[rows, lead] = _score_pairs(truth[rows, lead], rendered[rows, lead], row_weight)
    return LeadScores(values)


def _score_pairs(x: Array, y: Array, weight: Array | None) -> Array:
    """x, y, weight [m, T] (None = all samples count) -> values [m, 4]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    if not np.isfinite(y).all():
        raise EvalError(
            f"{int((~np.isfinite(y).all(axis=1)).sum())} of {len(y)} rendered leads hold NaN or infinity: "
            "nothing can be scored; look for it in the windows, or train again."
        )
    count = np.full(len(x), float(x.shape[1])) if weight is None else weight.sum(axis=1)

    def weighted(values: Array) -> Array:
        return values if weight is None else values * weight

    def mean(values: Array) -> Array:
        return np.asarray(values.sum(axis=1) / count)

    error = weighted(x - y)
    mse = mean(error**2)
    x0, y0 = (weighted(z - mean(weighted(z))[:, None]) for z in (x, y))
    sd_x, sd_y = (np.sqrt(mean(z**2)) for z in (x0, y0))
    constant = sd_x < CONSTANT_MV
    both = ~constant & (sd_y >= CONSTANT_MV)
    r = np.zeros(len(x))
    r[both] = (x0 * y0).sum(axis=1)[both] / (count * sd_x * sd_y)[both]
    ratio = np.maximum(mean(weighted(x) ** 2), 1e-30) / np.maximum(mse, 1e-30)
    snr = np.minimum(10 * np.log10(ratio), MAX_SNR_DB)
    r, snr = (np.where(constant, np.nan, values) for values in (r, snr))
    return np.stack([r, np.sqrt(mse), mean(np.abs(error)), snr], axis=1)


def energy(ecg: Array, scored: Array) -> Array:
    """[n], sum of squares of ecg [n, L, T] over the leads scored [n, L] (mV^2)."""
    return np.asarray(((scored[:, :, None] * ecg.astype(np.float64)) ** 2).sum(axis=(1, 2)))


def energy_share(truth: Array, rendered: Array, scored: Array) -> Array:
    """[n], 1 - |x - y|^2 / |x|^2 over the leads scored [n, L]; NaN for a window without energy."""
    whole = energy(truth, scored)
    good = whole > 1e-12
    error = energy(truth.astype(np.float64) - rendered, scored)
    return np.where(good, 1 - error / np.where(good, whole, 1), np.nan)


def auroc(positive: Array, score: Array, weight: Array | None = None) -> Array:
    """Area under the ROC curve: chance that a positive scores above a negative, ties counting one half.

    positive [n] bool, score [n], weight [R, n] or None. Returns [R] (or [1]); NaN where a class is absent.
    """
    order = np.argsort(score, kind="stable")
    score, positive = np.asarray(score)[order], np.asarray(positive, dtype=bool)[order]
    weights = np.ones((1, len(order))) if weight is None else np.asarray(weight, dtype=np.float64)[:, order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    up = np.add.reduceat(weights * positive, starts, axis=1)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    area = (up * (below + 0.5 * down)).sum(axis=1)
    pairs = up.sum(axis=1) * down.sum(axis=1)
    return np.where(pairs > 0, area / np.where(pairs > 0, pairs, 1), np.nan)
