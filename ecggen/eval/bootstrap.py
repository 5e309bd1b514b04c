"""Intervals by resampling patients: windows and records of one patient are not independent.

Sums per patient are taken once; a draw is then a weighted sum over patients, so that 500 draws cost one
small matrix product. All methods on one split share the draws, so differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecggen.eval.metrics import MEASURES, LeadScores, auroc
from ecggen.eval.result import Array
from ecggen.eval.verdict import verdict

SUMMARY = tuple(
    f"{name}{end}"
    for measure in MEASURES
    for name, end in (
        (measure, ""),
        (measure.partition("_")[0], "_low"),
        (measure.partition("_")[0], "_high"),
    )
)
#: The model less its best baseline, filled in rows of the model alone.
MARGIN_COLUMNS = ("best_baseline", "margin", "margin_low", "margin_high", "verdict")

DRAWS_AT_ONCE = 4_000_000  # numbers of a table of draws and rows


class Estimate(NamedTuple):
    """A mean, and the means of the draws [R]."""

    value: float
    draws: Array

    @property
    def interval(self) -> tuple[float, float]:
        """Percentile interval (95 %); NaN draws are not counted, NaN of nothing."""
        good = self.draws[np.isfinite(self.draws)]
        low, high = np.percentile(good, [2.5, 97.5]) if len(good) else (np.nan, np.nan)
        return float(low), float(high)

    def __sub__(self, other: Estimate) -> Estimate:
        """Draw by draw. Of the same patients, drawn alike: the paired bootstrap. Of two groups of patients,
        drawn with different seeds: the two-sample bootstrap (Efron & Tibshirani 1993, chapters 8 and 13)."""
        return Estimate(self.value - other.value, self.draws - other.draws)

    def cells(self, *names: str) -> dict[str, float]:
        """Value, low and high under three names."""
        return dict(zip(names, (self.value, *self.interval), strict=True))


def margin(model: Estimate, baselines: Mapping[str, Estimate], patients: int) -> dict[str, Any]:
    """MARGIN_COLUMNS: the model less the baseline with the highest mean, paired; empty without a baseline.

    All must be of the same rows and draws. The verdict is what the 95 % interval shows.
    """
    known = {name: estimate for name, estimate in baselines.items() if np.isfinite(estimate.value)}
    if not known or not np.isfinite(model.value):
        return {}
    best = max(known, key=lambda name: known[name].value)
    difference = model - known[best]
    words = verdict(*difference.interval, patients)
    return {"best_baseline": best, **difference.cells(*MARGIN_COLUMNS[1:4]), "verdict": words}


class PatientBootstrap:
    """Percentile intervals (95 %) over patients drawn with replacement, by a seeded generator."""

    def __init__(self, patients: Sequence[str], draws: int = 500, seed: int = 0) -> None:
        self.names, self.code = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        count = len(self.names)
        rng = np.random.default_rng(seed)
        shares = np.full(count, 1 / max(1, count))
        chosen = rng.multinomial(count, shares, size=draws) if count else np.zeros((draws, 0))
        self.draws: Array = chosen.astype(np.float64)  # [R, patients], how often each patient was drawn

    def weights(self, draws: slice = slice(None)) -> Array:
        """[R, n], how often each row was drawn; draws: some of the R."""
        return self.draws[draws][:, self.code]

    def mean(self, values: Array) -> tuple[float, float, float]:
        """(mean, low, high) of values [n, ...]; NaN entries are not counted."""
        estimate = self.estimate(values)
        return estimate.value, *estimate.interval

    def estimate(self, values: Array) -> Estimate:
        """The mean of values [n, ...]; NaN entries are not counted, NaN of nothing.

        Where a single patient has values the draws are NaN: nothing varies, so nothing is known.
        """
        values = np.asarray(values, dtype=np.float64).reshape(len(self.code), -1)
        good = np.isfinite(values)
        patients = len(self.names)
        total = np.bincount(self.code, np.where(good, values, 0).sum(axis=1), minlength=patients)
        count = np.bincount(self.code, good.sum(axis=1), minlength=patients)
        if not good.any():
            return Estimate(float("nan"), np.full(len(self.draws), np.nan))
        mean = float(total.sum() / count.sum())
        if (count > 0).sum() < 2:
            return Estimate(mean, np.full(len(self.draws), np.nan))
        weight = self.draws @ count
        draws = np.where(weight > 0, (self.draws @ total) / np.where(weight > 0, weight, 1), np.nan)
        return Estimate(mean, draws)

    def summary(self, scores: LeadScores) -> dict[str, float]:
        """The numbers named in SUMMARY: r, rmse_mv, mae_mv and snr_db with intervals."""
        out: dict[str, float] = {}
        for i in range(len(MEASURES)):
            out |= self.estimate(scores.values[..., i]).cells(*SUMMARY[3 * i : 3 * i + 3])
        return out

    def counts(self, scores: LeadScores) -> dict[str, int]:
        """Windows and patients of which at least one lead was scored, and constant leads among these."""
        windows, patients = int(scores.scored.sum()), self.patients_in(scores.scored)
        return {"n_windows": windows, "n_patients": patients, "n_constant": int(scores.constant.sum())}

    def patients_in(self, rows: Array) -> int:
        """Number of patients among the rows of a bool mask [n]."""
        return len(np.unique(self.code[np.asarray(rows, dtype=bool)]))

    def auroc(self, positive: Array, score: Array) -> list[Estimate]:
        """The area of each class; positive and score [n, C]."""
        # A few draws at a time: all of them would hold R numbers for every row.
        step = max(1, DRAWS_AT_ONCE // max(1, len(score)))
        out = []
        for of_class, score_of_class in zip(positive.T, score.T, strict=True):
            draws = np.full(len(self.draws), np.nan)
            for at in range(0, len(draws) if len(self.names) > 1 else 0, step):
                some = slice(at, at + step)
                draws[some] = auroc(of_class, score_of_class, self.weights(some))
            out.append(Estimate(float(auroc(of_class, score_of_class)[0]), draws))
        return out
