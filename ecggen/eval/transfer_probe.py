"""Linear probes fitted on one database's records and labels, scored on another's.

Scored are the classes that both have by name. Penalties are chosen on the home validation split; the other
database is read once. Controls: the same encoder untrained, and the median beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap, difference
from ecggen.eval.linear_probe import Areas, area_cells, class_areas, macro_areas
from ecggen.eval.logistic import fit_probe
from ecggen.eval.probe_features import (
    MACRO,
    FeatureContext,
    Records,
    feature_jobs,
    features_of,
    grouped,
    labelled_records,
    median_beats,
    record_features,
    record_labels,
)
from ecggen.eval.result import Array, Renderer, Rows, WindowFolder, check_split
from ecggen.eval.workers import Workers
from ecggen.utils.config import TransferConfig
from ecggen.utils.seed import derive_seed

AGAINST_HOME = ("home_auroc", "difference", "difference_low", "difference_high")
PROBE_COLUMNS = (
    *("train", "database", "method", "class", "auroc", "low", "high", "n_positive", "n_records"),
    *("n_patients", *AGAINST_HOME),
)
Features = dict[str, Array]  # method -> [m, F]


def shared_records(folder: WindowFolder, classes: list[str]) -> tuple[Records, list[str]]:
    """Labelled records of a folder's test split and those of `classes` that any of them has."""
    rows = check_split(folder, "test")
    labels = record_labels(folder)
    names = np.asarray(folder.record, dtype=str)[rows]
    keep = np.array([bool(labels.get(str(name))) for name in names], dtype=bool)
    rows, names = rows[keep], names[keep]
    present = set().union(*(labels[str(name)] for name in names))
    shared = [name for name in classes if name in present]
    hot = np.array([[label in labels[str(name)] for label in shared] for name in names], dtype=bool)
    return grouped(folder, "test", rows, names, hot.reshape(len(names), len(shared))), shared


def transfer_probe(
    renderer: Renderer,
    home: WindowFolder,
    others: Mapping[str, WindowFolder],
    name: str,
    config: TransferConfig,
    processes: int | str = 1,
) -> tuple[Rows, dict[str, Any]]:
    """(rows of PROBE_COLUMNS, metrics by database: the AUROC, or the word `skipped` with its reason).

    The home's own test split, called `name`, stands in front with the classes that any pair shares.
    """
    classes = [str(label) for label in home.label_classes]
    parts = {other: shared_records(folder, classes) for other, folder in others.items()}
    reasons = {other: _reason(classes, *part) for other, part in parts.items()}
    metrics: dict[str, Any] = {other: {"skipped": why} for other, why in reasons.items() if why}
    probed = {other: part for other, part in parts.items() if not reasons[other]}
    if not probed:
        return [], metrics
    splits = {split: labelled_records(home, split) for split in ("train", "validation", "test")}
    empty = next((split for split, part in splits.items() if not part.patient), "")
    if empty:
        reason = {"skipped": f"no labelled record in the {empty} split of {name}"}
        return [], metrics | dict.fromkeys(probed, reason)
    places = [(name, part) for part in splits.values()]
    places += [(other, part) for other, (part, _) in probed.items()]
    train, validation, test, *elsewhere = _features(
        renderer, {name: home, **others}, places, config, processes
    )
    labels = splits["train"].labels, splits["validation"].labels
    probes = {
        method: fit_probe((train[method], labels[0]), (validation[method], labels[1])) for method in train
    }

    def areas_of(database: str, part: Records, features: Features, columns: list[str]) -> Areas:
        at = [classes.index(label) for label in columns]
        scores = {method: probe.scores(features[method])[:, at] for method, probe in probes.items()}
        draws = PatientBootstrap(part.patient, config.bootstrap, derive_seed(config.seed, "probe", database))
        return class_areas(draws, part, scores, columns)

    everywhere = [c for c in classes if any(c in shared for _, shared in probed.values())]
    home_areas = areas_of(name, splits["test"], test, classes)
    rows = _rows(name, splits["test"], home_areas, everywhere, classes)
    for (other, (part, shared)), features in zip(probed.items(), elsewhere, strict=True):
        areas = areas_of(other, part, features, shared)
        areas |= macro_areas(areas, shared)
        beside = home_areas | macro_areas(home_areas, shared)
        of_database = _rows(other, part, areas, [MACRO, *shared], shared, beside)
        rows += of_database
        macros = [row for row in of_database if row["class"] == MACRO]
        metrics[other] = {
            "classes": {label: int(part.labels[:, i].sum()) for i, label in enumerate(shared)},
            "records": len(part.patient),
            "macro_auroc": {row["method"]: row["auroc"] for row in macros},
            "home_macro_auroc": {row["method"]: row["home_auroc"] for row in macros},
        }
    return rows, metrics


def _reason(classes: list[str], part: Records, shared: list[str]) -> str:
    """Why nothing can be probed; empty where something can."""
    if not classes:
        return "the database that the model was trained on has no label classes"
    if not part.patient:
        return "its records carry no labels"
    return "" if shared else f"it has none of the classes {', '.join(classes)}"


def _features(
    renderer: Renderer,
    folders: Mapping[str, WindowFolder],
    places: Sequence[tuple[str, Records]],
    config: TransferConfig,
    processes: int | str,
) -> list[Features]:
    """What each method reads of each of the records, which belong to the named folders."""
    models = {"model": renderer, "random_encoder": renderer.random_copy(config.seed)}
    requests = [(model, name, part) for name, part in places for model in models]
    with Workers(FeatureContext(models, folders), renderer.device, processes) as workers:
        results = workers.map(features_of, feature_jobs(requests, config.batch_size))
        averaged = record_features(results, requests)
        return [
            {model: next(averaged) for model in models} | {"median_beat": median_beats(folders[name], part)}
            for name, part in places
        ]


def _rows(
    database: str,
    part: Records,
    areas: Areas,
    shown: list[str],
    columns: list[str],
    home: Areas | None = None,
) -> Rows:
    """One row per method and class of `shown`; columns: what the columns of part.labels are."""
    rows: Rows = []
    for method in dict.fromkeys(method for method, _ in areas):
        for label in shown:
            row = {"database": database, **area_cells(part, columns, areas, method, label)}
            if home is not None:
                at_home = home[method, label]
                cells = (at_home[0], *difference(areas[method, label], at_home))
                row |= dict(zip(AGAINST_HOME, cells, strict=True))
            rows.append(row)
    return rows
