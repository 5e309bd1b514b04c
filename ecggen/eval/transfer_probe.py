"""Linear probes fitted on one database's records and labels, scored on another's.

Scored are the classes that both have by name. Penalties are chosen on the home validation split; the other
database is read once. Controls: the same encoder untrained, and the median beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.linear_probe import TRANSFERRED, Areas, class_areas, macro, probe_rows
from ecggen.eval.logistic import Probe
from ecggen.eval.probe_features import (
    MACRO,
    Probing,
    Records,
    feature_tasks,
    grouped,
    labelled_records,
    median_beats,
    model_features,
    record_labels,
)
from ecggen.eval.result import Array, Renderer, Result, Rows, WindowFolder, check_split
from ecggen.eval.workers import Workers
from ecggen.utils.config import TransferConfig
from ecggen.utils.seed import derive_seed

AGAINST_HOME = ("home_auroc", "difference", "difference_low", "difference_high")
PROBE_COLUMNS = (
    *("train", "database", "method", "class", "auroc", "low", "high", "n_positive", "n_records"),
    *("n_patients", *AGAINST_HOME),
)


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
    at_home: Result,
    processes: int | str = 1,
) -> tuple[Rows, dict[str, str]]:
    """(rows of PROBE_COLUMNS, why a database could not be probed).

    The home's own test split, called `name`, stands in front with the classes that any pair shares. at_home:
    of `linear_probe` on it.
    """
    classes = [str(label) for label in home.label_classes]
    parts = {other: shared_records(folder, classes) for other, folder in others.items()}
    reasons = {other: why for other, part in parts.items() if (why := _reason(classes, *part))}
    probed = {other: part for other, part in parts.items() if other not in reasons}
    if not probed:
        return [], reasons
    arrays = at_home.arrays
    if not arrays:
        return [], reasons | dict.fromkeys(probed, f"no labelled records in every split of {name}")
    probes = {
        method: Probe(**{part.name: arrays[f"{method}/{part.name}"] for part in fields(Probe)})
        for method in TRANSFERRED
    }
    places = [(other, part) for other, (part, _) in probed.items()]
    models = {"model": renderer, "random_encoder": renderer.random_copy(int(arrays["seed"]))}
    context = Probing(models, others)
    with Workers(context, renderer.device, processes) as workers:
        measured = workers.measure(feature_tasks(models, places, config.batch_size))
        elsewhere = [
            features | {"median_beat": median_beats(others[place], part)}
            for (place, part), features in zip(places, model_features(measured, models, places), strict=True)
        ]
    test = labelled_records(home, "test")

    def areas_of(database: str, part: Records, scores: dict[str, Array], columns: list[str]) -> Areas:
        at = [classes.index(label) for label in columns]
        scores = {method: values[:, at] for method, values in scores.items()}
        draws = PatientBootstrap(part.patient, config.bootstrap, derive_seed(config.seed, "probe", database))
        return class_areas(draws, part, scores, columns)

    everywhere = [c for c in classes if any(c in shared for _, shared in probed.values())]
    home_scores = {method: arrays[f"{method}/test"] for method in probes}
    home_areas = areas_of(name, test, home_scores, classes)
    rows = [{"database": name, **row} for row in probe_rows(test, classes, home_areas, everywhere)]
    for (other, (part, shared)), features in zip(probed.items(), elsewhere, strict=True):
        scores = {method: probe.scores(features[method]) for method, probe in probes.items()}
        there = areas_of(other, part, scores, shared)
        means = {(method, MACRO): macro([home_areas[method, c] for c in shared]) for method in probes}
        beside = home_areas | means
        for row in probe_rows(part, shared, there, [MACRO, *shared]):
            key = row["method"], row["class"]
            difference = (there[key] - beside[key]).cells(*AGAINST_HOME[1:])
            rows.append({"database": other, **row, "home_auroc": beside[key].value, **difference})
    return rows, reasons


def _reason(classes: list[str], part: Records, shared: list[str]) -> str:
    """Why nothing can be probed; empty where something can."""
    if not classes:
        return "the database that the model was trained on has no label classes"
    if not part.patient:
        return "its records carry no labels"
    return "" if shared else f"it has none of the classes {', '.join(classes)}"
