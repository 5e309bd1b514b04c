"""The picture of the README: one real record, its second half rendered from one lead and the first half.

    python benchmarks/personal_picture.py CHECKPOINT RECORD OUT.png [--leads I]

RECORD: a twelve-lead WFDB record of 10 s, path without suffix. The first half with twelve leads is the
person's reference; of the second half --leads alone are given. Prints r of each hidden lead with and
without the reference.
"""

from __future__ import annotations

from pathlib import Path

from common import options

import numpy as np

from ecggen.data.signal import condition
from ecggen.inference.renderer import load
from ecggen.io.records import read_record
from ecggen.leads import LEADS, observed_mask, parse_lead_set
from ecggen.report import figures


def main() -> None:
    """Render, print, draw."""
    parser = options(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("record", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--leads", default="I")
    args = parser.parse_args()
    model, record = load(args.checkpoint, device="cpu"), read_record(args.record)
    given = parse_lead_set(args.leads)
    rows = [LEADS.index(lead) for lead in given]
    half = record.ecg.shape[1] // 2
    reference, later = record.ecg[:, :half], record.ecg[:, half:]
    person = model.personalise(reference, fs=record.fs, leads=LEADS)
    personal = model.render(later[rows], fs=record.fs, leads=given, person=person)
    alone = model.render(later[rows], fs=record.fs, leads=given)
    band = model.config.preprocess
    truth = condition(later, record.fs, record.fs, low_hz=band.low_hz, high_hz=band.high_hz, order=band.order)
    for at, lead in enumerate(LEADS):
        if at not in rows:
            r = [np.corrcoef(truth[at], out.rendered_mv[at])[0, 1] for out in (personal, alone)]
            print(f"{lead}: r {r[0]:.3f} with the reference, {r[1]:.3f} without")
    title = f"{args.record.name}: twelve leads from lead {args.leads}, after one twelve-lead reference"
    sheet = truth, personal.rendered_mv, observed_mask(given), record.fs, title, personal.std_mv
    figures.save(figures.ecg_sheet(*sheet), args.out)


if __name__ == "__main__":
    main()
