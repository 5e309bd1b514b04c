"""How to read a transfer table: what chance does with few patients, and what the sampling rate does.

    python benchmarks/transfer.py CHECKPOINT WINDOWS [--split validation | test] [--records PTBXL]

Chance: patients are drawn from the model's own split, as many as a small database has, 1,000 times; in which
share of the draws is mean r at most .03 (ecggen.eval.transfer.MARGIN) below that of the whole split, on every
lead set at once? A database of the same kind of people would pass as often.

--records: a copy of PTB-XL that has records100/ and records500/. The records that are there at both rates are
read, conditioned and cut from either, and mean r is given for both.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import parser, section, short, table

import numpy as np

from ecggen.data.pipeline import read_window_folder
from ecggen.eval.baselines import ModelMethod
from ecggen.eval.lead_sets import all_sets, given_only
from ecggen.eval.metrics import score_leads
from ecggen.eval.result import Array
from ecggen.eval.score import Split
from ecggen.eval.transfer import MARGIN
from ecggen.inference.renderer import Renderer, load
from ecggen.io.records import open_record
from ecggen.prepare.preprocess.conditioning import condition_record
from ecggen.utils.config import Config
from ecggen.utils.files import read_csv

COUNTS = (10, 14, 30, 100)
DRAWS = 1000
CONFIG = Config()
SETS = all_sets(CONFIG.missing_lead.lead_sets, True)


def chance(renderer: Renderer, data: Split, patients: Array) -> str:
    """Share of draws of so many patients that pass every lead set; patients [n]: of each window."""
    method = ModelMethod(renderer, CONFIG.missing_lead.batch_size)
    r = []
    for leads in SETS:
        rows = np.flatnonzero(leads.usable(data.observed))
        rendered = method.predict(data.read_ecg(rows), leads.mask)
        r.append(data.scores(rendered, rows, leads).select(leads.headline).r)
    names = np.unique(patients)
    whole = np.array([np.nanmean(values) for values in r])
    rng = np.random.default_rng(1)
    lines = []
    for count in COUNTS:
        passed = 0
        for _ in range(DRAWS if count < len(names) else 0):
            rows = np.isin(patients, rng.choice(names, count, replace=False))
            passed += all(np.nanmean(v[rows]) >= mean - MARGIN for v, mean in zip(r, whole, strict=True))
        lines.append([str(count), short(passed / DRAWS)])
    return table(["patients drawn", f"share within {MARGIN:g} on all {len(SETS)} sets"], lines)


def rates(renderer: Renderer, root: Path) -> str:
    """Mean r of the same records from 100 and from 500 Hz."""
    fs, length = renderer.fs, renderer.time_len
    windows_of: dict[str, list[Array]] = {"filename_lr": [], "filename_hr": []}
    rows = [
        row for row in read_csv(root / "ptbxl_database.csv") if (root / f"{row['filename_hr']}.hea").is_file()
    ]
    for row in rows:
        for column, windows in windows_of.items():
            parts: list[Array] = []
            record = open_record(root / row[column])
            condition_record(record, fs, CONFIG.preprocess, lambda ecg, _, parts=parts: parts.append(ecg))
            windows.append(parts[0][:, :length].astype(np.float32))
    lines = []
    for leads in SETS:
        means = []
        for windows in windows_of.values():
            ecg = np.stack(windows)
            rendered = renderer.render_windows(given_only(ecg, leads.mask), leads.mask)["leads"]
            hidden = np.broadcast_to(leads.headline, ecg.shape[:2])
            means.append(float(np.nanmean(score_leads(ecg, np.asarray(rendered), hidden).r)))
        lines.append([leads.name, *map(short, means), f"{means[1] - means[0]:+.4f}"])
    return f"{len(rows)} records, first {length / fs:g} s\n\n" + table(
        ["given", "100 Hz", "500 Hz", "difference"], lines
    )


def main() -> None:
    """Print both."""
    options = parser(__doc__)
    options.add_argument("--records", type=Path, metavar="PTBXL")
    args = options.parse_args()
    renderer, folder = load(args.checkpoint, device="cpu"), read_window_folder(args.windows)
    data = Split.read(folder, args.split, 10, CONFIG.missing_lead.seed)
    print(section("How to read a transfer table", sys.argv))
    print(chance(renderer, data, np.asarray(folder.patient)[data.rows]))
    if args.records:
        print(rates(renderer, args.records))


if __name__ == "__main__":
    main()
