"""What more patients would give: hidden leads of the median beat, from a sixteenth to all training patients.

    python benchmarks/learning_curve.py CHECKPOINT WINDOWS [--split validation] [--set I I+II I+II+V2]

Kernel ridge regression (Saunders et al., ICML 1998) takes the median beat of the given leads to that of the
hidden ones, both over the given leads' RMS: a method with hardly anything to tune, trained in seconds, that
can be fitted to any number of patients. Kernel exp(-d^2 / 3 m), m the median of d^2 between training beats;
the ridge is the best of RIDGES on the split itself, so the figures are upper bounds of this method. Beside it
the beats that the checkpoint renders, and the mean of both. Prints Markdown: mean r over beats and hidden
independent leads.
"""

from __future__ import annotations

import sys

from common import complete_rows, parser, read_windows, section, short, table, whole_beats

import numpy as np

from ecggen.data.pipeline import WindowFolder, read_window_folder
from ecggen.eval.lead_sets import LeadSet, given_only, named_sets
from ecggen.eval.metrics import score_leads
from ecggen.eval.result import Array
from ecggen.inference.renderer import Renderer, load

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
RIDGES = (0.1, 0.3, 1.0, 3.0)


def squared_distances(a: Array, b: Array) -> Array:
    """[n, m] between rows of a [n, F] and b [m, F]."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def regressed(train: Array, test: Array, leads: LeadSet, ridge: float) -> Array:
    """Beats [n, 12, P] of test [n, 12, P], from those of its given leads alone."""
    over = [np.sqrt((x[:, leads.mask] ** 2).mean((1, 2), keepdims=True)) for x in (train, test)]
    known, wanted = (
        (x / scale)[:, leads.mask].reshape(len(x), -1) for x, scale in zip((train, test), over, strict=True)
    )
    between = squared_distances(known, known)
    width = 3 * np.median(between)
    kernel = np.exp(-between / width) + ridge * np.eye(len(known), dtype=np.float32)
    weights = np.linalg.solve(kernel, (train / over[0]).reshape(len(train), -1))
    beats = np.exp(-squared_distances(wanted, known) / width) @ weights
    return np.asarray(beats.reshape(test.shape) * over[1])


def curve(
    renderer: Renderer, folder: WindowFolder, rows: dict[str, Array], leads: LeadSet
) -> list[list[str]]:
    """Rows of the table for one lead set."""
    lead = int(np.flatnonzero(leads.mask)[0])
    windows = {name: read_windows(folder, at) for name, at in rows.items()}
    beats = {
        name: whole_beats(ecg, ecg[:, lead], folder.fs).astype(np.float32) for name, ecg in windows.items()
    }
    there = {name: np.isfinite(beat).all((1, 2)) for name, beat in beats.items()}
    train, test = (beats[name][there[name]] for name in ("train", "test"))
    patients = np.asarray(folder.patient)[rows["train"]][there["train"]]
    order = np.random.default_rng(0).permutation(np.unique(patients))

    def score(beats: Array) -> float:
        return score_leads(test, beats, leads.headline).means()["r"]

    out = []
    for share in SHARES:
        count = round(share * len(order))
        chosen = train[np.isin(patients, order[:count])]
        candidates = [regressed(chosen, test, leads, ridge) for ridge in RIDGES]
        best = max(candidates, key=score)
        out.append([leads.name, str(count), str(len(chosen)), "kernel ridge regression", short(score(best))])
    given = given_only(windows["test"], leads.mask)
    rendered = np.asarray(renderer.render_windows(given, leads.mask)["leads"])
    model = whole_beats(rendered, windows["test"][:, lead], folder.fs)[there["test"]].astype(np.float32)
    both = max(score((1 - w) * model + w * best) for w in (0.2, 0.35, 0.5))
    out.append([leads.name, str(len(order)), str(len(train)), "ecggen", short(score(model))])
    out.append([leads.name, str(len(order)), str(len(train)), "their mean, weighted", short(both)])
    return out


def main() -> None:
    """Fit, score, print."""
    options = parser(__doc__)
    options.add_argument("--set", nargs="+", default=["I", "I+II", "I+II+V2"], dest="lead_sets")
    args = options.parse_args()
    renderer, folder = load(args.checkpoint, device="cpu"), read_window_folder(args.windows)
    rows = {"train": complete_rows(folder, "train"), "test": complete_rows(folder, args.split)}
    lines = [line for leads in named_sets(args.lead_sets) for line in curve(renderer, folder, rows, leads)]
    print(section("What would more patients give?", sys.argv))
    print(f"Median beats, {args.split} split, {len(rows['test'])} windows.\n")
    print(table(["given", "training patients", "beats", "by", "r of the beat"], lines), flush=True)


if __name__ == "__main__":
    main()
