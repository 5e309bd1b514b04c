"""Linear probes fitted on one database's records and labels, scored on another's.

Scored are the classes that both have by name. Penalties are chosen on the home validation split; the other
database is read once. Controls: the same encoder untrained, and the median beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import Drawn, PatientBootstrap, difference, interval
from ecggen.eval.linear_probe import macro
from ecggen.eval.logistic import Probe, fit_probe
from ecggen.eval.probe_features import (
    MACRO,
    FeatureContext,
    Records,
    feature_jobs,
    features_of,
    labelled_records,
    median_beats,
    record_features,
    record_labels,
)
from ecggen.eval.result import Array, Renderer, Rows, WindowFolder, check_split
from ecggen.eval.workers import Workers
from ecggen.utils.config import TransferConfig
from ecggen.utils.seed import derive_seed

PROBE_COLUMNS = (
    *("train", "database", "method", "class", "auroc", "low", "high", "n_positive", "n_records"),
    *("n_patients", "home_auroc", "difference", "difference_low", "difference_high"),
)
Features = dict[str, Array]  # method -> [m, F]
Areas = dict[tuple[str, str], Drawn]  # method, class -> AUROC


def shared_records(folder: WindowFolder, classes: list[str]) -> tuple[Records, list[str]]:
    """Labelled records of a folder's test split and those of `classes` that any of them has."""
    rows = check_split(folder, "test")
    labels = record_labels(folder)
    names = np.asarray(folder.record, dtype=str)[rows]
    keep = np.array([bool(labels.get(str(name))) for name in names], dtype=bool)
    rows, names = rows[keep], names[keep]
    distinct, first, code = np.unique(names, return_index=True, return_inverse=True)
    patient = np.asarray(folder.patient, dtype=str)[rows[first]].tolist()
    shared = [name for name in classes if any(name in labels[str(record)] for record in distinct)]
    hot = np.array(
        [[name in labels[str(record)] for name in shared] for record in distinct], dtype=np.float32
    )
    hot = hot.reshape(len(distinct), len(shared))
    return Records("test", rows, code.reshape(-1), distinct.tolist(), patient, hot), shared


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
    models = {"model": renderer, "random_encoder": renderer.random_copy(config.seed)}
    places = [(name, home, part) for part in splits.values()]
    places += [(other, others[other], part) for other, (part, _) in probed.items()]
    requests = [(model, where, part) for where, _, part in places for model in models]
    with Workers(FeatureContext(models, {name: home, **others}), renderer.device, processes) as workers:
        results = workers.map(features_of, feature_jobs(requests, config.batch_size))
        averaged = record_features(results, requests)
        features: list[Features] = [
            {model: next(averaged) for model in models} | {"median_beat": median_beats(folder, part)}
            for _, folder, part in places
        ]
    at_home = dict(zip(splits, features, strict=False))
    elsewhere = dict(zip(probed, features[len(splits) :], strict=True))
    probes = {}
    for method in at_home["train"]:
        train, validation = ((at_home[s][method], splits[s].labels) for s in ("train", "validation"))
        probes[method] = fit_probe(train, validation)
    everywhere = [c for c in classes if any(c in shared for _, shared in probed.values())]
    home_areas = _areas(probes, at_home["test"], splits["test"], classes, classes, config, name)
    rows = _rows(name, splits["test"], home_areas, everywhere, classes, None)
    for other, (part, shared) in probed.items():
        areas = _areas(probes, elsewhere[other], part, shared, classes, config, other)
        areas |= _macros(areas, probes, shared)
        beside = home_areas | _macros(home_areas, probes, shared)
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


def _areas(
    probes: Mapping[str, Probe],
    features: Features,
    part: Records,
    columns: list[str],
    classes: list[str],
    config: TransferConfig,
    name: str,
) -> Areas:
    """AUROC of the classes in `columns`, which are those of part.labels, by every probe."""
    at = [classes.index(label) for label in columns]
    draws = PatientBootstrap(part.patient, config.bootstrap, derive_seed(config.seed, "probe", name))
    out: Areas = {}
    for method, probe in probes.items():
        whole, drawn = draws.auroc(part.labels > 0, probe.scores(features[method])[:, at])
        out |= {(method, label): (float(whole[i]), drawn[:, i]) for i, label in enumerate(columns)}
    return out


def _macros(areas: Areas, methods: Mapping[str, Any], shared: list[str]) -> Areas:
    """The mean over the shared classes; a class without a positive or a negative is left out of it."""
    out: Areas = {}
    for method in methods:
        whole, drawn = zip(*(areas[method, label] for label in shared), strict=True)
        out[method, MACRO] = macro(np.array(whole), np.stack(drawn, axis=1))
    return out


def _rows(
    database: str, part: Records, areas: Areas, shown: list[str], columns: list[str], home: Areas | None
) -> Rows:
    """One row per method and class of `shown`; columns: what the columns of part.labels are."""
    positive = {label: int(part.labels[:, i].sum()) for i, label in enumerate(columns)}
    positive[MACRO] = int((part.labels > 0).any(axis=1).sum())
    rows: Rows = []
    for method in dict.fromkeys(method for method, _ in areas):
        for label in shown:
            area, drawn = areas[method, label]
            low, high = interval(drawn)
            row = {"database": database, "method": method, "class": label, "auroc": area, "low": low}
            row |= {"high": high, "n_positive": positive[label], "n_records": len(part.patient)}
            row |= {"n_patients": len(set(part.patient))}
            if home is not None:
                of_home = home[method, label]
                apart = (of_home[0], *difference(areas[method, label], of_home))
                names = ("home_auroc", "difference", "difference_low", "difference_high")
                row |= dict(zip(names, apart, strict=True))
            rows.append(row)
    return rows
