"""Frozen features against labels, beside controls: what did the encoder learn?

One vector per record, standardised on the training split, L2 logistic regression per class; the penalty is
chosen on validation, the test split is read once. Controls: the same encoder with random weights, principal
components of the R-aligned median beats, the median beats themselves, and the same network with a head,
trained end to end on the labels. `margin` is the model's AUROC less that of its best control, paired over
patients; `verdict` says what its 95 % interval shows.

Table `label_shares`: the same with few labels. For every share, records are drawn several times, each draw
with two records at least that have a class and two that lack it; every method sees the same draws. Penalties
are chosen on the whole validation split, for all methods alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import MARGIN_COLUMNS, Drawn, PatientBootstrap, difference, interval, margin
from ecggen.eval.logistic import fit_probe
from ecggen.eval.metrics import nanmean, row_means
from ecggen.eval.probe_features import (
    MACRO,
    FeatureContext,
    FeatureJob,
    Records,
    feature_jobs,
    features_of,
    labelled_records,
    median_beats,
    pca,
    record_features,
)
from ecggen.eval.result import Array, Renderer, Result, Rows, WindowFolder, check_split, rounded
from ecggen.eval.supervised import supervised_scores
from ecggen.eval.workers import Workers
from ecggen.utils.config import LinearProbeConfig

SPLITS = ("train", "validation", "test")
PROBE_COLUMNS = (
    *("split", "method", "class", "auroc", "low", "high", "n_positive", "n_records", "n_patients"),
    *MARGIN_COLUMNS,
)
SHARE_COLUMNS = (
    *("method", "share", "n_records", "draws", "auroc", "low", "high"),
    *("model_gain", "gain_low", "gain_high"),
)
FEWEST_RECORDS = 2  # of a draw, with and without every class
TRIES = 500

Areas = dict[tuple[str, str], Drawn]  # method, class -> AUROC
#: records to train on -> logits {"validation": [m, C], "test": [m, C]}
Method = Callable[[Records], dict[str, Array]]


def linear_probe(
    renderer: Renderer, folder: WindowFolder, config: LinearProbeConfig, *, processes: int | str = 1
) -> Result:
    """Tables probe and label_shares, metrics by split and method. Raises EvalError for an empty split.

    Without label classes, or without labelled records in some split, the tables are empty and metrics say
    why. Metrics hold the label system, the classes in order, how many records and patients have each by
    split, how many windows carry no label, and shares of the labels that are too small to hold every class.
    processes: see `ecggen.eval.workers.Workers`; the numbers do not depend on it.
    """
    result = Result()
    splits = {name: labelled_records(folder, name) for name in SPLITS}
    classes = [str(name) for name in folder.label_classes]
    metrics = _counts(folder, splits, classes)
    if not classes or not all(metrics["records"].values()):
        result.add_table("probe", PROBE_COLUMNS, [])
        result.add_table("label_shares", SHARE_COLUMNS, [])
        result.metrics = {**metrics, "skipped": "no labelled records in every split"}
        return result
    shares = drawn_shares(splits["train"], config.label_shares, config.share_draws, config.seed)
    metrics["label_shares_left_out"] = [share.share for share in shares if not share.parts]
    shares = [share for share in shares if share.parts]
    methods, beats = _methods(renderer, folder, config, splits, shares, processes)
    metrics["records_without_beat"] = {
        name: int((~values.any(axis=1)).sum()) for name, values in beats.items()
    }
    scores = {name: method(splits["train"]) for name, method in methods.items()}
    rows: Rows = []
    for name in ("validation", "test"):
        of_split = {method: values[name] for method, values in scores.items()}
        rows += _rows(splits[name], of_split, classes, config)
    rows.sort(key=lambda row: list(methods).index(row["method"]))
    result.add_table("probe", PROBE_COLUMNS, rows)
    for row in rows:
        if row["class"] == MACRO:
            names = {"macro_auroc": "auroc", **{name: name for name in ("low", "high", *MARGIN_COLUMNS)}}
            cells = {key: row[name] for key, name in names.items() if name in row}
            metrics.setdefault(row["split"], {})[row["method"]] = cells
    few = label_efficiency(methods, splits, shares, (config.bootstrap, config.seed))
    result.add_table("label_shares", SHARE_COLUMNS, few)
    for row in few:
        of_share = metrics.setdefault("label_shares", {}).setdefault(f"{row['share']:g}", {})
        of_share[row["method"]] = row["auroc"]
    result.metrics = rounded(metrics)
    return result


def _counts(folder: WindowFolder, splits: Mapping[str, Records], classes: list[str]) -> dict[str, Any]:
    """The label system, and by split: records, patients, positives and windows without a label."""
    metrics: dict[str, Any] = {"label_system": folder.meta.get("label_system", ""), "classes": classes}
    names = ("records", "patients", "positives", "positive_patients", "unlabelled_windows")
    metrics |= {name: {} for name in names}
    for name, part in splits.items():
        patients = np.asarray(part.patient, dtype=str)
        metrics["records"][name], metrics["patients"][name] = len(patients), len(set(patients))
        metrics["positives"][name] = {c: int(part.labels[:, i].sum()) for i, c in enumerate(classes)}
        metrics["positive_patients"][name] = {
            c: len(set(patients[part.labels[:, i] > 0])) for i, c in enumerate(classes)
        }
        metrics["unlabelled_windows"][name] = len(check_split(folder, name)) - len(part.rows)
    return metrics


@dataclass
class _ProbeContext(FeatureContext):
    """What all jobs share."""

    splits: dict[str, Records]
    config: LinearProbeConfig


def _job(context: _ProbeContext, job: Records | FeatureJob) -> Any:
    """Scores of the network trained on some records, or features."""
    if not isinstance(job, Records):
        return features_of(context, job)
    config, parts = context.config, context.splits | {"train": job}
    model, folder = context.models["model"], context.folders[""]
    return supervised_scores(
        model, folder, parts, config.supervised_epochs, config.batch_size, config.seed + 1
    )


def _methods(
    renderer: Renderer,
    folder: WindowFolder,
    config: LinearProbeConfig,
    splits: dict[str, Records],
    shares: Sequence[Share],
    processes: int | str,
) -> tuple[dict[str, Method], dict[str, Array]]:
    """(the model's features and every control, each ready to be trained on some of the training records;
    the median beats by split)."""
    models = {"model": renderer, "random_encoder": renderer.random_copy(config.seed)}
    context = _ProbeContext(models, {"": folder}, splits, config)
    trained = [splits["train"], *(part for share in shares for part in share.parts)]
    trained = trained if config.supervised else []
    requests = [(model, "", part) for model in models for part in splits.values()]
    # Trainings first, being the longest; while the last of them ends, features are computed beside it.
    jobs: list[Records | FeatureJob] = [*trained, *feature_jobs(requests, config.batch_size)]
    with Workers(context, renderer.device, processes) as workers:
        results = workers.map(_job, jobs)
        logits = list(itertools.islice(results, len(trained)))
        averaged = record_features(results, requests)
        features = {model: {name: next(averaged) for name in splits} for model in models}
    beats = {name: median_beats(folder, part) for name, part in splits.items()}
    projected = pca(beats["train"], [beats["validation"], beats["test"]], config.pca)
    features["pca"] = dict(zip(SPLITS, projected, strict=True))
    features["median_beat"] = beats
    methods = {name: probe_method(values, splits) for name, values in features.items()}
    if config.supervised:
        methods["supervised"] = lambda part: logits[next(i for i, one in enumerate(trained) if one is part)]
    return methods, beats


def probe_method(features: Mapping[str, Array], splits: Mapping[str, Records]) -> Method:
    """A probe on features {split: [m, F]}."""
    number = {record: at for at, record in enumerate(splits["train"].names)}

    def scores(part: Records) -> dict[str, Array]:
        rows = np.array([number[name] for name in part.names])
        validation = features["validation"], splits["validation"].labels
        probe = fit_probe((features["train"][rows], part.labels), validation)
        return {name: probe.scores(features[name]) for name in ("validation", "test")}

    return scores


def _rows(
    records: Records, scores: Mapping[str, Array], classes: list[str], config: LinearProbeConfig
) -> Rows:
    """Rows of PROBE_COLUMNS of one split; scores: method -> logits [m, C]."""
    draws = PatientBootstrap(records.patient, config.bootstrap, config.seed)
    areas = class_areas(draws, records, scores, classes)
    areas |= macro_areas(areas, classes)
    rows: Rows = []
    for method in scores:
        for name in (MACRO, *classes):
            row = {"split": records.split, **area_cells(records, classes, areas, method, name)}
            if method == "model":
                controls = {other: areas[other, name] for other in scores if other != "model"}
                row |= margin(areas["model", name], controls, len(draws.names))
            rows.append(row)
    return rows


def class_areas(
    draws: PatientBootstrap, records: Records, scores: Mapping[str, Array], classes: Sequence[str]
) -> Areas:
    """AUROC of every method (logits [m, C]) on the classes, those of records.labels."""
    out: Areas = {}
    for method, logits in scores.items():
        whole, drawn = draws.auroc(records.labels > 0, logits)
        out |= {(method, name): (float(whole[i]), drawn[:, i]) for i, name in enumerate(classes)}
    return out


def macro_areas(areas: Areas, classes: Sequence[str]) -> Areas:
    """The mean over some of the classes, for every method."""
    out: Areas = {}
    for method in dict.fromkeys(method for method, _ in areas):
        whole, drawn = zip(*(areas[method, name] for name in classes), strict=True)
        out[method, MACRO] = macro(np.array(whole), np.stack(drawn, axis=1))
    return out


def area_cells(
    records: Records, classes: Sequence[str], areas: Areas, method: str, name: str
) -> dict[str, Any]:
    """Cells of PROBE_COLUMNS of one method and class, or MACRO; classes: those of records.labels."""
    labels = records.labels > 0
    positive = labels.any(axis=1) if name == MACRO else labels[:, classes.index(name)]
    area, drawn = areas[method, name]
    low, high = interval(drawn)
    cells = {"method": method, "class": name, "auroc": area, "low": low, "high": high}
    cells |= {"n_positive": int(positive.sum()), "n_records": len(records.patient)}
    return cells | {"n_patients": len(set(records.patient))}


def macro(areas: Array, drawn: Array) -> Drawn:
    """Mean over the classes of areas [C] and of drawn areas [R, C]; a class without a positive or a negative,
    in the split or in a draw, is left out of the mean."""
    return nanmean(areas), row_means(drawn)


def draw_records(labels: Array, count: int, rng: np.random.Generator) -> Array | None:
    """Sorted indices of `count` of the records of labels [m, C]; None where no draw holds every class."""
    there = labels > 0
    for _ in range(TRIES):
        chosen = np.sort(rng.permutation(len(labels))[:count])
        having = there[chosen].sum(axis=0)
        if (having >= FEWEST_RECORDS).all() and (count - having >= FEWEST_RECORDS).all():
            return chosen
    return None


@dataclass(frozen=True)
class Share:
    """Training records [k] of a share of the labels, drawn several times; no part where it is too small."""

    share: float
    count: int
    parts: list[Records]


def drawn_shares(train: Records, shares: list[float], draws: int, seed: int) -> list[Share]:
    """The draws that every method sees."""
    rng = np.random.default_rng(seed)
    out = []
    for share in shares:
        count = max(1, round(share * len(train.patient)))
        chosen = [draw_records(train.labels, count, rng) for _ in range(draws)]
        out.append(Share(share, count, [train.chosen(part) for part in chosen if part is not None]))
    return out


def label_efficiency(
    methods: Mapping[str, Method],
    splits: Mapping[str, Records],
    shares: Sequence[Share],
    bootstrap: tuple[int, int],
) -> Rows:
    """Rows of SHARE_COLUMNS for the test split.

    auroc: macro, mean over the draws, with a 95 % interval over patients; model_gain: how much higher that of
    "model" is, paired. bootstrap: (draws, seed) of the intervals.
    """
    test = splits["test"]
    draws = PatientBootstrap(test.patient, *bootstrap)
    rows: Rows = []
    for share in shares:
        means: dict[str, Drawn] = {}
        for name, method in methods.items():
            areas = [macro(*draws.auroc(test.labels > 0, method(part)["test"])) for part in share.parts]
            means[name] = float(np.mean([area for area, _ in areas])), np.mean([d for _, d in areas], axis=0)
        for name, (area, drawn) in means.items():
            low, high = interval(drawn)
            gain, less, more = difference(means["model"], means[name])
            row = {"method": name, "share": share.share, "n_records": share.count, "draws": len(share.parts)}
            row |= {"auroc": area, "low": low, "high": high}
            rows.append(row | {"model_gain": gain, "gain_low": less, "gain_high": more})
    return rows
