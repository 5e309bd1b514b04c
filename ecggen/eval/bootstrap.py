"""Intervals by resampling patients: windows and records of one patient are not independent.

Sums per patient are taken once; a draw is then a weighted sum over patients, so that 500 draws cost one
small matrix product. All methods on one split share the draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecggen.eval.metrics import LeadScores, auroc
from ecggen.eval.result import Array

SUMMARY = (
    *("r", "r_low", "r_high", "rmse_mv", "rmse_low", "rmse_high"),
    *("mae_mv", "mae_low", "mae_high", "snr_db", "snr_low", "snr_high"),
)

AT_ONCE = 4_000_000  # numbers of a table of draws and rows


def difference(first: tuple[float, Array], second: tuple[float, Array]) -> tuple[float, float, float]:
    """(first - second, low, high) of two independent groups of patients, each (mean, drawn means [R]).

    The percentile interval (95 %) of the two-sample bootstrap: each group is drawn on its own, and the
    difference of their means is taken draw by draw (Efron & Tibshirani 1993, chapters 8 and 13). The two must
    have been drawn with different seeds. Of a group whose draws are all NaN there is no interval.
    """
    apart = first[1] - second[1]
    apart = apart[np.isfinite(apart)]
    if not len(apart):
        return first[0] - second[0], float("nan"), float("nan")
    low, high = np.percentile(apart, [2.5, 97.5])
    return first[0] - second[0], float(low), float(high)


class PatientBootstrap:
    """Percentile intervals (95 %) over patients drawn with replacement, by a seeded generator."""

    def __init__(self, patients: Sequence[str], draws: int = 500, seed: int = 0) -> None:
        self.names, self.code = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        count = len(self.names)
        rng = np.random.default_rng(seed)
        chosen = (
            rng.multinomial(count, np.full(count, 1 / count), size=draws) if count else np.zeros((draws, 0))
        )
        self.draws: Array = chosen.astype(np.float64)  # [R, patients], how often each patient was drawn

    def weights(self, draws: slice = slice(None)) -> Array:
        """[R, n], how often each row was drawn; draws: some of the R."""
        return self.draws[draws][:, self.code]

    def mean(self, values: Array) -> tuple[float, float, float]:
        """(mean, low, high) of values [n, ...]; NaN entries are not counted."""
        value, means = self.drawn(values)
        if not np.isfinite(value):
            return (float("nan"),) * 3
        low, high = np.percentile(means[np.isfinite(means)], [2.5, 97.5])
        return value, float(low), float(high)

    def sampled(self, values: Array) -> tuple[float, Array]:
        """`drawn`, but NaN draws where only one patient has values: nothing varies, so nothing is known."""
        value, means = self.drawn(values)
        finite = np.isfinite(np.asarray(values, dtype=np.float64)).reshape(len(self.code), -1)
        scored: Array = np.asarray(finite.any(axis=1))
        return value, means if self.patients_in(scored) > 1 else np.full(len(means), np.nan)

    def drawn(self, values: Array) -> tuple[float, Array]:
        """(mean, means of the draws [R]) of values [n, ...]; NaN entries are not counted, NaN of nothing."""
        values = np.asarray(values, dtype=np.float64).reshape(len(self.code), -1)
        good = np.isfinite(values)
        patients = len(self.names)
        total = np.bincount(self.code, np.where(good, values, 0).sum(axis=1), minlength=patients)
        count = np.bincount(self.code, good.sum(axis=1), minlength=patients)
        if not good.any():
            return float("nan"), np.full(len(self.draws), np.nan)
        drawn = self.draws @ count
        means = np.where(drawn > 0, (self.draws @ total) / np.where(drawn > 0, drawn, 1), np.nan)
        return float(total.sum() / count.sum()), means

    def summary(self, scores: LeadScores) -> dict[str, float]:
        """The numbers named in SUMMARY: r, rmse_mv, mae_mv and snr_db with intervals."""
        values = {
            ("r", "r"): self.mean(scores.r),
            ("rmse_mv", "rmse"): self.mean(scores.rmse),
            ("mae_mv", "mae"): self.mean(scores.mae),
            ("snr_db", "snr"): self.mean(scores.snr),
        }
        out: dict[str, float] = {}
        for (name, short), (value, low, high) in values.items():
            out |= {name: value, f"{short}_low": low, f"{short}_high": high}
        return out

    def patients_in(self, rows: Array) -> int:
        """Number of patients among the rows of a bool mask [n]."""
        return len(np.unique(self.code[np.asarray(rows, dtype=bool)]))

    def auroc(self, positive: Array, score: Array) -> tuple[Array, Array]:
        """Per class: areas [C] and drawn areas [R, C]; positive and score [n, C]."""
        classes = range(positive.shape[1])
        whole = [auroc(positive[:, c], score[:, c])[0] for c in classes]
        # A few draws at a time: all of them would hold R numbers for every row.
        step = max(1, AT_ONCE // max(1, len(score)))
        drawn = np.empty((len(self.draws), len(classes)))
        for at in range(0, len(self.draws), step):
            weights = self.weights(slice(at, at + step))
            for c in classes:
                drawn[at : at + step, c] = auroc(positive[:, c], score[:, c], weights)
        return np.array(whole), drawn
