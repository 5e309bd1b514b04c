"""Sensitivity and positive predictive value of the R-peak detector, per record.

    python benchmarks/r_peaks.py [DATA]       DATA holds mitdb/ and ludb/data/ (default ../shared/data)

A detection within 150 ms of an annotated beat is true (ANSI/AAMI EC57), one to one. mitdb: first channel,
360 Hz, 30 minutes; ventricular flutter between "[" and "]" is left out, as EC57 does. ludb: 500 Hz, 10 s,
between the first and the last annotated beat, because the outermost beats carry no annotation.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from ecggen.data.rpeaks import detect_r_peaks

TOLERANCE_S = 0.15
BEATS = frozenset("NLRBAaJSVrFejnE/fQ")


def match(found: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[int, int, int]:
    """(true positives, missed, false) by pairing each beat with the nearest free detection in order."""
    true = i = j = 0
    while i < len(found) and j < len(truth):
        distance = found[i] - truth[j]
        if abs(distance) <= tolerance:
            true, i, j = true + 1, i + 1, j + 1
        elif distance < 0:
            i += 1
        else:
            j += 1
    return true, len(truth) - true, len(found) - true


def score_mitdb(path: Path) -> tuple[int, int, int]:
    """One record of the MIT-BIH Arrhythmia Database."""
    import wfdb

    record = wfdb.rdrecord(str(path))
    notes = wfdb.rdann(str(path), "atr")
    symbol = np.array(notes.symbol)
    found = detect_r_peaks(record.p_signal[:, 0], record.fs)
    truth = notes.sample[[s in BEATS for s in symbol]]
    for start, stop in zip(notes.sample[symbol == "["], notes.sample[symbol == "]"], strict=True):
        found = found[(found < start) | (found > stop)]
        truth = truth[(truth < start) | (truth > stop)]
    return match(found, truth, TOLERANCE_S * record.fs)


def score_ludb(path: Path, lead: str) -> tuple[int, int, int]:
    """One lead of one record of the Lobachevsky University Database."""
    import wfdb

    record = wfdb.rdrecord(str(path))
    notes = wfdb.rdann(str(path), lead)
    truth = notes.sample[np.array(notes.symbol) == "N"]
    column = [name.lower() for name in record.sig_name].index(lead)
    found = detect_r_peaks(record.p_signal[:, column], record.fs)
    slack = TOLERANCE_S * record.fs
    inside = (found >= truth.min() - slack) & (found <= truth.max() + slack)
    return match(found[inside], truth, slack)


def measure(root: Path) -> list[tuple[str, int, int, int]]:
    """(name, true, missed, false) per mitdb record and per ludb lead."""
    rows = [(f"mitdb/{p.stem}", *score_mitdb(p.with_suffix(""))) for p in sorted(root.glob("mitdb/*.hea"))]
    records = sorted(root.glob("ludb/data/*.hea"), key=lambda p: int(p.stem))
    for lead in ("i", "ii", "v2", "v5") if records else ():
        parts = np.array([score_ludb(p.with_suffix(""), lead) for p in records]).sum(axis=0)
        rows.append((f"ludb, lead {lead}", *map(int, parts)))
    return rows


def shares(true: int, missed: int, false: int) -> tuple[float, float]:
    """Sensitivity and positive predictive value."""
    return true / max(1, true + missed), true / max(1, true + false)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    parser.add_argument("data", nargs="?", type=Path, default=beside)
    root = parser.parse_args().data
    began = time.perf_counter()
    rows = measure(root)
    if not rows:
        print(
            f"error: no mitdb or ludb record below {root}: name the folder that holds them.", file=sys.stderr
        )
        return 1
    for group in ("mitdb", "ludb"):
        own = [row for row in rows if row[0].startswith(group)]
        rows.append((f"{group}, all", *np.array([row[1:] for row in own]).sum(axis=0).tolist()))
    print(f"{'record':<16}{'true':>7}{'missed':>8}{'false':>7}{'sens.':>9}{'PPV':>9}")
    for name, *counts in rows:
        sensitivity, ppv = shares(*counts)
        print(f"{name:<16}{counts[0]:>7}{counts[1]:>8}{counts[2]:>7}{sensitivity:>9.4f}{ppv:>9.4f}")
    print(f"{time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
