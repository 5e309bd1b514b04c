"""The few numbers that runs are compared by; python -m ecggen.report.summary shows a run in words.

The stage `report` writes them: results/summary.json holds what `dvc exp show`, `dvc metrics diff` and MLflow
compare, results/summary.csv each of them in words with its interval and verdict.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ecggen.eval.verdict import FEWEST_PATIENTS, TOO_FEW, verdict
from ecggen.leads import parse_lead_set
from ecggen.report.params import outdated
from ecggen.report.tables import column, is_model, label, of_split, read_frame
from ecggen.report.words import run_in_words
from ecggen.utils.files import write_csv, write_text

DIGITS = 4
COLUMNS = ("name", "words", "value", "low", "high", "n_patients", "verdict")


@dataclass(frozen=True)
class Number:
    """One number of a run, on the test split.

    stage: whose tables it comes from. low, high: 95 % interval over patients (paired for a margin) or NaN.
    n_patients: NaN where it is not of patients. verdict: of a margin, or that there are too few patients.
    """

    name: str
    words: str
    stage: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n_patients: float = math.nan
    verdict: str = ""

    @property
    def headlined(self) -> bool:
        """Whether runs are compared by it."""
        return self.verdict != TOO_FEW

    @property
    def short(self) -> float:
        """The value as runs are compared by it: a whole number of seconds, four digits of all others."""
        return round(self.value) if self.name == "train_s" else round(self.value, DIGITS)


def numbers(results: Path, lead_set: str = "I+II+V2") -> list[Number]:
    """What the tables of the stages hold of the numbers. lead_set: `report.lead_set`."""
    named = "+".join(parse_lead_set(lead_set))
    return [*_nothing_known(results, named), *_person_known(results, named), *_others(results, named)]


def _nothing_known(results: Path, lead_set: str) -> Iterator[Number]:
    """From some leads of a person of whom nothing else is known."""
    rows = _rows(results, "missing_lead/lead_sets", method="model")
    words = "mean r of hidden leads from {}, nothing known of the person"
    for name in dict.fromkeys(("I", "I+II", lead_set)):
        of_set = _where(rows, lead_set=name)
        yield from _number(f"r_{name}", words.format(name), "missing_lead", of_set, "r", "r_low", "r_high")
    rows = _where(rows, lead_set=lead_set)
    words = f"r from {lead_set}, nothing known, less that of " + _first(rows, "best_baseline")
    columns = ("margin", "margin_low", "margin_high")
    yield from _number("margin", words, "missing_lead", rows, *columns, judged=True)


def _person_known(results: Path, lead_set: str) -> Iterator[Number]:
    """With a reference of the person: the first half of a record, whose second half is scored."""
    halves = _rows(results, "missing_lead/personal", protocol="halves")
    rows = _where(halves, method="model_personal")
    words = "mean r of hidden leads from {}, with a reference of the person"
    for name in dict.fromkeys(("I", lead_set)):
        of_set = _where(rows, lead_set=name)
        yield from _number(
            f"person_{name}", words.format(name), "missing_lead", of_set, "r", "r_low", "r_high"
        )
    others = _where(halves, lead_set=lead_set)
    others = others[~column(others, "method").map(is_model).astype(bool)]
    best = others.sort_values("r", ascending=False) if len(others) else others
    words = f"r from {lead_set}, with a reference, less that of " + _first(best, "method")
    columns = ("personal_gain", "gain_low", "gain_high")
    yield from _number("person_margin", words, "missing_lead", best, *columns, judged=True)


def _others(results: Path, lead_set: str) -> Iterator[Number]:
    """Coverage, VCG, linear probe, and how long training took."""
    rows = _rows(results, "missing_lead/lead_sets", method="model", lead_set=lead_set)
    words = f"share of hidden samples within the model's 90 % interval, from {lead_set}"
    yield from _number("coverage", words, "missing_lead", rows, "coverage")
    rows = _rows(results, "reconstruction/vcg", method="model", lead_set="all", axis="mean")
    words = "mean r of the VCG against measured Frank leads, all leads given"
    yield from _number("vcg_r", words, "reconstruction", rows, "r", "r_low", "r_high")
    macro = {"class": "macro"}
    rows = _rows(results, "linear_probe/probe", method="model", **macro)
    words = "macro AUROC of a linear probe on the encoder's features"
    yield from _number("auroc", words, "linear_probe", rows, "auroc", "low", "high")
    rows = _rows(results, "linear_probe/probe", method="random_encoder", **macro)
    columns = ("model_gain", "gain_low", "gain_high")
    words = "that AUROC less that of the same encoder untrained"
    yield from _number("auroc_margin", words, "linear_probe", rows, *columns, judged=True)
    yield from _number("train_s", "seconds of training", "train", _rows(results, "train/seconds"), "seconds")


def _rows(results: Path, table: str, **cells: str) -> pd.DataFrame:
    """The rows of the test split of a stage's table that hold these cells."""
    return _where(of_split(read_frame(results / f"{table}.csv")), **cells)


def _where(rows: pd.DataFrame, **cells: str) -> pd.DataFrame:
    for name, cell in cells.items():
        rows = rows[column(rows, name) == cell]
    return rows


def _first(rows: pd.DataFrame, name: str) -> str:
    """A cell of the first row as words; nothing without a row."""
    return next((label(cell) for cell in column(rows, name)), "")


def _number(
    name: str, words: str, stage: str, rows: pd.DataFrame, *columns: str, judged: bool = False
) -> Iterator[Number]:
    """The number of the first row, none without a value. columns: its value, low and high; judged: of a
    difference, whose interval is put in words."""
    for row in rows.head(1).to_dict("records"):
        value, low, high = (row.get(column, math.nan) for column in (*columns, "", "")[:3])
        patients = row.get("n_patients", math.nan)
        shown = TOO_FEW if patients < FEWEST_PATIENTS else verdict(low, high, patients) if judged else ""
        if math.isfinite(value):
            yield Number(name, words, stage, value, low, high, patients, shown)


def write_summary(shown: Sequence[Number], out: Path) -> dict[str, float]:
    """Write out/summary.json and summary.csv; returns the former, without numbers of too few patients."""
    few = {number.name: number.short for number in shown if number.headlined}
    write_text(out / "summary.json", json.dumps(few, indent=2) + "\n")
    rows = [{name: getattr(number, name) for name in COLUMNS} for number in shown]
    write_csv(out / "summary.csv", rows, COLUMNS)
    return few


def main() -> int:
    """Print the words. Exit code 1 when there are no results."""
    lines = run_in_words(Path("results"))
    if not lines:
        print("error: no results in ./results: run dvc repro (or make run) first.", file=sys.stderr)
        return 1
    lines = ["", *lines, *_outdated_words()]
    lines += [
        "",
        "Where to look",
        "  results/report/report.html   the run on one page: tables and figures",
        "  results/summary.csv          the numbers that runs are compared by; results/*/*.csv: the tables",
        "  mlflow ui                    parameters, curves and files of every run (http://127.0.0.1:5000)",
        "  dvc exp run -S model.tokenizer_mode=rr    a next experiment; make compare shows them side by side",
    ]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _outdated_words() -> list[str]:
    """Whether the results are of other parameters than params.yaml has now."""
    made_with = outdated()
    if not made_with:
        return []
    title = "Attention: params.yaml has changed since these results were made (dvc repro makes them anew):"
    return ["", title, *(f"  {words} ({', '.join(stages)})" for words, stages in made_with.items())]


if __name__ == "__main__":
    sys.exit(main())
