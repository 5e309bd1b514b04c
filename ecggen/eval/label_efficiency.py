"""The same probe with few labels: what a share of the training labels is worth to each method.

For every share, records are drawn several times, each draw with two records at least that have a class
and two that lack it; every method sees the same draws. Penalties are chosen on the whole validation
split, for all methods alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.logistic import fit_probe
from ecggen.eval.metrics import nanmean
from ecggen.eval.probe_features import Records
from ecggen.eval.result import Array, Rows

SHARE_COLUMNS = (
    *("method", "share", "n_records", "draws", "auroc", "low", "high"),
    *("model_gain", "gain_low", "gain_high"),
)
FEWEST = 2  # records with, and without, every class
TRIES = 500

#: records to train on -> logits {"validation": [m, C], "test": [m, C]}
Scores = Callable[[Records], dict[str, Array]]


def draw_records(labels: Array, count: int, rng: np.random.Generator) -> Array | None:
    """Sorted indices of `count` of the records of labels [m, C]; None where no draw holds every class."""
    there = labels > 0
    for _ in range(TRIES):
        chosen = np.sort(rng.permutation(len(labels))[:count])
        having = there[chosen].sum(axis=0)
        if (having >= FEWEST).all() and (count - having >= FEWEST).all():
            return chosen
    return None


def probe_scores(features: Mapping[str, Array], splits: Mapping[str, Records]) -> Scores:
    """Logits of a probe on features {split: [m, F]}."""
    number = {record: at for at, record in enumerate(splits["train"].names)}

    def scores(part: Records) -> dict[str, Array]:
        rows = np.array([number[name] for name in part.names])
        held = features["validation"], splits["validation"].labels
        probe = fit_probe((features["train"][rows], part.labels), held)
        return {name: probe.scores(features[name]) for name in ("validation", "test")}

    return scores


@dataclass(frozen=True)
class Share:
    """Training records [k] of a share of the labels, drawn several times."""

    share: float
    count: int
    parts: list[Records]


def drawn_shares(train: Records, shares: list[float], draws: int, seed: int) -> list[Share]:
    """The draws that every method sees; a share too small to hold every class is left out."""
    rng = np.random.default_rng(seed)
    out = []
    for share in shares:
        count = max(1, round(share * len(train.patient)))
        found = [draw_records(train.labels, count, rng) for _ in range(draws)]
        parts = [train.chosen(part) for part in found if part is not None]
        if parts:
            out.append(Share(share, count, parts))
    return out


def label_efficiency(
    methods: Mapping[str, Scores],
    splits: Mapping[str, Records],
    shares: list[Share],
    bootstrap: tuple[int, int],
) -> Rows:
    """Rows of SHARE_COLUMNS for the test split.

    auroc: macro, mean over the draws, with a 95 % interval over patients; model_gain: how much higher that of
    "model" is, paired. bootstrap: (draws, seed) of the intervals.
    """
    test = splits["test"]
    intervals = PatientBootstrap(test.patient, *bootstrap)
    positive = test.labels > 0
    rows: Rows = []
    for one in shares:
        share, count, chosen = one.share, one.count, one.parts
        areas = {
            name: [intervals.auroc(positive, scores(part)["test"]) for part in chosen]
            for name, scores in methods.items()
        }
        macro = {name: _macro(found) for name, found in areas.items()}
        own, own_drawn = macro["model"]
        for name, (area, drawn) in macro.items():
            low, high = np.nanpercentile(drawn, [2.5, 97.5])
            less, more = np.nanpercentile(own_drawn - drawn, [2.5, 97.5])
            rows.append(
                {
                    "method": name, "share": share, "n_records": count, "draws": len(chosen), "auroc": area,
                    "low": float(low), "high": float(high), "model_gain": own - area,
                    "gain_low": float(less), "gain_high": float(more),
                }
            )  # fmt: skip
    return rows


def _macro(found: list[tuple[Array, Array]]) -> tuple[float, Array]:
    """(macro AUROC, the same for every bootstrap draw [R]), mean over the draws of records."""
    whole = float(np.mean([nanmean(area) for area, _ in found]))
    drawn = np.mean([[nanmean(one) for one in each] for _, each in found], axis=0)
    return whole, np.asarray(drawn)
