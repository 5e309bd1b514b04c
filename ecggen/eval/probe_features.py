"""What the linear probe reads, one vector per record: model features and controls without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ecggen.data.tokenizer import detect_r_peaks_batch
from ecggen.eval.lead_sets import recorded_windows
from ecggen.eval.result import Array, Renderer, WindowFolder, check_split, index_column
from ecggen.eval.workers import Measured, Task, row_task
from ecggen.leads import INDEPENDENT_INDEX, LEADS
from ecggen.utils.display import track

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


def grouped(folder: WindowFolder, split: str, rows: Array, names: Array, labels: Array) -> Records:
    """Records from their windows: names and labels [n, ...] of rows [n]."""
    distinct, first, code = np.unique(names, return_index=True, return_inverse=True)
    patient = np.asarray(folder.patient, dtype=str)[rows[first]].tolist()
    return Records(
        split, rows, code.reshape(-1), distinct.tolist(), patient, labels[first].astype(np.float32)
    )


def labelled_records(folder: WindowFolder, split: str) -> Records:
    """Records of a split that carry labels. Raises EvalError when the split is empty."""
    rows = check_split(folder, split)
    rows = rows[np.asarray(folder.label_valid, dtype=bool)[rows]]
    names = np.asarray(folder.record, dtype=str)[rows]
    if folder.meta.get("label_system") == PER_WINDOW:
        names = np.array([f"{name}#{row}" for name, row in zip(names, rows, strict=True)])
    return grouped(folder, split, rows, names, np.asarray(folder.labels)[rows])


def record_labels(folder: WindowFolder) -> dict[str, frozenset[str]]:
    """Record -> all its labels: the column `labels` of index.csv where there is one, else the classes'.

    The index holds labels that too few training patients have to be a class, or that a folder without a
    training split has no classes for.
    """
    texts = index_column(folder, "labels")
    if texts:
        sets = {
            text: frozenset(filter(None, text.split(";"))) for text in set(texts.values())
        }  # there are few
        return {record: sets[text] for record, text in texts.items()}
    classes = [str(name) for name in folder.label_classes]
    labels = np.asarray(folder.labels)
    return {
        str(record): frozenset(classes[c] for c in np.flatnonzero(labels[i]) if folder.label_valid[i])
        for i, record in enumerate(folder.record)
    }


@dataclass
class Probing:
    """What all jobs share: models and folders by name."""

    models: Mapping[str, Renderer]
    folders: Mapping[str, WindowFolder]


def embed(context: Probing, job: tuple[str, str, Array]) -> dict[str, Array]:
    """A job: frozen features [k, F] by a model of rows [k] of a folder, from their recorded leads."""
    model, folder, rows = job
    ecg, observed = recorded_windows(context.folders[folder], rows)
    return {"features": context.models[model].embed_windows(ecg, observed, batch_size=len(rows))}


def feature_tasks(models: Iterable[str], parts: Sequence[tuple[str, Records]], most: int) -> list[Task]:
    """What measures the features of the records of each (folder, records); most: windows of a job."""
    return [row_task(embed, part.rows, most, model, folder) for folder, part in parts for model in models]


def model_features(
    measured: Iterator[Measured], models: Iterable[str], parts: Sequence[tuple[str, Records]]
) -> Iterator[dict[str, Array]]:
    """Model -> [m, F] of each of the parts, means over the windows of a record, from what was measured."""
    for _, part in parts:
        yield {model: part.average(next(measured)["features"]) for model in models}


def median_beats(folder: WindowFolder, records: Records) -> Array:
    """[m, 8 * beat samples] mV: the median over all beats of a record, independent leads, aligned at R.

    R-peaks come from lead II, or from the first recorded lead; a record without a whole beat gives zeros.
    """
    fs = folder.fs
    before, after = round(BEFORE_S * fs), round(AFTER_S * fs)
    out = np.zeros((len(records.patient), len(INDEPENDENT_INDEX) * (before + after)))
    order = np.argsort(records.code, kind="stable")
    last = np.append(np.diff(records.code[order]) > 0, True)  # windows that end their record
    beats: list[Array] = []  # of the record that is being read
    for at in track("median beats, blocks", range(0, len(order), BLOCK), -(-len(order) // BLOCK)):
        places = order[at : at + BLOCK]
        rows, codes = records.rows[places], records.code[places]
        ecg, observed = recorded_windows(folder, rows)
        peaks = window_peaks(ecg[np.arange(len(ecg)), reference_lead(observed)], fs)
        for window, positions, code, ends in zip(ecg, peaks, codes, last[at : at + BLOCK], strict=True):
            whole = positions[(positions >= before) & (positions <= window.shape[1] - after)]
            beats += [window[list(INDEPENDENT_INDEX), peak - before : peak + after] for peak in whole]
            if ends:
                if beats:
                    out[code] = np.median(np.stack(beats), axis=0).reshape(-1)
                beats = []
    return out


def reference_lead(observed: Array) -> Array:
    """[n], the lead that R-peaks are read from: II, or else the first of observed [n, 12]."""
    second = LEADS.index("II")
    return np.where(observed[:, second], second, observed.argmax(axis=1))


def window_peaks(signal: Array, fs: float) -> list[Array]:
    """R-peaks of each window of one lead, signal [n, T] mV."""
    x = torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32))
    positions, valid = (peaks.numpy() for peaks in detect_r_peaks_batch(x, fs))
    return [peaks[good] for peaks, good in zip(positions, valid, strict=True)]


def pca(train: Array, others: list[Array], components: int) -> list[Array]:
    """Principal components of [m, F], fitted on train: [train projected, *others projected]."""
    mean = train.mean(axis=0)
    # A beat has a few hundred numbers: the exact decomposition is cheap, a randomised one buys nothing.
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    return [(x - mean) @ axes[:components].T for x in (train, *others)]
