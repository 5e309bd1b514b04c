"""The tables of docs/results.md, from evaluated runs of several seeds.

    python benchmarks/goals.py RUN [RUN ...] [--frank RUN ...] [--add FILE ...] > docs/results.md

RUN: a run of `python -m ecggen.main` with its eval/ folder (reconstruction, missing_lead, linear_probe).
Every figure is of the test split: mean over the runs, in brackets the lowest and the highest of them, and in
square brackets the 95 % interval over patients of the first run. --frank: runs that evaluated the same
checkpoints on records with measured Frank leads. --add: what the other benchmarks printed, put at the end.
"""

from __future__ import annotations

import json
from pathlib import Path

from common import options, short, table

import numpy as np

from ecggen.utils.files import read_csv

Row = dict[str, str]
SETS = ("I", "I+II", "I+II+V2", "I+II+V1+V4", "-V3")
NAMES = dict(zip(SETS, ("I", "I+II", "I+II+V2", "I+II+V1+V4", "V3 left out"), strict=True))
VCG = "reconstruction/vcg"
HEAD = """# How good is it?

Made by `benchmarks/goals.py` from {count} training run(s) on 2,677 PTB-XL records at 100 Hz, a subset
(folds 1 to 7 train, 9 validation, 10 test: 656 windows of 5.12 s from 315 patients). Test split; mean over
the runs (lowest to highest) [95 % interval over patients, first run that has one]; where a run lacks a table,
over the others. For each seed N:

```sh
python ecggen/scripts/wfdb_to_npy.py --src /my/ptb-xl --dst /my/ptbxl_npy --fs_out 100 --time_len 512
python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode train run.k=kN train.seed=N \\
    train.epochs={epochs} data.meta_root=/my/ptbxl_npy
python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode eval run.k=kN \\
    data.meta_root=/my/ptbxl_npy linear_probe.supervised=true linear_probe.label_shares=[0.01,0.1] \\
    missing_lead.ttt_lead_sets=[I,II,I+II,I+II+V2,I+II+V3,I+II+V1+V4,II+V2+V5,-V3]
python ecggen/scripts/wfdb_to_npy.py --src /my/ptbdb --dst /my/frank_npy --fs_out 100 --time_len 512 \\
    --split test
python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode eval --out results/frank run.k=kN \\
    --checkpoint results/runs/m1s1kN/checkpoint.pt data.meta_root=/my/frank_npy
python benchmarks/goals.py results/runs/m1s1k{{1..{count}}} \\
    --frank results/frank/m1s1k{{1..{count}}}{add} > docs/results.md
```
"""
GOALS = {
    "r": (0.85, 0.89, 0.94, 0.95, 0.955),
    "rmse": (0.115, 0.105, 0.078, 0.073, 0.070),
    "halves": (0.93, 0.96, 0.98, 0.985, 0.993),
}


class Runs:
    """Tables of the runs, test split only."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    def figures(self, table: str, column: str, **where: str) -> list[float]:
        """One figure per run that has it, of the only row that fits."""
        out = []
        for rows in self.tables(table):
            fitting = [row for row in rows if all(row.get(k) == v for k, v in where.items())]
            if not fitting or column not in fitting[0]:
                continue
            if len(fitting) > 1:
                raise SystemExit(f"{table}: {len(fitting)} rows fit {where}, one is needed.")
            out.append(float(fitting[0][column] or "nan"))
        return out

    def tables(self, table: str) -> list[list[Row]]:
        """The rows of a table such as missing_lead/lead_sets, run by run."""
        tables = []
        for folder in self.folders:
            path = folder / "eval" / f"{table}.csv"
            rows = read_csv(path) if path.is_file() else []
            tables.append([row for row in rows if row.get("split", "test") == "test"])
        return tables

    def cell(self, table: str, column: str, interval: str = "", **where: str) -> str:
        """Mean, range over the runs, and the interval of the first one (columns interval_low, _high)."""
        values = self.figures(table, column, **where)
        if not values:
            return "-"
        if all(value.is_integer() and value > 1 for value in values):
            return str(int(max(values)))
        text = short(float(np.mean(values)))
        if short(min(values)) != short(max(values)):
            text += f" ({short(min(values))} to {short(max(values))})"
        if interval:
            low, high = (self.figures(table, f"{interval}_{end}", **where)[0] for end in ("low", "high"))
            text += f" [{short(low)}, {short(high)}]"
        return text


def goal(value: list[float], wanted: float, at_most: bool = False) -> str:
    """The goal and whether the mean reaches it, as printed: to three digits."""
    if not value:
        return short(wanted)
    mean = round(float(np.mean(value)), 3)
    there = mean <= wanted if at_most else mean >= wanted
    return f"{short(wanted)} {'reached' if there else 'missed'}"


def no_reference(runs: Runs) -> str:
    """Hidden leads from observed ones alone."""
    rows = []
    for index, name in enumerate(SETS):
        of_set = {"lead_set": name, "method": "model"}
        r, rmse = (runs.figures("missing_lead/lead_sets", name, **of_set) for name in ("r", "rmse_mv"))
        baseline = of_set | {"method": "linear_regression"}
        rows.append(
            [
                NAMES[name],
                runs.cell("missing_lead/lead_sets", "r", "r", **of_set),
                goal(r, GOALS["r"][index]),
                runs.cell("missing_lead/lead_sets", "rmse_mv", "rmse", **of_set),
                goal(rmse, GOALS["rmse"][index], at_most=True),
                runs.cell("missing_lead/lead_sets", "r", **baseline),
                runs.cell("missing_lead/lead_sets", "coverage", **of_set),
            ]
        )
    head = ["given", "r", "goal", "RMSE, mV", "goal", "r, linear regression", "share in the 90 % interval"]
    return table(head, rows)


def personal(runs: Runs, protocol: str) -> str:
    """W from a reference: held, and for another record trusted as one of another day."""
    path, same = "missing_lead/personal", protocol == "halves"
    method = "model_personal" if same else "model_another_day"
    other = "model_one_pass" if same else "model_personal"
    rows = []
    for index, name in enumerate(SETS):
        of_set = {"lead_set": name, "protocol": protocol}
        row = [NAMES[name], runs.cell(path, "r", "r", method=method, **of_set)]
        if same:
            row.append(goal(runs.figures(path, "r", method=method, **of_set), GOALS["halves"][index]))
        else:
            row.append(runs.cell(path, "r", method=other, **of_set))
        for less in ("memory", "model", "linear_regression_reference"):
            row.append(runs.cell(path, "r", method=less, **of_set))
        for less in ("model", other):
            row.append(runs.cell(path, "personal_gain", "gain", method=less, **of_set))
        rows.append(row)
    first = ["W held", "goal"] if same else ["as of another day", "W held"]
    more = ["memory alone", "no reference", "regression on the reference", "gain over no reference"]
    last = "gain of the inner steps" if same else "gain over W held"
    return table(["given", *first, *more, last], rows)


def steps(runs: Runs) -> str:
    """Gain of the inner steps."""
    rows = []
    first = runs.tables("missing_lead/ttt")[0]
    for name in dict.fromkeys(row["lead_set"] for row in first):
        of_set = [row for row in first if row["lead_set"] == name]
        line = [NAMES.get(name, name)]
        for kind, step in (("w0", ""), *(("ttt", row["step"]) for row in of_set if row["kind"] == "ttt")):
            line.append(runs.cell("missing_lead/ttt", "r", lead_set=name, kind=kind, step=step))
        trained = next((row["step"] for row in of_set if row["kind"] == "record"), "3")
        for where in ({"kind": "ttt", "step": trained}, {"kind": "record"}):
            line.append(runs.cell("missing_lead/ttt", "gain", "gain", lead_set=name, **where))
        rows.append(line)
    numbers = [
        row["step"] for row in first if row["kind"] == "ttt" and row["lead_set"] == first[0]["lead_set"]
    ]
    head = ["given", "W0", *(f"step {step}" for step in numbers), "gain of the steps", "of the whole record"]
    return table(head, rows)


def whole(runs: Runs) -> str:
    """All leads given."""
    rows = []
    for part in ("leads", "dipole_one_pass", "dipole", "dipole_more_steps", "fixed_dower", "best_subspace_3"):
        r = runs.cell("reconstruction/overall", "r", "r", part=part)
        share = runs.cell("reconstruction/energy", "explained_median", part=part)
        if r != "-":
            rows.append([part.replace("_", " "), r, share])
    return table(["part", "r", "energy explained, median"], rows)


def listed(runs: Runs, name: str, keys: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> str:
    """Every row of the first run's table, its figures over all runs; columns: (name, interval or "")."""
    rows = []
    for row in next(filter(None, runs.tables(name)), []):
        where = {key: row[key] for key in keys}
        figures = [runs.cell(name, column, interval, **where) for column, interval in columns]
        rows.append([*where.values(), *figures])
    return table([*keys, *(column for column, _ in columns)], rows)


def eleven(runs: Runs) -> str:
    """Lead I to the eleven others, as published work counts it."""
    means = []
    for rows in runs.tables("missing_lead/per_lead"):
        values = [float(row["r"]) for row in rows if row["lead_set"] == "I" and row["method"] == "model"]
        means.append(float(np.mean(values)) if values else float("nan"))
    return f"I to the eleven other leads, mean r: {', '.join(short(mean) for mean in means)} (by run).\n"


def frank(runs: Runs) -> str:
    """Mean r over x, y and z of every method and lead set."""
    rows = []
    for pair in dict.fromkeys((row["method"], row["lead_set"]) for row in runs.tables(VCG)[0]):
        where = dict(zip(("method", "lead_set"), pair, strict=True))
        axes = [runs.figures(VCG, "r", axis=axis, **where) for axis in "xyz"]
        each = [short(float(np.mean(values))) for values in axes]
        rows.append([*pair, short(float(np.mean(axes))), *each])
    return table(["method", "leads given", "mean r", "x", "y", "z"], rows)


def main() -> None:
    """Print the page."""
    parser = options(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--frank", nargs="*", type=Path, default=[])
    parser.add_argument("--add", nargs="*", type=Path, default=[])
    args = parser.parse_args()
    runs = Runs(args.runs)
    sections = [
        ("How well are hidden leads rendered when nothing is known of the person?",
         no_reference(runs) + "\n" + eleven(runs)),
        ("How much does a reference of the same session help?", personal(runs, "halves")),
        ("How much does another record of the patient help?", personal(runs, "records")),
        ("Does test-time training on the given leads alone help?", steps(runs)),
        ("How much do three dimensions carry?", whole(runs)),
        ("Is the state quasi-static?", listed(runs, "reconstruction/state", ("protocol", "descriptor"),
                             (("icc_mean", ""), ("retrieval", ""), ("chance", ""), ("n", "")))),
        ("Are the features diagnostic? Macro AUROC of a linear probe", probe(runs)),
        ("Are the features diagnostic with few labels?",
                                         listed(runs, "linear_probe/label_shares", ("share", "method"),
                                                (("auroc", ""), ("model_gain", "gain"), ("n_records", "")))),
    ]  # fmt: skip
    if args.frank:
        sections.append(("Is the VCG a VCG? Against measured Frank leads", frank(Runs(args.frank))))
    epochs = json.loads((args.runs[0] / "config.json").read_text(encoding="utf-8"))["train"]["epochs"]
    folders = " ".join(sorted({f"{path.parent}/*.md" for path in args.add}))
    add = f" \\\n    --add {folders}" if args.add else ""
    print(HEAD.format(count=len(args.runs), epochs=epochs, add=add))
    for title, text in sections:
        print(f"## {title}\n\n{text}")
    for path in args.add:
        print(path.read_text(encoding="utf-8"))


def probe(runs: Runs) -> str:
    """Macro AUROC of every method."""
    name = "linear_probe/probe"
    macro = [row for row in next(filter(None, runs.tables(name)), []) if row["class"] == "macro"]
    wheres = [{"method": row["method"], "class": "macro"} for row in macro]
    return table(["features", "AUROC"], [[w["method"], runs.cell(name, "auroc", **w)] for w in wheres])


if __name__ == "__main__":
    main()
