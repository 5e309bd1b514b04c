"""F1 and speed of the R-peak detector on annotated records, beside other detectors in the same run.

    python benchmarks/r_peaks.py [DATA] [--speed] [--rounds 5] [--sensitivity]

DATA holds mitdb/, ludb/data/ and cpsc2019/ (default ../shared/data). A detection within 75 ms of an annotated
beat is true, one to one (150 ms, the window of ANSI/AAMI EC57, in brackets); misses and false beats of all
records are added up.
- mitdb: first channel, all beats. Ventricular flutter between "[" and "]" is left out, as EC57 does; one row
  counts it as if it were silent instead.
- ludb: the first annotated beat to the last, because the outermost beats of a record carry no annotation. The
  annotations of a lead are those of its own.
- cpsc2019: 21 single leads that are hard for detectors.
- noise: beats per ten seconds that are found in noise alone.

Others: sleepecg, NeuroKit2 (pip install 'ecggen[peers]') and wfdb's xqrs, called as their documentation does.
They take one lead. The first table is the speed beside sleepecg's; --speed prints no other. --sensitivity
shows what each constant of the detector does, 20 % up and down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from common import DATA, options, section, table

import numpy as np
import torch

from ecggen.data import rpeaks
from ecggen.data.rpeaks import detect_r_peaks, detect_r_peaks_batch
from ecggen.leads import LEADS

TOLERANCES_S = (0.075, 0.15)
BEATS = frozenset("NLRBAaJSVrFejnE/fQ")
CONSTANTS = tuple(
    name
    for name, value in vars(rpeaks).items()
    if name.strip("_").isupper() and isinstance(value, float) and not name.startswith(("_PIECE", "_CONTEXT"))
)

Detector = Callable[[Any, float], Any]


@dataclass(frozen=True)
class Record:
    """signal [n_leads, n_samples] mV; truth: beats of each lead, in samples; ignored: spans (first, last)."""

    name: str
    fs: float
    leads: tuple[str, ...]
    signal: Any
    truth: dict[str, Any]
    ignored: tuple[tuple[int, int], ...] = ()
    open_ended: bool = False  # the outermost beats carry no annotation


def match(peaks: Any, truth: Any, tolerance: float) -> tuple[int, int, int]:
    """(true positives, missed, false) by pairing each beat with the nearest free detection in order."""
    true = i = j = 0
    while i < len(peaks) and j < len(truth):
        distance = peaks[i] - truth[j]
        if abs(distance) <= tolerance:
            true, i, j = true + 1, i + 1, j + 1
        elif distance < 0:
            i += 1
        else:
            j += 1
    return true, len(truth) - true, len(peaks) - true


def f1(counts: Any) -> float:
    """Of (true positives, missed, false)."""
    true, missed, false = counts
    return 2 * true / max(1, 2 * true + missed + false)


def read(path: Path, annotator: str) -> tuple[Any, Any, Any]:
    """A record of wfdb, the samples of its annotations and their symbols."""
    import wfdb

    name = str(path.with_suffix(""))
    notes = wfdb.rdann(name, annotator)
    return wfdb.rdrecord(name), notes.sample, np.array(notes.symbol)


def mitdb(root: Path) -> list[Record]:
    """The records of the MIT-BIH Arrhythmia Database below root."""
    out = []
    for path in sorted(root.glob("mitdb/*.atr")):
        record, sample, symbol = read(path, "atr")
        flutter = zip(*(sample[symbol == mark].tolist() for mark in "[]"), strict=True)
        leads = tuple(f"{i}" for i in range(record.n_sig))
        beats = dict.fromkeys(leads, sample[[s in BEATS for s in symbol]])
        out.append(Record(path.stem, float(record.fs), leads, record.p_signal.T, beats, tuple(flutter)))
    return out


def cpsc2019(root: Path) -> list[Record]:
    """The hard single leads of the China Physiological Signal Challenge 2019 below root."""
    out = []
    for path in sorted(root.glob("cpsc2019/*.atr")):
        record, sample, _ = read(path, "atr")
        out.append(Record(path.stem, float(record.fs), ("0",), record.p_signal.T, {"0": sample}))
    return out


def ludb(root: Path) -> list[Record]:
    """The records of the Lobachevsky University Database below root."""
    out = []
    for path in sorted(root.glob("ludb/data/*.hea"), key=lambda p: int(p.stem)):
        truth = {}
        for lead in map(str.lower, LEADS):
            record, sample, symbol = read(path, lead)
            truth[lead] = sample[symbol == "N"]
        signal, fs = record.p_signal.T, float(record.fs)
        leads = tuple(name.lower() for name in record.sig_name)
        out.append(Record(path.stem, fs, leads, signal, truth, open_ended=True))
    return out


def score(
    record: Record, lead: str, peaks: Any, tolerance_s: float, flutter: bool = False
) -> tuple[int, int, int]:
    """Counts of the peaks of one record, against the beats of a lead; flutter: counted as silence."""
    slack = tolerance_s * record.fs
    truth = record.truth[lead]
    for first, last in () if flutter else record.ignored:
        peaks = peaks[(peaks < first) | (peaks > last)]
        truth = truth[(truth < first) | (truth > last)]
    if record.open_ended and len(truth):
        peaks = peaks[(peaks >= truth.min() - slack) & (peaks <= truth.max() + slack)]
    return match(peaks, truth, slack)


def total(records: list[Record], detector: Detector, lead: str, *, every: bool = False, **how: Any) -> Any:
    """Counts [len(TOLERANCES_S), 3] of a detector given one lead, or every one, of all records."""
    out = np.zeros((len(TOLERANCES_S), 3), dtype=int)
    for record in records:
        signal = record.signal if every else record.signal[record.leads.index(lead)]
        peaks = np.asarray(detector(np.ascontiguousarray(signal), record.fs))
        out += [score(record, lead, peaks, tolerance, **how) for tolerance in TOLERANCES_S]
    return out


def detectors() -> dict[str, Detector | None]:
    """One-lead detectors by name; None: not installed."""

    def neurokit(x: Any, fs: float) -> Any:
        import neurokit2

        try:
            clean = neurokit2.ecg_clean(x, sampling_rate=fs)
            return neurokit2.ecg_peaks(clean, sampling_rate=fs)[1]["ECG_R_Peaks"]
        except (ValueError, IndexError, ZeroDivisionError):  # how it says that it found no beat
            return np.zeros(0, dtype=int)

    def sleepecg(x: Any, fs: float) -> Any:
        from sleepecg import detect_heartbeats

        return detect_heartbeats(x, fs)

    def xqrs(x: Any, fs: float) -> Any:
        from wfdb.processing import xqrs_detect

        return xqrs_detect(x, fs, verbose=False)

    return {
        "ecggen": detect_r_peaks,
        "sleepecg": sleepecg if find_spec("sleepecg") else None,
        "NeuroKit2": neurokit if find_spec("neurokit2") else None,
        "wfdb xqrs": xqrs,
    }


def cell(counts: Any) -> str:
    """F1 at 75 ms and, in brackets, at 150 ms."""
    return f"{f1(counts[0]):.4f} ({f1(counts[1]):.4f})"


def compare(rows: list[tuple[str, list[Record], str, dict[str, Any]]]) -> str:
    """A line per (title, records, lead, how), a column per detector and one for all leads together."""
    others = detectors()
    lines = []
    for title, records, lead, how in rows:
        cells = [
            cell(total(records, detector, lead, **how)) if detector else "not installed"
            for detector in others.values()
        ]
        cells.insert(1, cell(total(records, detect_r_peaks, lead, every=True, **how)))
        lines.append([title, *cells])
    names = list(others)
    return table(["F1 at 75 ms (150 ms)", names[0], "ecggen, all leads", *names[1:]], lines)


def against_sleepecg(arrhythmia: list[Record], short: list[Record], rounds: int) -> str:
    """Two ratios of speed to sleepecg's detector, which is written in C; one thread, CPU time.

    Both get every lead by itself: the twelve leads of all short records, for ecggen in one batch, and the
    first of each long one. The ratio is the median over rounds in which the two take turns.
    """
    torch.set_num_threads(1)
    peer = detectors()["sleepecg"]
    if peer is None:
        return "sleepecg is not installed: pip install 'ecggen[peers]'\n"
    length = min(record.signal.shape[1] for record in short)
    rows = np.concatenate([record.signal[:, :length] for record in short])
    batch = torch.tensor(rows, dtype=torch.float32)
    long = [np.ascontiguousarray(record.signal[0]) for record in arrhythmia]
    fast, slow = short[0].fs, arrhythmia[0].fs
    leads = short[0].leads
    ways: list[tuple[str, str, float, Callable[[], Any], Callable[[], Any], Callable[[Detector], Any]]] = [
        (
            f"{len(short)} windows of {length / fast:.0f} s, {len(leads)} leads, {fast:.0f} Hz, one batch",
            ">= 1.0",
            rows.size / fast,
            lambda: detect_r_peaks_batch(batch, fast),
            lambda: [peer(row, fast) for row in rows],
            lambda detector: sum(total(short, detector, lead) for lead in leads),
        ),
        (
            f"{len(long)} x half an hour, one lead, {slow:.0f} Hz",
            ">= 0.5",
            sum(len(x) for x in long) / slow,
            lambda: [detect_r_peaks(x, slow) for x in long],
            lambda: [peer(x, slow) for x in long],
            lambda detector: total(arrhythmia, detector, "0"),
        ),
    ]
    lines = []
    for title, goal, seconds, ours, theirs, counts in ways:
        took = np.empty((rounds + 1, 2))
        for turn in range(rounds + 1):  # the first warms up
            for at, way in enumerate((ours, theirs)):
                began = time.process_time()
                way()
                took[turn, at] = time.process_time() - began
        times = float(np.median(took[1:, 1] / took[1:, 0]))
        speeds = [f"{seconds / value:,.0f}" for value in np.median(took[1:], axis=0)]
        scores = [cell(counts(detector)) for detector in (detect_r_peaks, peer)]
        lines.append([title, *speeds, f"{times:.2f}", goal, *scores])
    head = ["seconds of a lead per second", "ecggen", "sleepecg", "ratio", "goal"]
    return table([*head, "F1 of ecggen, 75 ms (150 ms)", "of sleepecg"], lines)


def false_beats(fs: float = 500.0, count: int = 20) -> str:
    """Beats that each detector finds in ten seconds of noise, mean over rows."""
    rng = np.random.default_rng(0)
    hertz = np.fft.rfftfreq(round(10 * fs), 1 / fs)
    bands = {"white": (0.05, 250, 0.0), "muscle, from 15 Hz": (15, 150, 0.0), "motion, 1/f": (0.5, 10, -1.0)}
    lines = []
    for name, (low, high, slope) in bands.items():
        gain = np.where((hertz >= low) & (hertz <= high), np.maximum(hertz, low) ** slope, 0.0)
        x = np.fft.irfft(gain * np.exp(2j * np.pi * rng.random((count, len(hertz)))), round(10 * fs))
        x *= 0.05 / x.std(axis=1, keepdims=True)
        cells = [
            f"{np.mean([len(detector(row, fs)) for row in x]):.1f}" if detector else "not installed"
            for detector in detectors().values()
        ]
        lines.append([f"{name}, 50 uV", *cells])
    return table(["false beats in 10 s", *detectors()], lines)


def sensitivity(hard: list[Record], arrhythmia: list[Record], short: list[Record]) -> str:
    """F1 at 75 ms with each constant 20 % lower and higher."""

    def figures() -> list[str]:
        values = [total(records, detect_r_peaks, "0") for records in (hard, arrhythmia)]
        values.append(sum(total(short, detect_r_peaks, lead) for lead in short[0].leads))
        return [f"{f1(counts[0]):.4f}" for counts in values]

    lines = [["as it is", "", *figures()]]
    for name in CONSTANTS:
        for factor in (0.8, 1.2):
            value = factor * getattr(rpeaks, name)
            with mock.patch.object(rpeaks, name, value):
                lines.append([name.strip("_").lower(), f"{value:.4g}", *figures()])
    return table(["constant", "value", "cpsc2019", "mitdb, lead 0", "ludb, each lead"], lines)


def main() -> int:
    """Print the tables."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--speed", action="store_true", help="the ratios of speed to sleepecg alone")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    root = arguments.data
    hard, arrhythmia, short = cpsc2019(root), mitdb(root), ludb(root)
    if not arrhythmia or not short:
        print(f"error: no mitdb or no ludb record below {root}: name their folder.", file=sys.stderr)
        return 1
    print(section("R-peaks", sys.argv))
    print(against_sleepecg(arrhythmia, short, arguments.rounds))
    if arguments.speed:
        return 0
    rows: list[tuple[str, list[Record], str, dict[str, Any]]] = [
        ("cpsc2019", hard, "0", {}),
        ("mitdb, lead 0", arrhythmia, "0", {}),
        ("mitdb, lead 0, flutter counted as silence", arrhythmia, "0", {"flutter": True}),
        *((f"ludb, lead {lead}", short, lead, {}) for lead in short[0].leads),
    ]
    print(compare(rows))
    print(false_beats())
    if arguments.sensitivity:
        print(sensitivity(hard, arrhythmia, short))
    return 0


if __name__ == "__main__":
    sys.exit(main())
