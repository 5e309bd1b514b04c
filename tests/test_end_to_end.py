"""The real pipeline, small: every stage runs, and a change re-runs what depends on it and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ecggen.utils.files import read_csv
from tests.small_pipeline import ROOT, SMALL, write_params

STAGES = ["check", "download", "preprocess", "window", "transfer_windows"]
STAGES += ["train", "reconstruction", "missing_lead", "linear_probe", "transfer", "report"]


def repro(root: Path, *options: str) -> list[str]:
    """`dvc repro`; the stages that ran, in order."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": paths, "ECGGEN_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dvc", "repro", *options]
    process = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return re.findall(r"Running stage '(\w+)'", process.stdout)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without git, its parameters made small, after `dvc repro`."""
    root = tmp_path_factory.mktemp("project")
    skip = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
    for name in ("ecggen", "stages", ".dvc"):
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    write_params(root / "params.yaml", SMALL)
    assert sorted(repro(root)) == sorted(STAGES)
    return root


def test_every_stage_leaves_its_results(pipeline: Path) -> None:
    results = pipeline / "results"
    page = (results / "report/report.html").read_text()
    assert "I+II+V2" in page and "synthetic to synthetic-other" in page and 'src="http' not in page
    assert json.loads((results / "summary.json").read_text()).keys() == {"train_s"}, "too few patients"
    numbers = {row["name"]: float(row["value"]) for row in read_csv(results / "summary.csv")}
    assert -1 <= numbers["r_I+II+V2"] <= 1 and 0 < numbers["coverage"] < 1 and numbers["train_s"] > 0
    rows = read_csv(results / "missing_lead/lead_sets.csv")
    assert {row["method"] for row in rows} >= {"model", "linear_regression", "dower", "mean_beat"}
    steps = read_csv(results / "missing_lead/ttt.csv")
    assert any(row["kind"] == "ttt" and row["step"] == "4" for row in steps)
    transfer = read_csv(results / "transfer/missing_lead.csv")
    assert {row["database"] for row in transfer} == {"synthetic", "synthetic-other"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({}, []),
        ({"model": {"tokenizer_mode": "rr"}}, ["check", "train"]),  # and its followers: test_dvc_deps.py
        ({"linear_probe": {"seed": 1}}, ["check", "linear_probe"]),
        (
            {"transfer": {"sources": []}},
            ["check", "download", "transfer_windows"],
        ),  # download checks the sources
    ],
)
def test_a_change_concerns_no_earlier_stage(pipeline: Path, change: dict, stages: list[str]) -> None:
    write_params(pipeline / "params.yaml", SMALL, change)
    assert repro(pipeline, "--dry") == stages
