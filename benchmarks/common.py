"""What several benchmarks share. To be imported before NumPy and torch: idle threads are to sleep."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Container, Sequence
from pathlib import Path

from ecggen.utils.threads import wait_passively

wait_passively()

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from ecggen.data.pipeline import WindowFolder  # noqa: E402
from ecggen.data.quality.electrodes import median_beat  # noqa: E402
from ecggen.data.quality.noise import CHECK_FS, bands_at_100  # noqa: E402
from ecggen.data.signal import fill_gaps, resample  # noqa: E402
from ecggen.data.tokenizer import detect_r_peaks  # noqa: E402
from ecggen.eval.bootstrap import PatientBootstrap  # noqa: E402
from ecggen.io.records import read_record  # noqa: E402
from ecggen.utils.files import read_csv  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params.yaml"
DATA = ROOT.parent / "shared" / "data"  # real records beside the checkout
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


def options(doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose --help prints the script's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, epilog=epilog, formatter_class=form)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Arguments CHECKPOINT WINDOWS [--split validation | test]."""
    out = options(doc)
    out.add_argument("checkpoint")
    out.add_argument("windows")
    out.add_argument("--split", choices=("validation", "test"), default="validation")
    return out


def complete_rows(folder: WindowFolder, split: str) -> NDArray[np.int64]:
    """Windows of a split in which all leads were recorded."""
    rows = folder.rows(split)
    return np.asarray(rows[folder.observed[rows].all(1)])


def read_windows(folder: WindowFolder, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n, 12, T] mV."""
    return np.asarray(folder.windows[rows], dtype=np.float32)


def patient_draws(folder: WindowFolder, rows: NDArray[np.int64]) -> PatientBootstrap:
    """Bootstrap over the patients of these windows."""
    return PatientBootstrap(np.asarray(folder.patient)[rows].tolist())


def median_beats(
    ecg: NDArray[np.float32], peaks: Sequence[NDArray[np.integer]], before: int, after: int
) -> NDArray[np.float64]:
    """[n, C, before + after]: median over the beats that lie whole in a window; NaN without one.

    ecg [n, C, T]; peaks: of each window, in samples; before and after a peak, in samples.
    """
    out = np.full((*ecg.shape[:2], before + after), np.nan)
    for i, (window, positions) in enumerate(zip(ecg, peaks, strict=True)):
        whole = [p for p in positions if before <= p <= ecg.shape[2] - after]
        if whole:
            out[i] = np.median([window[:, p - before : p + after] for p in whole], axis=0)
    return out


def whole_beats(ecg: NDArray[np.float32], lead: NDArray[np.float32], fs: float) -> NDArray[np.float64]:
    """[n, C, P]: median beats of ecg [n, C, T] around the R-peaks of lead [n, T] in mV; NaN without one."""
    peaks = [detect_r_peaks(signal, fs) for signal in lead]
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
