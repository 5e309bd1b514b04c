"""Is W quasi-static? Two recordings of one heart against recordings of others.

ICC(1,1), one-way random effects (Shrout & Fleiss, Psychol Bull 86 (1979) 420), per component; and how often
the nearest other recording belongs to the same heart, beside the chance of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ecggen.eval.metrics import nanmean, nanmedian
from ecggen.eval.personal import half_pairs, record_pairs
from ecggen.eval.probe_features import Records, median_beats, pca
from ecggen.eval.result import Array, Renderer, Rows, WindowFolder, check_split
from ecggen.leads import INDEPENDENT_INDEX
from ecggen.utils.config import ReconstructionConfig

STATE_COLUMNS = (
    *("split", "descriptor", "protocol", "icc_mean", "icc_median", "dimensions", "constant_dimensions"),
    *("retrieval", "chance", "n", "n_patients"),
)
STATE_DESCRIPTORS = ("state", "second_moments")  # what is measured of windows
COMPONENTS = 128  # of the beats, as many as the trained part of the state has by default
FITTED_ON = 1000  # training windows, at most

Pair = tuple[Array, Array]  # rows of the folder, side by side


def icc(values: Array) -> Array:
    """[subjects, k, S] -> [S], (MSB - MSW) / (MSB + (k - 1) MSW); NaN where nothing varies."""
    subjects, k, _ = values.shape
    assert subjects >= 2 and k >= 2, f"ICC needs two subjects with two values each, not {values.shape}"
    values = values.astype(np.float64)
    means = values.mean(axis=1)
    between = k * ((means - means.mean(axis=0)) ** 2).sum(axis=0) / (subjects - 1)
    within = ((values - means[:, None]) ** 2).sum(axis=(0, 1)) / (subjects * (k - 1))
    bottom = between + (k - 1) * within
    good = bottom > 1e-20
    return np.where(good, (between - within) / np.where(good, bottom, 1), np.nan)


def retrieval(query: Array, candidates: Array, query_key: Array, candidate_key: Array) -> tuple[float, float]:
    """(share of queries whose nearest candidate has the same key, the same by chance).

    query [q, S], candidates [c, S]: cosine after standardising by the candidates.
    """
    mean, sd = candidates.mean(axis=0), candidates.std(axis=0)
    keep = sd > 1e-9
    if not keep.any():
        return float("nan"), float("nan")
    a, b = ((x[:, keep] - mean[keep]) / sd[keep] for x in (query, candidates))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    same = np.asarray(query_key)[:, None] == np.asarray(candidate_key)[None]
    nearest = (a @ b.T).argmax(axis=1)
    return float(same[np.arange(len(a)), nearest].mean()), float(same.mean())


def second_moments(ecg: Array) -> Array:
    """[n, 36], square-rooted second moments of the eight independent leads: a descriptor without a model."""
    x = ecg[:, list(INDEPENDENT_INDEX)].astype(np.float64)
    above = np.triu_indices(x.shape[1])
    flat = (x @ x.transpose(0, 2, 1) / x.shape[2])[:, above[0], above[1]]
    return np.sign(flat) * np.sqrt(np.abs(flat))


def beat_components(folder: WindowFolder, rows: Array) -> Array | None:
    """[n, components] principal components of the median beats of windows, fitted on the training split; None
    where there is none."""

    def beats(chosen: Array) -> Array:
        patients = [str(folder.patient[row]) for row in chosen]
        each = np.arange(len(chosen))
        return median_beats(folder, Records("", chosen, each, patients, patients, np.zeros((len(each), 0))))

    train = folder.rows("train")
    if not len(train):
        return None
    train = train[:: max(1, len(train) // FITTED_ON)]
    return pca(beats(train), [beats(rows)], COMPONENTS)[1]


def stability_pairs(folder: WindowFolder, config: ReconstructionConfig) -> dict[str, Pair]:
    """Two windows of one heart of the test split by protocol, each of two hearts or more."""
    rows = check_split(folder, "test")
    halves = half_pairs(folder, rows)
    chosen = np.random.default_rng(config.seed).permutation(len(halves.test))[: config.state_records]
    chosen.sort()
    later = record_pairs(folder, rows)
    # One pair per patient: its earliest record and the first window of the next one.
    _, first = np.unique(later.reference, return_index=True)
    pairs = {
        "windows": (halves.reference[chosen], halves.test[chosen]),
        "records": (later.reference[first], later.test[first]),
    }
    return {protocol: pair for protocol, pair in pairs.items() if len(pair[0]) >= 2}


def state_stability(
    renderer: Renderer,
    folder: WindowFolder,
    pairs: dict[str, Pair],
    rows: Array,
    measured: Mapping[str, Array],
) -> Rows:
    """Rows of the table `state` from the pairs of `stability_pairs`.

    measured: "state" [k, S] and "second_moments" [k, 36] of their rows [k], ascending.
    """
    if not pairs:
        return []
    descriptors = {name: values.astype(np.float64) for name, values in measured.items()}
    trained, state = getattr(getattr(renderer.model, "fast", None), "size", 0), descriptors["state"]
    if 0 < trained < state.shape[1]:  # what test-time training estimates, and what is remembered
        parts = {"state_trained": state[:, :trained], "state_memory": state[:, trained:]}
        descriptors = {"state": descriptors.pop("state")} | parts | descriptors
    components = beat_components(folder, rows)
    if components is not None:
        descriptors["beat_pca"] = components
    out: Rows = []
    for protocol, pair in pairs.items():
        key = folder.record if protocol == "windows" else folder.patient
        first, second = (np.asarray([str(key[row]) for row in side]) for side in pair)
        patients = {str(folder.patient[row]) for row in np.concatenate(pair)}
        for descriptor, values in descriptors.items():
            a, b = (values[np.searchsorted(rows, side)] for side in pair)
            row: dict[str, Any] = {"split": "test", "descriptor": descriptor, "protocol": protocol}
            row |= {"dimensions": values.shape[1], "n": len(a), "n_patients": len(patients)}
            out.append(row | _likeness(a, b, first, second))
    return out


def _likeness(a: Array, b: Array, first: Array, second: Array) -> dict[str, float]:
    """How alike two values [n, S] of each heart are; first, second [n]: the hearts, in their order."""
    components = icc(np.stack([a, b], axis=1))
    forth, chance = retrieval(a, b, first, second)
    back, _ = retrieval(b, a, second, first)
    return {
        "icc_mean": nanmean(components),
        "icc_median": nanmedian(components),
        "constant_dimensions": int((~np.isfinite(components)).sum()),
        "retrieval": (forth + back) / 2,
        "chance": chance,
    }
