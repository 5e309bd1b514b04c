"""What home patients with the same diagnoses reach: a database of other cases is harder or easier by itself.

Direct standardisation. Windows of the other database fall into strata by the labels of their record that
home's test split knows by name. What is expected of a stratum is the mean over home's test windows whose
records have these labels, or more; strata are weighted as they occur in the other database. A stratum that
fewer than FEWEST home patients stand for, and windows without a known label, are left out on both sides.
"""

from __future__ import annotations

import numpy as np

from ecggen.eval.bootstrap import Estimate, PatientBootstrap
from ecggen.eval.probe_features import record_labels
from ecggen.eval.result import Array, WindowFolder
from ecggen.eval.score import Split

FEWEST = 5
MATCHED_COLUMNS = ("matched_r", "matched_difference", "matched_low", "matched_high", "n_matched")


Strata = list[tuple[Array, Array]]  # windows of home's and of the other test split, [n] bool each


def strata(home: WindowFolder, home_data: Split, there: WindowFolder, there_data: Split) -> Strata:
    """The strata that both databases have."""
    home_labels, there_labels = _labels(home, home_data), _labels(there, there_data)
    known = frozenset().union(*home_labels)
    shared = [labels & known for labels in there_labels]
    out = []
    for labels in sorted(set(shared) - {frozenset()}, key=sorted):
        at_home = np.array([labels <= each for each in home_labels])
        if home_data.draws.patients_in(at_home) >= FEWEST:
            out.append((at_home, np.array([each == labels for each in shared])))
    return out


def matched(
    groups: Strata, home_r: Array, home_draws: PatientBootstrap, there_r: Array, there_draws: PatientBootstrap
) -> dict[str, float]:
    """MATCHED_COLUMNS: what is expected of the other database, and how far its r [n, 12] lies from that.

    home_r [m, 12], NaN = not scored. The mix of strata is taken as it is; patients of both are drawn. NaN
    and n_matched 0 without a common stratum.
    """
    scored = np.isfinite(there_r)
    weights, values, draws = [], [], []
    used = np.zeros(len(there_r), dtype=bool)
    for at_home, elsewhere in groups:
        value, of_draws = home_draws.estimate(np.where(at_home[:, None], home_r, np.nan))
        weight = int(scored[elsewhere].sum())
        if weight and np.isfinite(value):
            weights.append(weight)
            values.append(value)
            # A draw without a patient of the stratum says nothing about it: it takes the whole sample's mean.
            draws.append(np.where(np.isfinite(of_draws), of_draws, value))
            used |= elsewhere & scored.any(axis=1)
    if not weights:
        return dict(zip(MATCHED_COLUMNS, (*[float("nan")] * 4, 0), strict=True))
    mean, of_draws = (np.average(each, axis=0, weights=weights) for each in (values, draws))
    expected = Estimate(float(mean), of_draws)
    reached = there_draws.estimate(np.where(used[:, None], there_r, np.nan))
    difference = (reached - expected).cells(*MATCHED_COLUMNS[1:4])
    return {"matched_r": expected.value, **difference, "n_matched": int(used.sum())}


def _labels(folder: WindowFolder, data: Split) -> list[frozenset[str]]:
    """Labels of the record of each window of the split."""
    labels = record_labels(folder)
    return [labels.get(str(folder.record[row]), frozenset()) for row in data.rows]
