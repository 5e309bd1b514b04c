"""Functions that several benchmarks use: arguments, median beats, tables in Markdown."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.electrodes import median_beat
from ecggen.data.quality.noise import CHECK_FS, bands_at_100
from ecggen.data.signal import fill_gaps, resample
from ecggen.data.tokenizer import detect_r_peaks
from ecggen.io.records import read_record
from ecggen.utils.files import read_csv

BEFORE_S, AFTER_S = 0.3, 0.6  # of a whole beat, around R


def short(value: float, signed: bool = False) -> str:
    """Three digits, no zero in front: .123, -.123; with a plus sign where `signed`."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def interval(values: Sequence[float], signed: bool = False) -> str:
    """(mean, low, high) as ".123 [.120, .126]"."""
    mean, low, high = (short(value, signed) for value in values)
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; ends with a line feed. Raises ValueError for a row of another length."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"A row of {len(row)} cells below {len(head)} columns: {list(row)}.")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def section(title: str, argv: Sequence[str]) -> str:
    """A heading and the command that made what follows; argv: as sys.argv, the script first."""
    return f"## {title}\n\n```sh\npython {shlex.join(argv)}\n```\n"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Arguments CHECKPOINT WINDOWS [--split validation | test]; doc: the script's own, printed by --help."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("checkpoint")
    out.add_argument("windows")
    out.add_argument("--split", choices=("validation", "test"), default="validation")
    return out


def median_beats(
    ecg: NDArray[np.float32], peaks: Sequence[NDArray[np.integer]], before: int, after: int
) -> NDArray[np.float64]:
    """[n, C, before + after]: median over the beats that lie whole in a window; NaN without one.

    ecg [n, C, T]; peaks: of each window, in samples; before and after a peak, in samples.
    """
    out = np.full((*ecg.shape[:2], before + after), np.nan)
    for i, (window, found) in enumerate(zip(ecg, peaks, strict=True)):
        whole = [p for p in found if before <= p <= ecg.shape[2] - after]
        if whole:
            out[i] = np.median([window[:, p - before : p + after] for p in whole], axis=0)
    return out


def whole_beats(ecg: NDArray[np.float32], lead: NDArray[np.float32], fs: float) -> NDArray[np.float64]:
    """[n, C, P]: median beats of ecg [n, C, T] around the R-peaks of lead [n, T] in mV; NaN without one."""
    peaks = [detect_r_peaks(own, fs) for own in lead]
    return median_beats(ecg, peaks, round(BEFORE_S * fs), round(AFTER_S * fs))


def ptbxl_beats(
    root: Path, folds: Container[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[dict[str, str]]]:
    """(median beats [n, 12, T] in mV, folds [n], rows of the table) of root/ptbxl's 100 Hz records.

    Beats are those that swapped electrodes are looked for in; records with too few of them are left out.
    """
    beats, numbers, rows = [], [], []
    for row in read_csv(root / "ptbxl" / "ptbxl_database.csv"):
        if int(row["strat_fold"]) not in folds:
            continue
        recording = read_record(root / "ptbxl" / row["filename_lr"])
        filled = np.stack([fill_gaps(lead, 0)[0] for lead in recording.ecg])
        slow = resample(filled, recording.fs, CHECK_FS)
        bands = bands_at_100(slow)
        beat = median_beat(bands.beat, bands.qrs, recording.observed)
        if beat is not None:
            beats.append(beat)
            numbers.append(int(row["strat_fold"]))
            rows.append(row)
    return np.stack(beats), np.array(numbers, dtype=np.int64), rows
