"""The numbers that runs are compared by, and a run in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ecggen
from ecggen.report.summary import main, numbers, write_summary
from ecggen.report.words import run_in_words
from ecggen.utils.files import read_csv, write_json

MARGIN = "best_baseline,margin,margin_low,margin_high,verdict"
TABLES = {
    "missing_lead/lead_sets": [
        f"split,method,lead_set,r,r_low,r_high,coverage,n_patients,{MARGIN}",
        "validation,model,I,.11,.1,.12,.5,40,,,,,",
        "test,model,I,.8,.7,.85,.9,40,pca,.1,.05,.2,above",
        "test,model,I+II+V2,.912345,.9,.93,.88,40,linear_regression,-.02,-.03,-.01,below",
        "test,linear_regression,I+II+V2,.93,.9,.94,,40,,,,,",
        "test,model,-V3,.99,.98,1,.9,40,,,,,",
    ],
    "missing_lead/personal": [
        "split,method,lead_set,protocol,r,r_low,r_high,personal_gain,gain_low,gain_high,n_patients",
        "test,model_personal,I+II+V2,halves,.98,.97,.99,0,0,0,30",
        "test,model,I+II+V2,halves,.99,.97,.99,-.01,-.02,0,30",
        "test,linear_regression,I+II+V2,halves,.9,.8,.95,.08,.07,.09,30",
        "test,memory,I+II+V2,halves,.97,.96,.98,.01,-.001,.02,30",
        "test,model_personal,I+II+V2,records,.5,.4,.6,0,0,0,30",
    ],
    "linear_probe/probe": [
        "split,method,class,auroc,low,high,n_patients,model_gain,gain_low,gain_high",
        "test,model,macro,.9,.8,.95,9,0,0,0",
        "test,random_encoder,macro,.8,.7,.9,9,.1,.05,.2",
    ],
    "train/seconds": ["seconds", "61.7"],
}


def write_tables(folder: Path, tables: dict[str, list[str]]) -> None:
    for name, lines in tables.items():
        path = folder / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, ""]))


def test_the_numbers_are_those_of_the_tables(tmp_path: Path) -> None:
    write_tables(tmp_path, TABLES)
    shown = write_summary(numbers(tmp_path, "i+ii+v2"), tmp_path)
    expected = {"r_I": 0.8, "r_I+II+V2": 0.9123, "margin": -0.02, "person_I+II+V2": 0.98}
    expected |= {"person_margin": 0.01, "coverage": 0.88, "train_s": 62}
    assert shown == expected and list(shown) == list(expected), "in this order, the probe's too few left out"
    assert json.loads((tmp_path / "summary.json").read_text()) == expected
    rows = {row["name"]: row for row in read_csv(tmp_path / "summary.csv")}
    assert list(rows) == [*list(expected)[:-1], "auroc", "auroc_margin", "train_s"]
    cells = "0.01", "-0.001", "0.02", "30", "no difference shown"
    words = "r from I+II+V2, with a reference, less that of memory"
    assert tuple(rows["person_margin"].values()) == ("person_margin", words, *cells)
    assert rows["margin"]["verdict"] == "below" and rows["margin"]["words"].endswith("linear regression")
    assert {rows[name]["verdict"] for name in ("auroc", "auroc_margin")} == {"too few patients"}
    assert (rows["r_I"]["low"], rows["coverage"]["low"], rows["train_s"]["n_patients"]) == ("0.7", "", "")


@pytest.mark.parametrize("tables", [{}, {"missing_lead/lead_sets": ["split,method,lead_set,r"]}])
def test_what_was_not_measured_is_left_out(tmp_path: Path, tables: dict[str, list[str]]) -> None:
    write_tables(tmp_path, tables)
    assert write_summary(numbers(tmp_path), tmp_path) == {}


def test_the_words_say_what_the_intervals_show(tmp_path: Path) -> None:
    def row(verdict: str, patients: int) -> dict:
        shown = {"r": 0.9, "macro_auroc": 0.9, "verdict": verdict, "best_baseline": "pca"}
        return {"model": shown | {"n_patients": patients}}

    sets = {"I": row("above", 50), "II": row("no difference shown", 50), "I+II": row("too few patients", 9)}
    write_json(tmp_path / "missing_lead/metrics.json", {"test": sets})
    write_json(tmp_path / "linear_probe/metrics.json", {"test": row("below", 50)})
    lines = "\n".join(run_in_words(tmp_path))
    assert "test patients (too few patients to conclude from):" in lines
    assert "above: I; too few patients (9): I+II; no difference shown: II." in lines
    assert "model 0.900; against pca: below." in lines


def test_transfer_has_a_line_for_each_database(tmp_path: Path) -> None:
    there = {name: {"model": {"r": r, "difference": r - 0.9}} for name, r in (("I+II", 0.85), ("-V3", 0.95))}
    metrics = {
        "train": "home",
        "missing_lead": {"home": {"I+II": {"model": {"r": 0.9}}}, "there": there},
        "lead_sets_within": {"there": {"within": 1, "of": 2}},
        "margin": 0.03,
    }
    write_json(tmp_path / "transfer/metrics.json", metrics)
    (line,) = run_in_words(tmp_path)
    assert "tested on there" in line and "1 of 2 lead sets" in line and "I+II 0.850 (0.900)" in line
    write_json(tmp_path / "transfer/metrics.json", {"train": "home", "databases": {}, "skipped": "none"})
    assert run_in_words(tmp_path) == []


def test_without_results_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert capsys.readouterr().err == "error: no results in ./results: run dvc repro (or make run) first.\n"


def test_results_of_other_parameters_and_a_closed_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("results/train/metrics.json", {"epochs": 3})
    Path("params.yaml").write_text("train: {epochs: 4}\n")
    Path("dvc.lock").write_text("stages: {train: {params: {params.yaml: {train: {epochs: 3}}}}}\n")
    assert main() == 0
    assert "  train.epochs=3, now 4 (train)\n" in capsys.readouterr().out
    command = f"{sys.executable} -m ecggen.report.summary | (exec 0<&-; sleep 2); exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"PYTHONPATH": str(Path(ecggen.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
