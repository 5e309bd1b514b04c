"""Frozen features against labels, beside controls: what did the encoder learn?

One vector per record, standardised on the training split, L2 logistic regression per class; the penalty is
chosen on validation, the test split is read once. Controls: the same encoder with random weights, principal
components of the R-aligned median beats, and the median beats themselves; where `supervised` asks for it, the
same network with a head as well, trained end to end on the labels, which takes longer than all the rest.
`margin` is the model's AUROC less that of its best control, paired over patients; `verdict` says what its
95 % interval shows; `model_gain`: the same against the control of that row.

Table `label_shares`: the same with few labels, empty where no share is asked for. For every share, records
are drawn several times, each draw with two records at least that have a class and two that lack it; every
method sees the same draws. Penalties are chosen on the whole validation split, for all methods alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import MARGIN_COLUMNS, Estimate, PatientBootstrap, margin
from ecggen.eval.logistic import Probe, fit_probe
from ecggen.eval.metrics import nanmean, row_means
from ecggen.eval.probe_features import (
    MACRO,
    Probing,
    Records,
    feature_tasks,
    labelled_records,
    median_beats,
    model_features,
    pca,
)
from ecggen.eval.result import Array, Renderer, Result, Rows, WindowFolder, check_split
from ecggen.eval.supervised import supervised_scores
from ecggen.eval.workers import Workers, batches
from ecggen.utils.config import LinearProbeConfig

SPLITS = ("train", "validation", "test")
GAIN_COLUMNS = ("model_gain", "gain_low", "gain_high")
PROBE_COLUMNS = (
    *("split", "method", "class", "auroc", "low", "high", "n_positive", "n_records", "n_patients"),
    *MARGIN_COLUMNS,
    *GAIN_COLUMNS,
)
SHARE_COLUMNS = (*("method", "share", "n_records", "draws", "auroc", "low", "high"), *GAIN_COLUMNS)
TRANSFERRED = ("model", "random_encoder", "median_beat")  # whose probes other databases are scored with
FEWEST_RECORDS = 2  # of a draw, with and without every class
TRIES = 500

Areas = dict[tuple[str, str], Estimate]  # method, class or MACRO -> AUROC
Logits = dict[str, Array]  # split -> [m, C]
#: What a share of the labels trains: share, records of a draw, the draws.
Share = tuple[float, int, list[Records]]


def linear_probe(
    renderer: Renderer, folder: WindowFolder, config: LinearProbeConfig, *, processes: int | str = 1
) -> Result:
    """Tables probe and label_shares; arrays: the probes of TRANSFERRED, field by
    field, and their scores of the test records. Raises EvalError for an empty split.

    Without label classes, or without labelled records in some split, the tables are empty and facts say
    why. Facts hold the label system, the classes in order, how many records and patients have each by
    split, how many windows carry no label, and shares of the labels that are too small to hold every class.
    processes: see `ecggen.eval.workers.Workers`; the numbers do not depend on it.
    """
    arrays: dict[str, Array] = {}
    result = Result(columns={"probe": PROBE_COLUMNS, "label_shares": SHARE_COLUMNS}, arrays=arrays)
    splits = {name: labelled_records(folder, name) for name in SPLITS}
    classes = [str(name) for name in folder.label_classes]
    facts = result.facts = _counts(folder, splits, classes)
    if not classes or not all(facts["records"].values()):
        facts["skipped"] = "no labelled records in every split"
        return result
    shares = draw_shares(splits["train"], config.label_shares, config.share_draws, config.seed)
    facts["label_shares_left_out"] = [share for share, _, parts in shares if not parts]
    beats = {name: median_beats(folder, part) for name, part in splits.items()}
    facts["records_without_beat"] = {name: int((~each.any(axis=1)).sum()) for name, each in beats.items()}
    trainings = [splits["train"], *(part for *_, parts in shares for part in parts)]
    methods, probes = _logits(renderer, folder, config, splits, trainings, beats, processes)
    arrays["seed"] = np.asarray(config.seed)
    for method in TRANSFERRED:
        arrays |= {f"{method}/{name}": values for name, values in vars(probes[method]).items()}
        arrays[f"{method}/test"] = methods[method][0]["test"]
    for split in ("validation", "test"):
        scores = {method: logits[0][split] for method, logits in methods.items()}
        draws = PatientBootstrap(splits[split].patient, config.bootstrap, config.seed)
        areas = class_areas(draws, splits[split], scores, classes)
        rows = probe_rows(splits[split], classes, areas, (MACRO, *classes))
        for row in rows:
            area = areas["model", row["class"]]
            row |= (area - areas[row["method"], row["class"]]).cells(*GAIN_COLUMNS)
            if row["method"] == "model":
                controls = {name: areas[name, row["class"]] for name in methods if name != "model"}
                row |= margin(area, controls, len(draws.names))
        result.tables["probe"] += [{"split": split, **row} for row in rows]
    result.tables["probe"].sort(key=lambda row: list(methods).index(row["method"]))
    of_parts = {name: logits[1:] for name, logits in methods.items()}
    bootstrap = config.bootstrap, config.seed
    result.tables["label_shares"] = label_efficiency(of_parts, splits["test"], shares, bootstrap)
    return result


def _counts(folder: WindowFolder, splits: Mapping[str, Records], classes: list[str]) -> dict[str, Any]:
    """The label system, and by split: records, patients, positives and windows without a label."""
    facts: dict[str, Any] = {"label_system": folder.meta.get("label_system", ""), "classes": classes}
    names = ("records", "patients", "positives", "positive_patients", "unlabelled_windows")
    facts |= {name: {} for name in names}
    for name, part in splits.items():
        patients = np.asarray(part.patient, dtype=str)
        having = {c: part.labels[:, i] > 0 for i, c in enumerate(classes)}
        counts = (
            len(patients),
            len(set(patients)),
            {c: int(rows.sum()) for c, rows in having.items()},
            {c: len(set(patients[rows])) for c, rows in having.items()},
            len(check_split(folder, name)) - len(part.rows),
        )
        for key, count in zip(names, counts, strict=True):
            facts[key][name] = count
    return facts


@dataclass
class _Context(Probing):
    """What all jobs share."""

    splits: dict[str, Records]
    config: LinearProbeConfig


def _train(context: _Context, part: Records) -> Logits:
    """A job: scores [1, m, C] of the network trained on some records."""
    config, splits = context.config, context.splits | {"train": part}
    epochs, size, seed = config.supervised_epochs, config.batch_size, config.seed + 1
    model, folder = context.models["model"], context.folders[""]
    logits = supervised_scores(model, folder, splits, epochs, size, seed)
    return {name: values[None] for name, values in logits.items()}


def _logits(
    renderer: Renderer,
    folder: WindowFolder,
    config: LinearProbeConfig,
    splits: dict[str, Records],
    trainings: Sequence[Records],
    beats: dict[str, Array],
    processes: int | str,
) -> tuple[dict[str, list[Logits]], dict[str, Probe]]:
    """(method -> scores of validation and test after each of the trainings: the model's features and every
    control; method -> the probe of the first training). beats: the median beats by split."""
    models = {"model": renderer, "random_encoder": renderer.random_copy(config.seed)}
    context = _Context(models, {"": folder}, splits, config)
    parts = [("", part) for part in splits.values()]
    # Trainings first, being the longest; while the last of them ends, features are computed beside it.
    places = batches(len(trainings) if config.supervised else 0, 1)
    tasks = [(_train, places, lambda at: trainings[at[0]]), *feature_tasks(models, parts, config.batch_size)]
    with Workers(context, renderer.device, processes) as workers:
        measured = workers.measure(tasks)
        supervised = dict(next(measured))
        of_splits = dict(zip(SPLITS, model_features(measured, models, parts), strict=True))
    features = {model: {split: of_split[model] for split, of_split in of_splits.items()} for model in models}
    projected = pca(beats["train"], [beats["validation"], beats["test"]], config.pca)
    features |= {"pca": dict(zip(SPLITS, projected, strict=True)), "median_beat": beats}
    probes = {name: [fit_part(each, splits, part) for part in trainings] for name, each in features.items()}
    methods = {name: [probe_logits(features[name], probe) for probe in each] for name, each in probes.items()}
    if config.supervised:
        methods["supervised"] = [
            {name: values[i] for name, values in supervised.items()} for i in range(len(trainings))
        ]
    return methods, {name: each[0] for name, each in probes.items()}


def fit_part(features: Mapping[str, Array], splits: Mapping[str, Records], part: Records) -> Probe:
    """A probe on features {split: [m, F]}, trained on some of the training records."""
    number = {record: at for at, record in enumerate(splits["train"].names)}
    train = features["train"][[number[name] for name in part.names]]
    return fit_probe((train, part.labels), (features["validation"], splits["validation"].labels))


def probe_logits(features: Mapping[str, Array], probe: Probe) -> Logits:
    """Its scores of the other splits, from features {split: [m, F]}."""
    return {split: probe.scores(features[split]) for split in ("validation", "test")}


def class_areas(
    draws: PatientBootstrap, records: Records, scores: Mapping[str, Array], classes: Sequence[str]
) -> Areas:
    """AUROC of every method (logits [m, C]) on the classes, those of records.labels, and their mean."""
    out: Areas = {}
    for method, logits in scores.items():
        areas = draws.auroc(records.labels > 0, logits)
        out |= {(method, name): area for name, area in zip(classes, areas, strict=True)}
        out[method, MACRO] = macro(areas)
    return out


def macro(areas: Sequence[Estimate]) -> Estimate:
    """Mean over the classes; one without a positive or a negative, in the split or in a draw, is left out."""
    values = nanmean(np.array([area.value for area in areas]))
    return Estimate(values, row_means(np.stack([area.draws for area in areas], axis=1)))


def probe_rows(records: Records, classes: Sequence[str], areas: Areas, names: Sequence[str]) -> Rows:
    """Rows of PROBE_COLUMNS, without the split, of every method and of the names, classes or MACRO.

    classes: those of records.labels.
    """
    labels = records.labels > 0
    counts = {"n_records": len(records.patient), "n_patients": len(set(records.patient))}
    rows: Rows = []
    for method in dict.fromkeys(method for method, _ in areas):
        for name in names:
            positive = labels.any(axis=1) if name == MACRO else labels[:, classes.index(name)]
            cells = areas[method, name].cells("auroc", "low", "high")
            row = {"method": method, "class": name, **cells, "n_positive": int(positive.sum())}
            rows.append(row | counts)
    return rows


def draw_records(labels: Array, count: int, rng: np.random.Generator) -> Array | None:
    """Sorted indices of `count` of the records of labels [m, C]; None where no draw holds every class."""
    there = labels > 0
    for _ in range(TRIES):
        chosen = np.sort(rng.permutation(len(labels))[:count])
        having = there[chosen].sum(axis=0)
        if (having >= FEWEST_RECORDS).all() and (count - having >= FEWEST_RECORDS).all():
            return chosen
    return None


def draw_shares(train: Records, shares: Sequence[float], draws: int, seed: int) -> list[Share]:
    """The draws that every method sees; none of a share that is too small to hold every class."""
    rng = np.random.default_rng(seed)
    out: list[Share] = []
    for share in shares:
        count = max(1, round(share * len(train.patient)))
        chosen = [draw_records(train.labels, count, rng) for _ in range(draws)]
        out.append((share, count, [train.chosen(part) for part in chosen if part is not None]))
    return out


def label_efficiency(
    methods: Mapping[str, Sequence[Logits]],
    test: Records,
    shares: Sequence[Share],
    bootstrap: tuple[int, int],
) -> Rows:
    """Rows of SHARE_COLUMNS for the test split.

    auroc: macro, mean over the draws, with a 95 % interval over patients; model_gain: how much higher that of
    "model" is, paired. methods: logits of the draws of all shares in order. bootstrap: (draws, seed) of the
    intervals.
    """
    draws = PatientBootstrap(test.patient, *bootstrap)
    logits = {name: iter(of_method) for name, of_method in methods.items()}
    rows: Rows = []
    for share, count, parts in shares:
        if not parts:
            continue
        means = {}
        for name in methods:
            each = [
                macro(draws.auroc(test.labels > 0, one["test"])) for one in islice(logits[name], len(parts))
            ]
            values, of_draws = zip(*each, strict=True)
            means[name] = Estimate(float(np.mean(values)), np.mean(of_draws, axis=0))
        for name, area in means.items():
            row = {"method": name, "share": share, "n_records": count, "draws": len(parts)}
            row |= area.cells("auroc", "low", "high")
            rows.append(row | (means["model"] - area).cells(*GAIN_COLUMNS))
    return rows
