"""A run in words, and the numbers that runs are compared by."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecggen.report.summary import headline, headlines, main, words
from ecggen.utils.files import write_json

MISSING = {
    "test": {
        "I+II": {"model": {"r": 0.8, "r_low": 0.7, "n_patients": 30}, "linear_regression": {"r": 0.6}},
        "-V3": {"model": {"r": 0.9, "n_patients": 30}},
    },
    "ttt_gain_r": {"I+II": 0.01},
}
PROBE = {"test": {"model": {"macro_auroc": 0.9}, "pca": {"macro_auroc": 0.7}}, "patients": {"test": 30}}


def test_headlines_and_words(tmp_path: Path) -> None:
    expected = {"missing_lead.I+II.r": 0.8, "missing_lead.ttt_gain_r.I+II": 0.01}
    assert headline("missing_lead", MISSING) == expected
    assert headline("unknown", MISSING) == {}
    assert words(tmp_path) == [] and headlines(tmp_path) == {}
    write_json(tmp_path / "missing_lead/metrics.json", MISSING)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.json").write_text("not json")
    assert headlines(tmp_path) == expected
    text = "\n".join(words(tmp_path))
    assert "0.800" in text and "0.600" in text and "-V3" not in text and "too few" not in text


def test_few_patients_give_no_headline(tmp_path: Path) -> None:
    assert headline("linear_probe", PROBE) == {"linear_probe.model.macro_auroc": 0.9}
    few = {**PROBE, "patients": {"test": 3}}
    assert headline("linear_probe", few) == {}
    assert headline("missing_lead", {"test": {"I": {"model": {"r": 0.8, "n_patients": 3}}}}) == {}
    write_json(tmp_path / "linear_probe/metrics.json", few)
    text = "\n".join(words(tmp_path))
    assert "3 test patients are too few to state its AUROC" in text and "0.900" not in text


def test_the_words_say_what_the_intervals_show(tmp_path: Path) -> None:
    def row(verdict: str, patients: int) -> dict:
        shown = {"r": 0.9, "macro_auroc": 0.9, "verdict": verdict, "best_baseline": "pca"}
        return {"model": shown | {"n_patients": patients}}

    sets = {"I": row("above", 50), "II": row("no difference shown", 50), "I+II": row("too few patients", 9)}
    write_json(tmp_path / "missing_lead/metrics.json", {"test": sets})
    write_json(tmp_path / "linear_probe/metrics.json", {"test": row("below", 50)})
    lines = "\n".join(words(tmp_path))
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
    numbers = {"home.I+II.r": 0.9, "there.I+II.r": 0.85, "there.I+II.difference": -0.05}
    numbers |= {"there.lead_sets_within": 1}
    expected = {f"transfer.{name}": value for name, value in numbers.items()}
    assert headline("transfer", metrics) == pytest.approx(expected)
    write_json(tmp_path / "transfer/metrics.json", metrics)
    (line,) = words(tmp_path)
    assert "tested on there" in line and "1 of 2 lead sets" in line and "I+II 0.850 (0.900)" in line
    write_json(tmp_path / "transfer/metrics.json", {"train": "home", "databases": {}, "skipped": "none"})
    assert words(tmp_path) == []


def test_without_results_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert capsys.readouterr().err == "error: no results in ./results: run dvc repro (or make run) first.\n"
