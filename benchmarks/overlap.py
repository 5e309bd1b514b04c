"""How far windows of a rendered recording must overlap: nearness to the recording, by the windows taken.

    python benchmarks/overlap.py CHECKPOINT RECORDS [--every 6] [--most 150]

RECORDS: a folder of twelve-lead WFDB records; every --every-th, at most --most of them. Each lead set is
rendered with windows that overlap by half and with as few as overlap by OVERLAP_S of
ecggen.inference.recordings, which is what `render` does. Printed are the mean correlation and the root mean
square error of the leads that were not given and do not follow by algebra, against the recording in the
model's band and at its rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ecggen.utils.threads import wait_passively

wait_passively()

import numpy as np  # noqa: E402
from common import section, table  # noqa: E402

from ecggen.data.filters import condition  # noqa: E402
from ecggen.inference import recordings as cutting  # noqa: E402
from ecggen.inference.renderer import Renderer, load  # noqa: E402
from ecggen.io.records import read_record  # noqa: E402
from ecggen.leads import derivable, lead_indices, observed_mask  # noqa: E402

SETS = (("I",), ("I", "II"), ("I", "II", "V2"), ("I", "II", "V1", "V4"))
WAYS: dict[str, Callable[[int, int, float], int]] = {
    "half": lambda length, time_len, fs: time_len // 2,
    f"{cutting.OVERLAP_S} s": cutting.fewest_windows,
}


def nearness(model: Renderer, truths: list[np.ndarray], names: tuple[str, ...]) -> tuple[float, float]:
    """Mean correlation and root mean square error in uV; truths: [12, n] mV at the model's rate."""
    rows = lead_indices(names)
    given = observed_mask(names)
    known = given | derivable(given)
    r, square = [], []
    rendered = model.render_batch([ecg[rows] for ecg in truths], model.fs, names)
    for truth, found in zip(truths, rendered, strict=True):
        for row in np.flatnonzero(~known):
            a, b = truth[row], found.rendered_mv[row]
            square.append(float(((a - b) ** 2).mean()))
            if min(a.std(), b.std()) > 1e-3:
                r.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.mean(r)), 1000 * float(np.sqrt(np.mean(square)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--most", type=int, default=150)
    arguments = parser.parse_args()
    model = load(arguments.checkpoint, device="cpu")
    band = {"low_hz": model.preprocessing["low_hz"], "high_hz": model.preprocessing["high_hz"]}
    truths = []
    for header in sorted(arguments.records.rglob("*.hea"))[:: arguments.every][: arguments.most]:
        record = read_record(header.with_suffix(""))
        if record.observed.all() and np.isfinite(record.ecg).all():
            truths.append(condition(record.ecg, record.fs, model.fs, **band))
    if not truths:
        print(f"error: no record with twelve whole leads below {arguments.records}.", file=sys.stderr)
        return 1
    rows = []
    for names in SETS:
        cells = []
        for way in WAYS.values():
            cutting.fewest_windows = way
            r, rmse = nearness(model, truths, names)
            cells += [f"{r:.4f}", f"{rmse:.2f}"]
        rows.append(["+".join(names), *cells])
    print(section("Overlap of windows in rendering", sys.argv))
    print(f"{len(truths)} records.\n")
    print(table(["given", *(f"{what}, {way}" for way in WAYS for what in ("r", "RMSE uV"))], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
