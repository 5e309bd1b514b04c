"""Linear probes fitted on one database's records and labels, scored on another's.

Judged are the classes that both have by name. Penalties are chosen on the home validation split; the other
database is read once. Controls: the same encoder untrained, and the median beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap, difference
from ecggen.eval.logistic import Probe, fit_probe
from ecggen.eval.metrics import nanmean
from ecggen.eval.probe_features import (
    MACRO,
    Featured,
    Records,
    labelled_records,
    median_beats,
    record_labels,
    spread_features,
)
from ecggen.eval.result import Array, FolderLike, RendererLike, Rows, check_split
from ecggen.eval.spread import Machines, Spread
from ecggen.utils.config import TransferConfig
from ecggen.utils.seed import derive_seed

PROBE_COLUMNS = (
    *("train", "database", "method", "class", "auroc", "low", "high", "n_positive", "n_records"),
    *("n_patients", "home_auroc", "difference", "difference_low", "difference_high"),
)
Features = dict[str, Array]  # method -> [m, F]
Drawn = dict[tuple[str, str], tuple[float, Array]]  # method, class -> (AUROC, of the draws [R])


def shared_records(folder: FolderLike, classes: list[str]) -> tuple[Records, list[str]]:
    """Labelled records of a folder's test split and those of `classes` that any of them has."""
    rows = check_split(folder, "test")
    labels = record_labels(folder)
    names = np.asarray(folder.record, dtype=str)[rows]
    keep = np.array([bool(labels.get(str(name))) for name in names], dtype=bool)
    rows, names = rows[keep], names[keep]
    found, first, code = np.unique(names, return_index=True, return_inverse=True)
    patient = np.asarray(folder.patient, dtype=str)[rows[first]].tolist()
    shared = [name for name in classes if any(name in labels[str(record)] for record in found)]
    hot = np.array([[name in labels[str(record)] for name in shared] for record in found], dtype=np.float32)
    hot = hot.reshape(len(found), len(shared))
    return Records("test", rows, code.reshape(-1), found.tolist(), patient, hot), shared


def transfer_probe(
    renderer: RendererLike,
    home: FolderLike,
    others: Mapping[str, FolderLike],
    name: str,
    rules: TransferConfig,
    processes: int | Machines = 1,
) -> tuple[Rows, dict[str, Any]]:
    """(rows of PROBE_COLUMNS, metrics by database: the AUROC, or the word `skipped` with its reason).

    The home's own test split, called `name`, stands in front with the classes that any pair shares.
    """
    classes = [str(label) for label in home.label_classes]
    parts = {other: shared_records(folder, classes) for other, folder in others.items()}
    reasons = {other: _reason(classes, *part) for other, part in parts.items()}
    metrics: dict[str, Any] = {other: {"skipped": why} for other, why in reasons.items() if why}
    judged = {other: part for other, part in parts.items() if not reasons[other]}
    if not judged:
        return [], metrics
    homes = {split: labelled_records(home, split) for split in ("train", "validation", "test")}
    empty = next((split for split, part in homes.items() if not part.patient), "")
    if empty:
        return [], metrics | {
            other: {"skipped": f"no labelled record in the {empty} split of {name}"} for other in judged
        }
    models = {"model": renderer, "random_encoder": renderer.random_copy(rules.seed)}
    parts_of = [(name, home, part) for part in homes.values()]
    parts_of += [(other, others[other], part) for other, (part, _) in judged.items()]
    wanted = [(model, where, part) for where, _, part in parts_of for model in models]
    with Spread(Featured(models, {name: home, **others}), renderer.device, processes) as spread:
        made = spread_features(spread, wanted, rules.batch_size)
        features: list[Features] = [
            {model: next(made) for model in models} | {"median_beat": median_beats(folder, part)}
            for _, folder, part in parts_of
        ]
    known = dict(zip(homes, features, strict=False))
    elsewhere = dict(zip(judged, features[len(homes) :], strict=True))
    probes = {
        method: fit_probe(
            (known["train"][method], homes["train"].labels),
            (known["validation"][method], homes["validation"].labels),
        )
        for method in known["train"]
    }
    everywhere = [c for c in classes if any(c in shared for _, shared in judged.values())]
    own = _scored(probes, known["test"], homes["test"], classes, classes, rules, name)
    rows = _rows(name, homes["test"], own, everywhere, classes, None)
    for other, (part, shared) in judged.items():
        drawn = _scored(probes, elsewhere[other], part, shared, classes, rules, other)
        beside = own | _macros(own, probes, shared)
        found = _rows(other, part, drawn | _macros(drawn, probes, shared), [MACRO, *shared], shared, beside)
        rows += found
        metrics[other] = {
            "classes": {label: int(part.labels[:, i].sum()) for i, label in enumerate(shared)},
            "records": len(part.patient),
            "macro_auroc": {r["method"]: r["auroc"] for r in found if r["class"] == MACRO},
            "home_macro_auroc": {r["method"]: r["home_auroc"] for r in found if r["class"] == MACRO},
        }
    return rows, metrics


def _reason(classes: list[str], part: Records, shared: list[str]) -> str:
    """Why nothing can be probed; empty where something can."""
    if not classes:
        return "the database that the model was trained on has no label classes"
    if not part.patient:
        return "its records carry no labels"
    return "" if shared else f"it has none of the classes {', '.join(classes)}"


def _scored(
    probes: Mapping[str, Probe],
    features: Features,
    part: Records,
    columns: list[str],
    classes: list[str],
    rules: TransferConfig,
    name: str,
) -> Drawn:
    """AUROC of the classes in `columns`, which are those of part.labels, by every probe."""
    at = [classes.index(label) for label in columns]
    draws = PatientBootstrap(part.patient, rules.bootstrap, derive_seed(rules.seed, "probe", name))
    out: Drawn = {}
    for method, probe in probes.items():
        whole, drawn = draws.auroc(part.labels > 0, probe.scores(features[method])[:, at])
        out |= {(method, label): (float(whole[i]), drawn[:, i]) for i, label in enumerate(columns)}
    return out


def _macros(found: Drawn, methods: Mapping[str, Any], shared: list[str]) -> Drawn:
    """The mean over the shared classes; a class without a positive or a negative is left out of it."""
    out: Drawn = {}
    for method in methods:
        areas = [found[method, label] for label in shared]
        drawn = np.array([nanmean(one) for one in np.stack([d for _, d in areas], axis=1)])
        out[method, MACRO] = nanmean(np.array([area for area, _ in areas])), drawn
    return out


def _rows(
    database: str, part: Records, found: Drawn, shown: list[str], columns: list[str], home: Drawn | None
) -> Rows:
    """One row per method and class of `shown`; columns: what the columns of part.labels are."""
    positive = {label: int(part.labels[:, i].sum()) for i, label in enumerate(columns)}
    positive[MACRO] = int((part.labels > 0).any(axis=1).sum())
    rows: Rows = []
    for method in dict.fromkeys(method for method, _ in found):
        for label in shown:
            area, drawn = found[method, label]
            good = drawn[np.isfinite(drawn)]
            low, high = np.percentile(good, [2.5, 97.5]) if len(good) else (float("nan"),) * 2
            row = {
                "database": database, "method": method, "class": label, "auroc": area, "low": float(low),
                "high": float(high), "n_positive": positive[label], "n_records": len(part.patient),
                "n_patients": len(set(part.patient)),
            }  # fmt: skip
            if home is not None:
                apart, less, more = difference(found[method, label], home[method, label])
                row |= {"home_auroc": home[method, label][0], "difference": apart}
                row |= {"difference_low": less, "difference_high": more}
            rows.append(row)
    return rows
