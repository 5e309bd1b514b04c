"""Intervals by resampling patients: windows and records of one patient are not independent.

Sums per patient are taken once; a draw is then a weighted sum over patients, so that 500 draws cost one
small matrix product. All methods on one split share the draws, so differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecggen.eval.metrics import MEASURES, LeadScores, auroc
from ecggen.eval.result import Array

SUMMARY = (
    *("r", "r_low", "r_high", "rmse_mv", "rmse_low", "rmse_high"),
    *("mae_mv", "mae_low", "mae_high", "snr_db", "snr_low", "snr_high"),
)
#: The model less its best baseline, filled in rows of the model alone.
MARGIN_COLUMNS = ("best_baseline", "margin", "margin_low", "margin_high", "verdict")
ABOVE, BELOW, UNDECIDED, TOO_FEW = "above", "below", "no difference shown", "too few patients"
FEWEST_PATIENTS = 20  # nothing is said of a difference between fewer

DRAWS_AT_ONCE = 4_000_000  # numbers of a table of draws and rows

Drawn = tuple[float, Array]  # a mean, and the means of the draws [R]


def interval(drawn: Array) -> tuple[float, float]:
    """Percentile interval (95 %) of draws [R]; NaN draws are not counted, NaN of nothing."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def difference(first: Drawn, second: Drawn) -> tuple[float, float, float]:
    """(first - second, low, high), draw by draw.

    Of the same patients, drawn alike: the paired bootstrap. Of two groups of patients, drawn with different
    seeds: the two-sample bootstrap (Efron & Tibshirani 1993, chapters 8 and 13).
    """
    return first[0] - second[0], *interval(first[1] - second[1])


def verdict(low: float, high: float, patients: int) -> str:
    """What a 95 % interval of a difference shows: ABOVE, BELOW, UNDECIDED, or TOO_FEW patients to say."""
    if patients < FEWEST_PATIENTS:
        return TOO_FEW
    return ABOVE if low > 0 else BELOW if high < 0 else UNDECIDED


def margin(model: Drawn, baselines: Mapping[str, Drawn], patients: int) -> dict[str, Any]:
    """MARGIN_COLUMNS: the model less the baseline with the highest mean, paired; empty without a baseline.

    All must be of the same rows and draws.
    """
    known = {name: drawn for name, drawn in baselines.items() if np.isfinite(drawn[0])}
    if not known or not np.isfinite(model[0]):
        return {}
    best = max(known, key=lambda name: known[name][0])
    value, low, high = difference(model, known[best])
    row = (best, value, low, high, verdict(low, high, patients))
    return dict(zip(MARGIN_COLUMNS, row, strict=True))


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
        return value, *interval(means)

    def cells(self, names: Sequence[str], values: Array) -> dict[str, float]:
        """`mean` under three names."""
        return dict(zip(names, self.mean(values), strict=True))

    def drawn(self, values: Array) -> Drawn:
        """(mean, means of the draws [R]) of values [n, ...]; NaN entries are not counted, NaN of nothing.

        Where a single patient has values the draws are NaN: nothing varies, so nothing is known.
        """
        values = np.asarray(values, dtype=np.float64).reshape(len(self.code), -1)
        good = np.isfinite(values)
        patients = len(self.names)
        total = np.bincount(self.code, np.where(good, values, 0).sum(axis=1), minlength=patients)
        count = np.bincount(self.code, good.sum(axis=1), minlength=patients)
        if not good.any():
            return float("nan"), np.full(len(self.draws), np.nan)
        mean = float(total.sum() / count.sum())
        if (count > 0).sum() < 2:
            return mean, np.full(len(self.draws), np.nan)
        drawn = self.draws @ count
        return mean, np.where(drawn > 0, (self.draws @ total) / np.where(drawn > 0, drawn, 1), np.nan)

    def summary(self, scores: LeadScores) -> dict[str, float]:
        """The numbers named in SUMMARY: r, rmse_mv, mae_mv and snr_db with intervals."""
        out: dict[str, float] = {}
        for name, values in zip(MEASURES, scores.values, strict=True):
            short = name.partition("_")[0]
            out |= self.cells((name, f"{short}_low", f"{short}_high"), values)
        return out

    def counts(self, scores: LeadScores) -> dict[str, int]:
        """Windows and patients of which at least one lead was scored."""
        return {"n_windows": int(scores.scored.sum()), "n_patients": self.patients_in(scores.scored)}

    def patients_in(self, rows: Array) -> int:
        """Number of patients among the rows of a bool mask [n]."""
        return len(np.unique(self.code[np.asarray(rows, dtype=bool)]))

    def auroc(self, positive: Array, score: Array) -> tuple[Array, Array]:
        """Per class: areas [C] and drawn areas [R, C]; positive and score [n, C]."""
        classes = range(positive.shape[1])
        whole = [auroc(positive[:, c], score[:, c])[0] for c in classes]
        # A few draws at a time: all of them would hold R numbers for every row.
        step = max(1, DRAWS_AT_ONCE // max(1, len(score)))
        drawn = np.full((len(self.draws), len(classes)), np.nan)
        for at in range(0, len(self.draws) if len(self.names) > 1 else 0, step):
            weights = self.weights(slice(at, at + step))
            for c in classes:
                drawn[at : at + step, c] = auroc(positive[:, c], score[:, c], weights)
        return np.array(whole), drawn
