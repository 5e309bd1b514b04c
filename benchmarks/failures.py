"""Where rendering fails: leads, amplitudes, diagnoses, rhythms; equidistant beside rr tokens.

    python benchmarks/failures.py WINDOWS CHECKPOINT [CHECKPOINT ...] [--codes ptbxl_database.csv]
        [--split validation] [--set I+II+V2]

WINDOWS: a folder of windows; CHECKPOINT: results folders or files, the later ones compared with the
first, window by window. Prints Markdown, for hidden independent leads of one lead set: r and RMSE per lead;
the slope of rendered on recorded amplitudes of R (highest point within 60 ms of the peak) and T (mean of 160
to 360 ms after it, from the level 80 ms before it) of the median beat, where 1 is right and less is
regression to the mean; and mean r by label class and, with --codes, by rhythm statement (scp_codes of
PTB-XL's table; the number in a record's name is its ecg_id). 95 % intervals over patients.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from common import (
    complete_rows,
    interval,
    median_beats,
    options,
    patient_draws,
    read_windows,
    section,
    short,
    table,
)

import numpy as np

from ecggen.data.pipeline import WindowFolder, read_window_folder
from ecggen.data.tokenizer import detect_r_peaks
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only
from ecggen.eval.metrics import score_leads
from ecggen.eval.result import Array
from ecggen.inference.renderer import load
from ecggen.leads import LEADS
from ecggen.utils.files import read_csv

RHYTHMS = ("SR", "AFIB", "AFLT", "STACH", "SBRAD", "SARRH", "SVARR", "PACE", "PVC", "PAC", "BIGU")
FEWEST = 5  # windows of a group that is listed


def amplitudes(ecg: Array, peaks: list[Array], fs: float) -> tuple[Array, Array]:
    """(R, T) amplitudes [n, 12] in mV of the median beat of ecg [n, 12, T]; NaN without a whole beat."""
    before, near, start, stop = (round(s * fs) for s in (0.08, 0.06, 0.16, 0.36))
    beats = median_beats(ecg, peaks, before, stop)
    beats = beats - beats[..., :1]
    around = slice(before - near, before + near + 1)
    return beats[..., around].max(2), beats[..., before + start :].mean(2)


def slope(recorded: Array, rendered: Array, patients: list[str]) -> tuple[float, float, float]:
    """Least-squares slope of rendered on recorded [n], with its interval over patients."""
    good = np.isfinite(recorded) & np.isfinite(rendered)
    x, y = recorded[good], rendered[good]
    weights = PatientBootstrap([p for p, g in zip(patients, good, strict=True) if g]).weights()

    def fit(w: Array) -> Array:
        total = w.sum(-1)
        mx, my = w @ x / total, w @ y / total
        return (w @ (x * y) / total - mx * my) / (w @ (x * x) / total - mx * mx)

    low, high = np.percentile(fit(weights), [2.5, 97.5])
    return float(fit(np.ones_like(x))), float(low), float(high)


def statements(path: Path, records: list[str]) -> dict[str, Array]:
    """Rhythm statement -> [n] bool, from PTB-XL's table; the number in a record's name is its ecg_id."""
    codes = {int(float(row["ecg_id"])): ast.literal_eval(row["scp_codes"]) for row in read_csv(path)}
    numbers = [re.search(r"(\d+)[^/\d]*$", name) for name in records]
    of_records = [codes.get(int(number[1]), {}) if number else {} for number in numbers]
    return {code: np.array([code in statements for statements in of_records]) for code in RHYTHMS}


def groups_of(folder: WindowFolder, rows: Array, codes: Path | None) -> dict[str, Array]:
    """Name -> [n] bool: all windows, label classes, rhythm statements."""
    groups = {name: folder.labels[rows, i] > 0 for i, name in enumerate(folder.label_classes)}
    if codes is not None:
        groups |= statements(codes, [folder.record[row] for row in rows])
    large = {name: there for name, there in groups.items() if there.sum() >= FEWEST}
    return {"all": np.ones(len(rows), bool)} | large


def compare(folder: WindowFolder, rows: Array, rendered: list[Array], leads: LeadSet, args: Any) -> None:
    """Print the tables; rendered: [n, 12, T] of each checkpoint."""
    ecg = read_windows(folder, rows)
    patients = np.asarray(folder.patient)[rows].tolist()
    draws = patient_draws(folder, rows)
    scores = [score_leads(ecg, one, leads.headline) for one in rendered]
    title = "Where it fails" if len(rendered) == 1 else "Checkpoints compared by lead, class and rhythm"
    print(section(f"{title}: {leads.name} given", sys.argv))
    print(f"{len(rows)} windows, {len(draws.names)} patients.\n")
    peaks = [detect_r_peaks(one[LEADS.index("II")], folder.fs) for one in ecg]
    waves = list(zip(*(amplitudes(x, peaks, folder.fs) for x in (ecg, rendered[0])), strict=True))
    lines = []
    for lead in np.flatnonzero(leads.headline):
        slopes = [interval(slope(a[:, lead], b[:, lead], patients)) for a, b in waves]
        rmse = float(np.nanmean(scores[0].rmse[:, lead]))
        lines.append([LEADS[lead], interval(draws.mean(scores[0].r[:, lead])), short(rmse), *slopes])
    print(table(["lead", "r", "RMSE, mV", "slope of R", "slope of T"], lines))
    lines = []
    for name, there in groups_of(folder, rows, args.codes).items():
        r = [np.where(there[:, None], score.r, np.nan) for score in scores]
        gains = [interval(draws.mean(later - r[0]), signed=True) for later in r[1:]]
        lines.append([name, str(int(there.sum())), interval(draws.mean(r[0])), *gains])
    above = (f"r of {name} above it" for name in args.checkpoints[1:])
    print(table(["group", "windows", "r", *above], lines))


def main() -> None:
    """Render, score, print."""
    parser = options(__doc__)
    parser.add_argument("windows", type=Path)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--set", default="I+II+V2", dest="lead_set")
    args = parser.parse_args()
    folder = read_window_folder(args.windows)
    named = [] if args.lead_set.startswith("-") else [args.lead_set]
    leads = {leads.name: leads for leads in all_sets(named, True)}[args.lead_set]
    rows = complete_rows(folder, args.split)
    given = given_only(read_windows(folder, rows), leads.mask)
    rendered = [
        np.asarray(load(path, device="cpu").render_windows(given, leads.mask)["leads"])
        for path in args.checkpoints
    ]
    compare(folder, rows, rendered, leads, args)


if __name__ == "__main__":
    main()
