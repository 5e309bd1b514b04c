"""What the observed leads can see: r of hidden leads for all 254 subsets of the eight independent leads.

    python benchmarks/observability.py CHECKPOINT WINDOWS OUT [--split validation] [--windows 160]

One model renders every subset. OUT.csv holds r, RMSE, rank and condition number of Dower's rows per subset,
beside linear regression; OUT.png draws r against the condition number (all eight given leaves nothing to
score, so 254 and not 255).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np

from ecggen.utils.threads import wait_passively

wait_passively()

from common import parser  # noqa: E402

from ecggen.data.pipeline import read_window_folder  # noqa: E402
from ecggen.eval.baselines import LinearRegression, Method, ModelMethod, Training  # noqa: E402
from ecggen.eval.lead_sets import LeadSet, named_sets  # noqa: E402
from ecggen.eval.result import Rows  # noqa: E402
from ecggen.eval.score import Split  # noqa: E402
from ecggen.inference.renderer import load  # noqa: E402
from ecggen.leads import INDEPENDENT_INDEX, LEADS  # noqa: E402
from ecggen.utils.files import write_csv  # noqa: E402

COLUMNS = ("leads", "count", "rank", "condition", "r", "rmse_mv", "r_regression", "rmse_regression_mv")


def subsets() -> list[LeadSet]:
    """All subsets of one to seven independent leads."""
    names = [LEADS[index] for index in INDEPENDENT_INDEX]
    return named_sets(["+".join(chosen) for size in range(1, 8) for chosen in combinations(names, size)])


def score(method: Method, data: Split, leads: LeadSet) -> tuple[float, float]:
    """Mean r and RMSE in mV of hidden independent leads."""
    rows = np.flatnonzero(leads.usable(data.observed))
    rendered = method.predict(data.read_ecg(rows), leads.mask)
    means = data.scores(rendered, rows, leads).select(leads.headline).means()
    return means["r"], means["rmse_mv"]


def draw(rows: Rows, path: Path) -> None:
    """r against the condition number; subsets of rank one and two stand at the right."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    places = {1: 1500.0, 2: 700.0}
    x = np.array([places.get(row["rank"], row["condition"]) for row in rows])
    count = np.array([row["count"] for row in rows])
    axes.scatter(x, [row["r_regression"] for row in rows], s=12, c="#bbbbbb", label="linear regression")
    dots = axes.scatter(x, [row["r"] for row in rows], s=22, c=count, cmap="viridis_r", label="ecggen")
    for name in ("I", "I+II", "I+II+V5", "I+II+V1+V4", "V1+V2+V3"):
        row = next((row for row in rows if row["leads"] == name), None)
        if row is not None:
            at = places.get(row["rank"], row["condition"])
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.6}
            place = {"xytext": (7, -4), "textcoords": "offset points", "fontsize": 8, "bbox": box}
            axes.annotate(name, (at, row["r"]), **place)
    axes.set(
        xscale="log", xlabel="condition number of the given leads (Dower)", ylabel="mean r, hidden leads"
    )
    ticks = [1.5, 2, 3, 5, 10, 20, 50, 100, *places.values()]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks[:-2]] + ["rank 1", "rank 2"])
    axes.minorticks_off()
    axes.legend(loc="lower left")
    figure.colorbar(dots, label="leads given")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    """Score, write, draw."""
    options = parser(__doc__)
    options.add_argument("out", type=Path)
    options.add_argument(
        "--windows", type=int, default=160, dest="most", help="windows scored, evenly chosen"
    )
    args = options.parse_args()
    renderer, folder = load(args.checkpoint), read_window_folder(args.windows)
    rules = renderer.config.missing_lead
    data = Split.read(folder, args.split, rules.bootstrap, rules.seed)
    step = max(1, len(data.rows) // args.most)
    keep = slice(None, None, step)
    patients = np.asarray(folder.patient)[data.rows[keep]].tolist()
    parts = data.rows[keep], data.windows, data.observed[keep], data.records[keep]
    data = Split(data.name, *parts, type(data.draws)(patients))
    regression = LinearRegression()
    regression.fit(Training(folder.windows, folder.rows("train"), folder.observed, folder.fs))
    model, rows = ModelMethod(renderer, 128), []
    for leads in subsets():
        rank, condition = leads.geometry
        r, rmse = score(model, data, leads)
        r_regression, rmse_regression = score(regression, data, leads)
        row = {"leads": leads.name, "count": int(leads.mask.sum()), "rank": rank, "condition": condition}
        row |= {"r": r, "rmse_mv": rmse, "r_regression": r_regression, "rmse_regression_mv": rmse_regression}
        rows.append(row)
        print(
            f"{leads.name:24s} rank {rank} condition {condition:8.2f}  r {r:.3f} ({r_regression:.3f})",
            flush=True,
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(args.out.with_suffix(".csv"), rows, COLUMNS)
    draw(rows, args.out.with_suffix(".png"))
    full = [row for row in rows if row["rank"] == 3]
    tie = np.corrcoef([np.log(row["condition"]) for row in full], [row["r"] for row in full])[0, 1]
    better = sum(row["r"] > row["r_regression"] for row in rows)
    print(
        f"{len(rows)} subsets, {len(data.rows)} windows of {args.split}; ecggen above regression in {better}"
    )
    print(f"log condition against r, {len(full)} subsets of rank three: {tie:.2f}")


if __name__ == "__main__":
    main()
