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
from ecggen.utils.files import read_csv, write_facts

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
    words = "r from I+II+V2, with a reference, less that of the remembered beat alone"
    assert tuple(rows["person_margin"].values()) == ("person_margin", words, *cells)
    assert rows["margin"]["verdict"] == "below" and rows["margin"]["words"].endswith("linear regression")
    assert {rows[name]["verdict"] for name in ("auroc", "auroc_margin")} == {"too few patients"}
    assert (rows["r_I"]["low"], rows["coverage"]["low"], rows["train_s"]["n_patients"]) == ("0.7", "", "")


@pytest.mark.parametrize("tables", [{}, {"missing_lead/lead_sets": ["split,method,lead_set,r"]}])
def test_what_was_not_measured_is_left_out(tmp_path: Path, tables: dict[str, list[str]]) -> None:
    write_tables(tmp_path, tables)
    assert write_summary(numbers(tmp_path), tmp_path) == {}


WORDS = {
    "reconstruction/overall": ["split,part,r", "test,leads,.99", "test,dipole,.97"],
    "missing_lead/lead_sets": [
        "split,method,lead_set,r,n_patients,best_baseline,verdict",
        "test,model,I,.9,50,pca,above",
        "test,mean_beat,I,.6,50,,",
        "test,model,II,.8,50,pca,no difference shown",
        "test,model,I+II,.91,9,pca,too few patients",
        "test,model,-V3,.77,50,pca,above",
    ],
    "linear_probe/probe": [
        "split,method,class,auroc,n_patients,best_baseline,verdict",
        "test,model,macro,.9,50,pca,below",
        "test,pca,macro,.95,50,,",
    ],
    "transfer/facts": ["name,value", "train,home", "margin,0.03"],
    "transfer/missing_lead": [
        "database,method,lead_set,r,home_r,within",
        "home,model,I+II,.9,.9,",
        "there,model,I+II,.85,.9,yes",
        "there,model,-V3,.95,.9,no",
        "there,mean_beat,I+II,.5,.9,yes",
    ],
}


def test_the_words_say_what_the_intervals_show(tmp_path: Path) -> None:
    write_tables(tmp_path, WORDS)
    lines = run_in_words(tmp_path)
    text = "\n".join(lines)
    assert "rendered leads r 0.990, the three-dimensional dipole alone 0.970" in text
    assert "test patients (too few patients to conclude from):" in text
    assert "0.600" in text and "n/a" in text and "0.770" not in text
    assert "above: I; no difference shown: II; too few patients (9): I+II." in text
    assert "model 0.900, pca 0.950; against pca: below." in text
    assert "tested on there: r is shown to be at most 0.03 below" in lines[-1]
    assert "1 of 2 sets; r (own test): I+II 0.850 (0.900)." in lines[-1]
    assert run_in_words(tmp_path, ["transfer"]) == lines[-1:]


def test_few_patients_give_no_auroc(tmp_path: Path) -> None:
    write_tables(tmp_path, TABLES)
    (line,) = run_in_words(tmp_path, ["linear_probe"])
    assert line == "Linear probe: 9 test patients are too few to state its AUROC."


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
    write_facts("results/train/facts.csv", {"epochs": 3})
    Path("params.yaml").write_text("train: {epochs: 4}\n")
    Path("dvc.lock").write_text("stages: {train: {params: {params.yaml: {train: {epochs: 3}}}}}\n")
    assert main() == 0
    assert "  train.epochs=3, now 4 (train)\n" in capsys.readouterr().out
    command = f"{sys.executable} -m ecggen.report.summary | (exec 0<&-; sleep 2); exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"PYTHONPATH": str(Path(ecggen.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
