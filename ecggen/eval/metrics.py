"""Agreement between recorded and rendered leads, and ranking quality of scores.

Conventions. Every number is computed per window and lead over its samples, in mV, and averaged afterwards:
r is Pearson's correlation; SNR is 10 log10(sum x^2 / sum (x - y)^2) in dB, averaged in dB, at most 120;
MAE is the mean of |x - y|; RMSE is the root of the mean of (x - y)^2, so a mean RMSE is not the root of a
mean over windows, which would be larger. A recorded lead that is constant in the window has no r and no SNR:
it is skipped there and counted. A *rendered* lead that is constant scores r = 0, because a method must not
gain by leaving a lead flat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ecggen.eval.result import Array

CONSTANT_MV = 1e-5  # standard deviation below which a signal is constant
MAX_SNR_DB = 120.0


@dataclass(frozen=True)
class LeadScores:
    """Per window and lead, [n, 12] each; NaN = not scored."""

    r: Array
    rmse: Array  # mV
    mae: Array  # mV
    snr: Array  # dB
    constant: Array  # bool, a scored lead that is constant in the window

    def select(self, leads: Array) -> LeadScores:
        """The same with only the leads of `leads` [12] or [n, 12] bool kept."""
        keep = np.broadcast_to(np.asarray(leads, dtype=bool), self.r.shape)
        r, rmse, mae, snr = (np.where(keep, x, np.nan) for x in (self.r, self.rmse, self.mae, self.snr))
        return LeadScores(r, rmse, mae, snr, self.constant & keep)

    def spread(self, rows: Array, count: int) -> LeadScores:
        """The same as rows [n] of [count, 12] scores; NaN elsewhere."""
        return LeadScores.joined([(rows, self)], count)

    @staticmethod
    def joined(parts: Iterable[tuple[Array, LeadScores]], count: int) -> LeadScores:
        """[count, L] scores (L = 12) from parts, each at its rows; NaN elsewhere."""
        whole: LeadScores | None = None
        for rows, part in parts:
            if whole is None:
                whole = LeadScores.nothing(count, part.r.shape[1])
            whole.put(rows, part)
        return LeadScores.nothing(count) if whole is None else whole

    @staticmethod
    def nothing(count: int, leads: int = 12) -> LeadScores:
        """[count, leads], nothing scored yet."""
        r, rmse, mae, snr = (np.full((count, leads), np.nan) for _ in range(4))
        return LeadScores(r, rmse, mae, snr, np.zeros((count, leads), dtype=bool))

    def put(self, rows: Array, part: LeadScores) -> None:
        """Write the scores of other windows into these rows."""
        for name in ("r", "rmse", "mae", "snr", "constant"):
            getattr(self, name)[rows] = getattr(part, name)

    def means(self) -> dict[str, float]:
        """r, rmse_mv, mae_mv, snr_db over everything that was scored; NaN where nothing was."""
        return {
            "r": nanmean(self.r),
            "rmse_mv": nanmean(self.rmse),
            "mae_mv": nanmean(self.mae),
            "snr_db": nanmean(self.snr),
        }


def nanmean(values: Array) -> float:
    """Mean of what is not NaN; NaN, without a warning, of nothing."""
    good = np.asarray(values)[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def nanmedian(values: Array) -> float:
    """Median of what is not NaN; NaN, without a warning, of nothing."""
    good = np.asarray(values)[np.isfinite(values)]
    return float(np.median(good)) if good.size else float("nan")


def score_leads(truth: Array, rendered: Array, scored: Array, start: Array | None = None) -> LeadScores:
    """truth, rendered [n, L, T] mV; scored [L] or [n, L] bool; start [n]: first sample that counts (0)."""
    n, leads, length = truth.shape
    assert rendered.shape == truth.shape, f"{rendered.shape} against {truth.shape}"
    scored = np.broadcast_to(np.asarray(scored, dtype=bool), (n, leads))
    out = {name: np.full((n, leads), np.nan) for name in ("r", "rmse", "mae", "snr")}
    constant = np.zeros((n, leads), dtype=bool)
    first = np.zeros(n, dtype=np.int64) if start is None else np.asarray(start, dtype=np.int64)
    weight = (np.arange(length) >= first[:, None]).astype(np.float64) if first.any() else None
    for lead in np.flatnonzero(scored.any(axis=0)):
        rows = np.flatnonzero(scored[:, lead] & (first < length))
        own = None if weight is None else weight[rows]
        values, flat = _score_pairs(truth[rows, lead], rendered[rows, lead], own)
        constant[rows, lead] = flat
        for name, value in values.items():
            out[name][rows, lead] = value
    return LeadScores(out["r"], out["rmse"], out["mae"], out["snr"], constant)


def _score_pairs(x: Array, y: Array, weight: Array | None) -> tuple[dict[str, Array], Array]:
    """x, y, weight [m, T] (None = all samples count) -> per-row numbers [m] and where x is constant [m]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    count = np.full(len(x), float(x.shape[1])) if weight is None else weight.sum(axis=1)

    def counted(values: Array) -> Array:
        return values if weight is None else values * weight

    def mean(values: Array) -> Array:
        return np.asarray(values.sum(axis=1) / count)

    error = counted(x - y)
    mse = mean(error**2)
    x0, y0 = (counted(z - mean(counted(z))[:, None]) for z in (x, y))
    sd_x, sd_y = (np.sqrt(mean(z**2)) for z in (x0, y0))
    flat = sd_x < CONSTANT_MV
    both = ~flat & (sd_y >= CONSTANT_MV)
    r = np.zeros(len(x))
    r[both] = (x0 * y0).sum(axis=1)[both] / (count * sd_x * sd_y)[both]
    ratio = np.maximum(mean(counted(x) ** 2), 1e-30) / np.maximum(mse, 1e-30)
    snr = np.minimum(10 * np.log10(ratio), MAX_SNR_DB)
    return {
        "r": np.where(flat, np.nan, r),
        "rmse": np.sqrt(mse),
        "mae": mean(np.abs(error)),
        "snr": np.where(flat, np.nan, snr),
    }, flat


def energy_share(truth: Array, rendered: Array, scored: Array) -> Array:
    """[n], 1 - |x - y|^2 / |x|^2 over the leads scored [n, L]; NaN for a window without energy."""
    weight = np.asarray(scored, dtype=np.float64)[:, :, None]
    energy = (weight * truth.astype(np.float64) ** 2).sum(axis=(1, 2))
    error = (weight * (truth.astype(np.float64) - rendered) ** 2).sum(axis=(1, 2))
    good = energy > 1e-12
    return np.where(good, 1 - error / np.where(good, energy, 1), np.nan)


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
