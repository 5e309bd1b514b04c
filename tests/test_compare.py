"""Five experiments on a screen, by the commands that users type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ecggen.report.summary import Number, write_summary
from tests.small_pipeline import ROOT, write_params

NAMES = "r_I r_I+II r_I+II+V2 margin person_I person_I+II+V2 person_margin coverage vcg_r auroc auroc_margin"
EXPERIMENTS = [
    {"model": {"tokenizer_mode": "rr"}},
    {"train": {"epochs": 1}},
    {"model": {"tokenizer_mode": "rr"}, "train": {"epochs": 1}},
    {"train": {"lr": 0.002}},
    {"model": {"tokenizer_mode": "rr"}, "train": {"lr": 0.002, "epochs": 32}},
]
PIPELINE = {
    "train": {"cmd": "true", "params": ["model", "train"], "outs": ["results/train/checkpoint.pt"]},
    "report": {"cmd": "true", "params": ["report"], "deps": ["results/train/checkpoint.pt"]},
}


def write_results(number: int) -> None:
    numbers = [Number(name, "", "", 0.912345 - number / 1000) for name in NAMES.split()]
    write_summary([*numbers, Number("train_s", "", "train", 65.4 + number)], Path("results"))
    Path("results/train").mkdir(exist_ok=True)
    Path("results/train/checkpoint.pt").write_text(f"trained in experiment {number}")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's parameters and metrics in a git repository, with EXPERIMENTS."""
    monkeypatch.chdir(tmp_path)
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    names |= {"GIT_COMMITTER_EMAIL": "a@b", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["report"]["metrics"]
    pipeline = PIPELINE | {"report": PIPELINE["report"] | {"metrics": declared}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": pipeline}))
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    for name in (".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, name)
    Path("results").mkdir()
    output("git", "init", "--quiet")
    for number, change in enumerate([{}, *EXPERIMENTS]):
        write_params(Path("params.yaml"), change)
        write_results(number)
        if number:
            output("dvc", "exp", "save")
        else:
            output("dvc", "commit", "--force", "--quiet")
            output("git", "add", ".")
            output("git", "commit", "--quiet", "--message", "the defaults")


def output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_five_experiments_fit_a_screen(repository: None) -> None:
    venv = str(Path(sys.executable).parents[1])
    lines = output("make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "compare", f"VENV={venv}")
    assert max(map(len, lines)) <= 160 and len(lines) <= 12, "\n".join(lines)
    shown = "r_I+II+V2 person_I+II+V2 vcg_r auroc train_s model.tokenizer_mode train.epochs train.lr"
    assert lines[1].split() == ["Experiment", *shown.split()]
    assert sum("[" in line for line in lines) == len(EXPERIMENTS)
    lines = output("dvc", "metrics", "diff")
    assert max(map(len, lines)) <= 100 and len(lines) <= 24, "\n".join(lines)
    assert {line.split()[1] for line in lines[1:]} == {*NAMES.split(), "train_s"}
