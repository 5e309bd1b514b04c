"""Frozen features against labels, beside controls: what did the encoder learn?

One vector per record, standardised on the training split, L2 logistic regression per class; the penalty is
chosen on validation, the test split is read once. Controls: the same encoder with random weights, principal
components of the R-aligned median beats, the median beats themselves, and the same network with a head,
trained end to end on the labels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.label_efficiency import (
    SHARE_COLUMNS,
    Scores,
    Share,
    drawn_shares,
    label_efficiency,
    probe_scores,
)
from ecggen.eval.metrics import nanmean
from ecggen.eval.probe_features import (
    MACRO,
    Featured,
    FeatureJob,
    Records,
    feature_jobs,
    features_of,
    joined_features,
    labelled_records,
    median_beats,
    pca,
)
from ecggen.eval.result import Array, FolderLike, RendererLike, Result, Rows, rounded
from ecggen.eval.spread import Machines, Spread
from ecggen.eval.supervised import supervised_scores
from ecggen.utils.config import LinearProbeConfig

PROBE_COLUMNS = ("split", "method", "class", "auroc", "low", "high", "n_positive", "n_records", "n_patients")


def linear_probe(
    renderer: RendererLike, folder: FolderLike, rules: LinearProbeConfig, *, processes: int | Machines = 1
) -> Result:
    """Table probe, metrics by split and method. Raises EvalError for an empty split.

    Without label classes, or without labelled records in some split, the table is empty and metrics say why.
    Metrics hold the label system, the classes in order, and how many records and patients have each by split.
    processes: see `ecggen.eval.spread.Spread`; the numbers do not depend on it.
    """
    result = Result()
    splits = {name: labelled_records(folder, name) for name in ("train", "validation", "test")}
    classes = [str(name) for name in folder.label_classes]
    metrics: dict[str, Any] = {"label_system": folder.meta.get("label_system", ""), "classes": classes}
    metrics |= {"records": {}, "patients": {}, "positives": {}, "positive_patients": {}}
    for name, part in splits.items():
        owners = np.asarray(part.patient, dtype=str)
        metrics["records"][name], metrics["patients"][name] = len(owners), len(set(owners))
        metrics["positives"][name] = {c: int(part.labels[:, i].sum()) for i, c in enumerate(classes)}
        metrics["positive_patients"][name] = {
            c: len(set(owners[part.labels[:, i] > 0])) for i, c in enumerate(classes)
        }
    if not classes or not all(metrics["records"].values()):
        result.add_table("probe", PROBE_COLUMNS, [])
        result.add_table("label_shares", SHARE_COLUMNS, [])
        result.metrics = {**metrics, "skipped": "no labelled records in every split"}
        return result
    rows: Rows = []
    shares = drawn_shares(splits["train"], rules.label_shares, rules.share_draws, rules.seed)
    methods = _methods(renderer, folder, rules, splits, shares, processes)
    for method, scores in methods.items():
        for name, values in scores(splits["train"]).items():
            rows += _rows(method, splits[name], values, classes, rules)
    result.add_table("probe", PROBE_COLUMNS, rows)
    for row in rows:
        if row["class"] == MACRO:
            of_split = metrics.setdefault(row["split"], {})
            of_split[row["method"]] = {"macro_auroc": row["auroc"], "low": row["low"], "high": row["high"]}
    few = label_efficiency(methods, splits, shares, (rules.bootstrap, rules.seed))
    result.add_table("label_shares", SHARE_COLUMNS, few)
    for row in few:
        of_share = metrics.setdefault("label_shares", {}).setdefault(f"{row['share']:g}", {})
        of_share[row["method"]] = row["auroc"]
    result.metrics = rounded(metrics)
    return result


@dataclass
class _Probed(Featured):
    """What all jobs share."""

    splits: dict[str, Records]
    rules: LinearProbeConfig


def _supervised(context: _Probed, part: Records) -> dict[str, Array]:
    rules = context.rules
    parts, seed = context.splits | {"train": part}, rules.seed + 1
    model, folder = context.models["model"], context.folders[""]
    return supervised_scores(model, folder, parts, rules.supervised_epochs, rules.batch_size, seed)


def _work(context: _Probed, job: Records | FeatureJob) -> Any:
    """Scores of the network trained on some records, or features."""
    return _supervised(context, job) if isinstance(job, Records) else features_of(context, job)


def _methods(
    renderer: RendererLike,
    folder: FolderLike,
    rules: LinearProbeConfig,
    splits: dict[str, Records],
    shares: list[Share],
    processes: int | Machines,
) -> dict[str, Scores]:
    """The model's features and every control, each ready to be trained on some of the training records."""
    models = {"model": renderer, "random_encoder": renderer.random_copy(rules.seed)}
    context = _Probed(models, {"": folder}, splits, rules)
    asked = [splits["train"], *(part for share in shares for part in share.parts)] if rules.supervised else []
    wanted = [(model, "", part) for model in models for part in splits.values()]
    # Trainings first, being the longest; while the last of them ends, features are made beside it.
    jobs: list[Records | FeatureJob] = [*asked, *feature_jobs(wanted, rules.batch_size)]
    with Spread(context, renderer.device, processes) as spread:
        found = spread.map(_work, jobs)
        trained = list(itertools.islice(found, len(asked)))
        found = joined_features(found, wanted, rules.batch_size)
        features = {model: {name: next(found) for name in splits} for model in models}
    beats = {name: median_beats(folder, part) for name, part in splits.items()}
    projected = pca(beats["train"], [beats["validation"], beats["test"]], rules.pca)
    features["pca"] = dict(zip(("train", "validation", "test"), projected, strict=True))
    features["median_beat"] = beats
    methods = {name: probe_scores(own, splits) for name, own in features.items()}
    if rules.supervised:

        def supervised(part: Records) -> dict[str, Array]:
            return trained[next(i for i, one in enumerate(asked) if one is part)]

        methods["supervised"] = supervised
    return methods


def _rows(method: str, records: Records, scores: Array, classes: list[str], rules: LinearProbeConfig) -> Rows:
    draws = PatientBootstrap(records.patient, rules.bootstrap, rules.seed)
    positive = records.labels > 0
    whole, drawn = draws.auroc(positive, scores)
    out: Rows = []
    for name, area, values, count in [
        # A draw without a positive of some class takes the mean of the others.
        (MACRO, nanmean(whole), np.array([nanmean(d) for d in drawn]), int(positive.any(axis=1).sum())),
        *((c, whole[i], drawn[:, i], int(positive[:, i].sum())) for i, c in enumerate(classes)),
    ]:
        good = values[np.isfinite(values)]
        low, high = np.percentile(good, [2.5, 97.5]) if len(good) else (float("nan"),) * 2
        out.append(
            {
                "split": records.split,
                "method": method,
                "class": name,
                "auroc": float(area),
                "low": float(low),
                "high": float(high),
                "n_positive": count,
                "n_records": len(records.patient),
                "n_patients": len(draws.names),
            }
        )
    return out
