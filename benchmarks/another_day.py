"""A reference of another day, on every patient with two records or more, none of them seen in training.

    python benchmarks/another_day.py --prepare WINDOWS OUT
    python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode train --out RUNS data.meta_root=OUT
    python benchmarks/another_day.py RUN OUT

--prepare writes OUT, a folder of the same windows whose patients with several records are all in the split
`test`: the test fold of a database alone holds too few of them. W is taken from the first window of a
patient's earliest record; every window of the later ones is rendered. Prints Markdown: mean r over hidden
independent leads without a reference, with W held, and with `another_day`, and what they gain; and by what
share of its power the median beat of the eight independent leads changes between the two records, scaled to
fit. --prepare prints that share for the patients whom WINDOWS has in `train`:
`ecggen.models.another_day.CHANGED` comes from there.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from common import (
    complete_rows,
    interval,
    options,
    patient_draws,
    read_windows,
    section,
    short,
    table,
    whole_beats,
)

import numpy as np

from ecggen.data.pipeline import WindowFolder, read_window_folder
from ecggen.eval.lead_sets import given_only, leave_one_out, named_sets
from ecggen.eval.metrics import score_leads
from ecggen.eval.personal import Pairs, record_pairs
from ecggen.inference.renderer import Renderer, load
from ecggen.leads import INDEPENDENT_INDEX
from ecggen.models.blocks import GAUSSIAN_90
from ecggen.utils.files import fresh_folder, read_csv, write_csv

SETS = (*named_sets(["I", "II", "I+II", "I+II+V2", "I+II+V1+V4"]), *leave_one_out())


def prepare(windows: Path, out: Path) -> None:
    """The same windows, patients with several records in the split `test`."""
    rows = read_csv(windows / "index.csv")
    records: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        records[row["patient"]].add(row["record"])
    several = {patient for patient, names in records.items() if len(names) > 1}
    moved = [{**row, "split": "test"} if row["patient"] in several else row for row in rows]
    with fresh_folder(out) as folder:
        for path in windows.glob("windows*.npy"):
            (folder / path.name).symlink_to(path.resolve())
        (folder / "meta.json").write_bytes((windows / "meta.json").read_bytes())
        write_csv(folder / "index.csv", moved, list(rows[0]))
    print(f"{len(several)} patients with several records: {out}")
    folder = read_window_folder(windows)
    print(changed(folder, whole_pairs(folder, "train")))


def whole_pairs(folder: WindowFolder, split: str) -> Pairs:
    """Windows of two records of a patient, all leads there."""
    return record_pairs(folder, complete_rows(folder, split))


def changed(folder: WindowFolder, pairs: Pairs) -> str:
    """What share of the power of a median beat the reference's, scaled to fit, leaves over."""
    a, b = (
        whole_beats(ecg[:, list(INDEPENDENT_INDEX)], ecg[:, 1], folder.fs)
        for ecg in (folder.windows[pairs.reference], folder.windows[pairs.test])
    )
    gain = (a * b).sum((1, 2)) / (a * a).sum((1, 2))
    share = ((b - gain[:, None, None] * a) ** 2).sum((1, 2)) / (b**2).sum((1, 2))
    low, middle, high = np.nanquantile(share, [0.25, 0.5, 0.75])
    return f"Share of a beat's power that changed: median {middle:.2f}, quartiles {low:.2f} and {high:.2f}."


def scores(renderer: Renderer, folder: WindowFolder, pairs: Pairs) -> str:
    """The table of r."""
    full = np.ones(12, dtype=bool)
    states = renderer.states(read_windows(folder, pairs.reference), full)
    ecg = read_windows(folder, pairs.test)
    draws = patient_draws(folder, pairs.test)
    lines = []
    for leads in SETS:
        given = given_only(ecg, leads.mask)
        rendered = {
            "alone": renderer.render_windows(given, leads.mask),
            "held": renderer.render_windows(given, leads.mask, state=states),
            "another day": renderer.render_windows(given, leads.mask, state=states, another_day=True),
        }
        r = {name: score_leads(ecg, out["leads"], leads.headline).r for name, out in rendered.items()}
        means = [short(draws.mean(each)[0]) for each in r.values()]
        gains = [interval(draws.mean(r[name] - r["alone"]), signed=True) for name in ("held", "another day")]
        error = np.abs(rendered["another day"]["leads"] - ecg)[:, leads.headline]
        inside = error <= GAUSSIAN_90 * rendered["another day"]["std"][:, leads.headline]
        lines.append([leads.name, *means, *gains, short(float(inside.mean()))])
    head = ["given", "no reference", "W held", "another day", "W held gains", "another day gains"]
    return table([*head, "share in the 90 % interval"], lines)


def main() -> None:
    """Prepare, or score and print."""
    parser = options(__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("first", type=Path, metavar="RUN", help="a trained run; with --prepare: WINDOWS")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    if args.prepare:
        if args.out.exists():
            parser.error(f"{args.out} exists: name a new folder.")
        prepare(args.first, args.out)
        return
    renderer, folder = load(args.first, device="cpu"), read_window_folder(args.out)
    pairs = whole_pairs(folder, "test")
    people = len(set(np.asarray(folder.patient)[pairs.test]))
    training = renderer.config.train
    print(section("Does a reference of another session help?", sys.argv))
    print(
        f"Trained without these patients (--prepare; seed {training.seed}, {training.epochs} epochs): "
        f"{people} patients, {len(pairs.test)} windows, {np.nanmedian(pairs.days):.0f} days (median) later.\n"
    )
    print(scores(renderer, folder, pairs))
    print(changed(folder, pairs))


if __name__ == "__main__":
    main()
