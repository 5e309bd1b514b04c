"""A run in words, from the tables that its stages left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ecggen.eval.verdict import FEWEST_PATIENTS
from ecggen.report.tables import column, distinct, left_out, of_split, only, read_frame
from ecggen.utils.files import FACTS, read_facts

#: Of the baselines without a reference of the person, those that are shown.
METHODS = ("model", "closed_form", "linear_regression", "linear_regression_context", "mean_beat")


def run_in_words(results: Path, stages: Sequence[str] = ()) -> list[str]:
    """What the last run achieved, line by line: all stages, or those named; without results none."""
    return [line for stage in stages or STAGE_WORDS for line in STAGE_WORDS[stage](results / stage)]


def _train(folder: Path) -> list[str]:
    facts = read_facts(folder / FACTS)
    if not facts:
        return []
    epochs, windows, parameters = (facts.get(name, "?") for name in ("epochs", "train_windows", "parameters"))
    best = f"best validation r of hidden leads {_number(facts.get('validation_r'))}"
    return [f"Trained {epochs} epochs on {windows} windows ({parameters} parameters); {best}."]


def _reconstruction(folder: Path) -> list[str]:
    lines, r = [], _by(_test(folder, "overall"), "part", "r")
    if r:
        leads, dipole = (_number(r.get(part)) for part in ("leads", "dipole"))
        words = f"rendered leads r {leads}, the three-dimensional dipole alone {dipole}"
        lines.append(f"All leads given: {words} (test patients).")
    vcg = only(only(_test(folder, "vcg"), "axis", "mean"), "lead_set", "all")
    if r := _by(vcg, "method", "r"):
        others = ", ".join(f"{name} {_number(value)}" for name, value in r.items() if name != "model")
        lines.append(f"VCG against the recorded Frank leads: r {_number(r.get('model'))} ({others}).")
    return lines


def _missing_lead(folder: Path) -> list[str]:
    rows = _named(_test(folder, "lead_sets"))
    shown = rows[column(rows, "method").isin(METHODS)]
    lines = _r_table("Hidden leads, mean r on test patients", shown)
    sets: dict[str, list[str]] = {}
    for row in only(rows, "method", "model").to_dict("records"):
        if verdict := row.get("verdict", ""):
            patients = row.get("n_patients", math.nan)
            few = f" ({patients:.0f})" if patients < FEWEST_PATIENTS else ""
            sets.setdefault(f"{verdict}{few}", []).append(row["lead_set"])
    if sets:
        each = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sets.items())
        lines.append(f"Against the best baseline of each (paired, 95 % interval): {each}.")
    title = "Second half of a record, W held from its first half with all leads (model_personal)"
    return lines + _r_table(title, _named(only(_test(folder, "personal"), "protocol", "halves")))


def _linear_probe(folder: Path) -> list[str]:
    macro = only(_test(folder, "probe"), "class", "macro")
    for row in only(macro, "method", "model").to_dict("records"):
        if (patients := row.get("n_patients", math.nan)) < FEWEST_PATIENTS:
            return [f"Linear probe: {patients:.0f} test patients are too few to state its AUROC."]
        each = ", ".join(f"{name} {_number(area)}" for name, area in _by(macro, "method", "auroc").items())
        against = f"; against {row['best_baseline']}: {row['verdict']}" if row.get("verdict") else ""
        return [f"Linear probe, macro AUROC on test patients: {each}{against}."]
    return []


def _transfer(folder: Path) -> list[str]:
    """One line per other database."""
    facts = read_facts(folder / FACTS)
    home, margin, lines = facts.get("train", ""), facts.get("margin"), []
    rows = only(_test(folder, "missing_lead"), "method", "model")
    for database in distinct(rows, "database"):
        there = only(rows, "database", database)
        judged = column(there, "within")
        if database == home or not (judged != "").any():
            continue
        each = ", ".join(
            f"{row['lead_set']} {_number(row['r'])} ({_number(row.get('home_r'))})"
            for row in _named(there).to_dict("records")
        )
        lines.append(
            f"Trained on {home}, tested on {database}: r is shown to be at most {_number(margin, 2)} below "
            f"the own test in {sum(judged == 'yes')} of {sum(judged != '')} sets; r (own test): {each}."
        )
    return lines


STAGE_WORDS: dict[str, Callable[[Path], list[str]]] = {
    "train": _train,
    "reconstruction": _reconstruction,
    "missing_lead": _missing_lead,
    "linear_probe": _linear_probe,
    "transfer": _transfer,
}


def _test(folder: Path, table: str) -> pd.DataFrame:
    return of_split(read_frame(folder / f"{table}.csv"))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the lead sets that leave one lead out ("-V3")."""
    return rows[~column(rows, "lead_set").map(left_out).astype(bool)]


def _by(rows: pd.DataFrame, key: str, value: str) -> dict[str, float]:
    return dict(zip(column(rows, key), column(rows, value), strict=True))


def _r_table(title: str, rows: pd.DataFrame) -> list[str]:
    """Lead sets down, methods across."""
    if rows.empty:
        return []
    table = pd.DataFrame(
        {
            name: {
                method: _number(r) for method, r in _by(only(rows, "lead_set", name), "method", "r").items()
            }
            for name in distinct(rows, "lead_set")
        }
    ).T.fillna("n/a")
    few = (column(only(rows, "method", "model"), "n_patients") < FEWEST_PATIENTS).any()
    note = " (too few patients to conclude from)" if few else ""
    text = table.rename_axis("leads given", axis=1).to_string()
    return [f"{title}{note}:", *(f"  {line}" for line in text.split("\n"))]


def _number(value: Any, digits: int = 3) -> str:
    try:
        return f"{float(value):.{digits}f}"
    except (TypeError, ValueError):
        return "n/a"
