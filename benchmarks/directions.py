"""A lead that the model has no name for: an electrode given by its direction alone, tested on one it knows.

    python benchmarks/directions.py CHECKPOINT WINDOWS [--split validation]

Each precordial lead is hidden in turn, limb leads and the other five given. r and RMSE of the hidden one:
`by name`, dipole and residual; `dipole by name`, through the patient's lead field; `Dower's direction`, what
`render(..., directions=...)` makes of its published lead vector; `neighbours' direction`, the mean of the two
neighbours' rows of the population's lead field (V1 and V6 have one neighbour and are left out). Prints
Markdown; 95 % intervals over patients.
"""

from __future__ import annotations

import sys

from common import complete_rows, interval, parser, patient_draws, read_windows, section, short, table

import numpy as np

from ecggen.data.pipeline import read_window_folder
from ecggen.eval.lead_sets import given_only, leave_one_out
from ecggen.eval.metrics import score_leads
from ecggen.eval.result import Array
from ecggen.inference.renderer import Renderer, load
from ecggen.leads import DOWER, INDEPENDENT, LEADS


def directions(renderer: Renderer, name: str) -> dict[str, Array]:
    """Lead vectors [3] for a lead, on the axes of the model's VCG: published, and from its neighbours."""
    model, row = renderer.model, INDEPENDENT.index(name)
    gauge = np.linalg.inv(model.gauge.cpu().double().numpy())
    field = model.projection.field.detach().cpu().double().numpy() @ gauge
    out = {"Dower's direction": DOWER[row]}
    if name not in ("V1", "V6"):
        out["neighbours' direction"] = (field[row - 1] + field[row + 1]) / 2
    return out


def main() -> None:
    """Score and print."""
    args = parser(__doc__).parse_args()
    renderer, folder = load(args.checkpoint, device="cpu"), read_window_folder(args.windows)
    rows = complete_rows(folder, args.split)
    ecg, draws = read_windows(folder, rows), patient_draws(folder, rows)
    lines = []
    for leads in leave_one_out():
        name = leads.name.removeprefix("-")
        at = LEADS.index(name)
        out = renderer.render_windows(given_only(ecg, leads.mask), leads.mask)
        signals = {"by name": out["leads"][:, at], "dipole by name": out["dipole"][:, at]}
        signals |= {kind: vector @ out["vcg"] for kind, vector in directions(renderer, name).items()}
        for kind, signal in signals.items():
            rendered = np.zeros_like(ecg)
            rendered[:, at] = signal
            scores = score_leads(ecg, rendered, np.arange(len(LEADS)) == at)
            lines.append([name, kind, interval(draws.mean(scores.r)), short(scores.means()["rmse_mv"])])
    print(section("Can a lead be rendered from its direction alone?", sys.argv))
    print(f"{args.split} split, {len(rows)} windows, {len(draws.names)} patients.\n")
    print(table(["hidden", "rendered", "r", "RMSE, mV"], lines), flush=True)


if __name__ == "__main__":
    main()
