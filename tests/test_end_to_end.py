"""The real pipeline, small: every stage runs, and a change re-runs what depends on it and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.common import SMALL
from ecggen.utils.files import read_csv

ROOT = Path(__file__).parents[1]
PREPARATION = ["download", "preprocess", "window", "transfer_windows"]
TRAINING = ["train", "reconstruction", "missing_lead", "linear_probe", "transfer", "report"]


def change(path: Path, changes: dict) -> None:
    params = yaml.safe_load(path.read_text())
    for section, values in changes.items():
        params[section] |= values
    path.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without git, its parameters made small."""
    root = tmp_path_factory.mktemp("project")
    for name in ("ecggen", "stages", ".dvc", "data"):
        skip = shutil.ignore_patterns(
            "__pycache__", "tmp", "cache", "raw", "records", "windows", "transfer", "config.local"
        )
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    change(root / "params.yaml", SMALL)
    return root


def repro(root: Path) -> list[str]:
    """`dvc repro`; the stages that ran, in order."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": paths, "ECGGEN_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return re.findall(r"Running stage '(\w+)'", done.stdout)


@pytest.mark.timeout(600)
def test_the_whole_pipeline_and_what_a_change_re_runs(copy: Path) -> None:
    assert sorted(repro(copy)) == sorted([*PREPARATION, *TRAINING])
    page = (copy / "results/report/report.html").read_text()
    assert "I+II+V2" in page and 'src="http' not in page
    metrics = json.loads((copy / "results/missing_lead/metrics.json").read_text())
    rows = read_csv(copy / "results/missing_lead/lead_sets.csv")
    assert {row["method"] for row in rows} >= {"model", "linear_regression", "dower", "mean_beat"}
    assert -1 <= metrics["test"]["I+II+V2"]["model"]["r"] <= 1
    steps = read_csv(copy / "results/missing_lead/ttt.csv")
    assert any(row["kind"] == "ttt" and row["step"] == "4" for row in steps)
    there = read_csv(copy / "results/transfer/missing_lead.csv")
    assert {row["database"] for row in there} == {"synthetic", "synthetic-other"}
    assert "synthetic to synthetic-other" in page
    before = (copy / "results/train/checkpoint.pt").read_bytes()

    change(copy / "params.yaml", {"model": {"tokenizer_mode": "rr"}})
    assert sorted(repro(copy)) == sorted(TRAINING), "a model parameter re-runs training and what follows"
    assert (copy / "results/train/checkpoint.pt").read_bytes() != before

    change(copy / "params.yaml", {"missing_lead": {"bootstrap": 11}})
    assert repro(copy) == ["missing_lead", "report"], "an evaluation setting does not retrain"

    change(copy / "params.yaml", {"transfer": {"sources": []}})
    rerun = ["download", "transfer_windows", "transfer", "report"]  # the first stage checks the sources
    assert repro(copy) == rerun, "another database does not retrain"
    assert read_csv(copy / "results/transfer/missing_lead.csv") == []
    assert "tested on no other database" in (copy / "results/report/report.html").read_text()
    assert repro(copy) == []
