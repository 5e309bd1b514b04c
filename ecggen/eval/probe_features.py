"""What the linear probe reads, one vector per record: model features and controls without a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ecggen.data.tokenizer import detect_r_peaks_batch
from ecggen.eval.lead_sets import given_only
from ecggen.eval.result import Array, FolderLike, RendererLike, check_split, sampling_rate
from ecggen.eval.spread import Spread
from ecggen.leads import INDEPENDENT_INDEX, LEADS
from ecggen.utils.files import iter_csv

BEFORE_S, AFTER_S = 0.25, 0.45  # of the median beat, around the R-peak
BLOCK = 128  # windows read at a time
MACRO = "macro"  # the mean over classes, where tables name a class
PER_WINDOW = "beats"  # the label system that says something of each window


@dataclass(frozen=True)
class Records:
    """Labelled records of one split. m records, n windows.

    Where labels belong to windows, not to records (beat types), each window stands for itself.
    """

    split: str
    rows: Array  # [n] rows of the folder
    code: Array  # [n] which record a row belongs to
    names: list[str]  # [m]
    patient: list[str]  # [m]
    labels: Array  # [m, C] 0/1

    def chosen(self, records: Array) -> Records:
        """The same with only these records [k], ascending."""
        at = np.searchsorted(records, self.code)
        keep = records[np.minimum(at, len(records) - 1)] == self.code
        names, patient = ([of_record[r] for r in records] for of_record in (self.names, self.patient))
        return Records(self.split, self.rows[keep], at[keep], names, patient, self.labels[records])

    def average(self, values: Array) -> Array:
        """Per-window values [n, ...] -> per-record means [m, ...]."""
        out = np.zeros((len(self.patient), *values.shape[1:]))
        np.add.at(out, self.code, values)
        count = np.bincount(self.code, minlength=len(out)).reshape(-1, *[1] * (values.ndim - 1))
        return out / count


def labelled_records(folder: FolderLike, split: str) -> Records:
    """Records of a split that carry labels. Raises EvalError when the split is empty."""
    rows = check_split(folder, split)
    valid = getattr(folder, "label_valid", None)
    if valid is not None:
        rows = rows[np.asarray(valid, dtype=bool)[rows]]
    names = np.asarray(folder.record, dtype=str)[rows]
    if folder.meta.get("label_system") == PER_WINDOW:
        names = np.array([f"{name}#{row}" for name, row in zip(names, rows, strict=True)])
    found, first, code = np.unique(names, return_index=True, return_inverse=True)
    patient = np.asarray(folder.patient, dtype=str)[rows[first]].tolist()
    labels = np.asarray(folder.labels)[rows[first]].astype(np.float32)
    return Records(split, rows, code.reshape(-1), found.tolist(), patient, labels)


def record_labels(folder: FolderLike) -> dict[str, frozenset[str]]:
    """Record -> all its labels: the column `labels` of index.csv where there is one, else the classes'.

    The index holds labels that too few training patients have to be a class, or that a folder without a
    training split has no classes for.
    """
    path = folder.root / "index.csv"
    found: dict[str, frozenset[str]] = {}
    different: dict[str, frozenset[str]] = {}  # there are few
    for row in iter_csv(path) if path.is_file() else ():
        if "labels" not in row:
            break
        text = row["labels"] or ""
        found[row["record"]] = different.setdefault(text, frozenset(filter(None, text.split(";"))))
    if found:
        return found
    classes = [str(name) for name in folder.label_classes]
    valid = np.asarray(getattr(folder, "label_valid", np.ones(len(folder.record))), dtype=bool)
    labels = np.asarray(folder.labels)
    return {
        str(record): frozenset(classes[c] for c in np.flatnonzero(labels[i]) if valid[i])
        for i, record in enumerate(folder.record)
    }


def model_features(renderer: RendererLike, folder: FolderLike, records: Records, batch_size: int) -> Array:
    """[m, F], frozen features averaged over a record's windows."""
    cuts = window_cuts(records, batch_size)
    return averaged(records, cuts, (window_features(renderer, folder, records.rows[at]) for at in cuts))


def window_cuts(records: Records, most: int) -> list[slice]:
    """Places of the windows of records, at most so many together."""
    return [slice(at, at + most) for at in range(0, len(records.rows), most)]


def window_features(renderer: RendererLike, folder: FolderLike, rows: Array) -> Array:
    """[k, F], frozen features of rows [k] of a folder, from their recorded leads."""
    observed = np.asarray(folder.observed[rows], dtype=bool)
    ecg = given_only(np.asarray(folder.windows[rows]), observed)
    return np.asarray(renderer.embed_windows(ecg, observed, batch_size=len(rows)))


@dataclass
class Featured:
    """Models and folders by name: what the jobs of `spread_features` share."""

    models: Mapping[str, RendererLike]
    folders: Mapping[str, FolderLike]


FeatureJob = tuple[str, str, Array]  # model, folder, rows [k] of it
Wanted = Sequence[tuple[str, str, Records]]  # model, folder, records of it


def spread_features(spread: Spread[Featured], wanted: Wanted, most: int) -> Iterator[Array]:
    """[m, F] for every (model, folder, records) that is wanted, in order; a job for each `most` windows."""
    return joined_features(spread.map(features_of, feature_jobs(wanted, most)), wanted, most)


def feature_jobs(wanted: Wanted, most: int) -> list[FeatureJob]:
    """The jobs of `features_of` that make what is wanted, at most so many windows each."""
    return [
        (model, folder, records.rows[at])
        for model, folder, records in wanted
        for at in window_cuts(records, most)
    ]


def features_of(context: Featured, job: FeatureJob) -> Array:
    """[k, F] of the rows of a job."""
    model, folder, rows = job
    return window_features(context.models[model], context.folders[folder], rows)


def joined_features(found: Iterator[Array], wanted: Wanted, most: int) -> Iterator[Array]:
    """[m, F] for everything wanted, from what its jobs have found, in order."""
    for _, _, records in wanted:
        cuts = window_cuts(records, most)
        yield averaged(records, cuts, itertools.islice(found, len(cuts)))


def averaged(records: Records, cuts: Iterable[slice], parts: Iterable[Array]) -> Array:
    """[m, ...], means over each record's windows of values [k, ...] that come cut by cut."""
    total: Array | None = None
    for at, part in zip(cuts, parts, strict=True):
        if total is None:
            total = np.zeros((len(records.patient), *part.shape[1:]))
        np.add.at(total, records.code[at], part.astype(np.float64))
    assert total is not None, "no window"
    return total / np.bincount(records.code, minlength=len(total)).reshape(-1, *[1] * (total.ndim - 1))


def median_beats(folder: FolderLike, records: Records) -> Array:
    """[m, 8 * beat samples] mV: the median over all beats of a record, independent leads, aligned at R.

    R-peaks come from lead II, or from the first recorded lead; a record without a whole beat gives zeros.
    """
    fs = sampling_rate(folder)
    before, after = round(BEFORE_S * fs), round(AFTER_S * fs)
    out = np.zeros((len(records.patient), len(INDEPENDENT_INDEX) * (before + after)))
    order = np.argsort(records.code, kind="stable")
    found: list[Array] = []  # beats of the record that is being read
    for at in range(0, len(order), BLOCK):
        rows, codes = records.rows[order[at : at + BLOCK]], records.code[order[at : at + BLOCK]]
        seen = np.asarray(folder.observed[rows], dtype=bool)
        ecg = given_only(np.asarray(folder.windows[rows]), seen)
        peaks = window_peaks(ecg[np.arange(len(ecg)), reference_lead(seen)], fs)
        following = np.append(codes[1:], records.code[order[at + BLOCK]] if at + BLOCK < len(order) else -1)
        for window, own, known, code, after_it in zip(ecg, peaks, seen, codes, following, strict=True):
            for peak in own if known.any() else ():
                if before <= peak <= window.shape[1] - after:
                    found.append(window[list(INDEPENDENT_INDEX), peak - before : peak + after])
            if after_it != code:
                if found:
                    out[code] = np.median(np.stack(found), axis=0).reshape(-1)
                found = []
    return out


def reference_lead(observed: Array) -> Array:
    """[n], the lead that R-peaks are read from: II, or else the first of observed [n, 12]."""
    second = LEADS.index("II")
    return np.where(observed[:, second], second, observed.argmax(axis=1))


def window_peaks(signal: Array, fs: float) -> list[Array]:
    """R-peaks of each window of one lead, signal [n, T] mV."""
    x = torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32))
    positions, valid = (found.numpy() for found in detect_r_peaks_batch(x, fs))
    return [own[good] for own, good in zip(positions, valid, strict=True)]


def pca(train: Array, others: list[Array], components: int) -> list[Array]:
    """Principal components of [m, F], fitted on train: [train projected, *others projected]."""
    mean = train.mean(axis=0)
    # A beat has a few hundred numbers: the exact decomposition is cheap, a randomised one buys nothing.
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    return [(x - mean) @ axes[:components].T for x in (train, *others)]
