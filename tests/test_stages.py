"""The stage scripts and their frame, with stand-ins for what they call."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from ecggen.eval.result import Result
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.files import write_csv
from stages import evaluation, run_stage
from stages.record import StageRun

ROOT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def run(name: str) -> int:
    return run_stage(name, importlib.import_module(f"stages.{name}").stage)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    (tmp_path / "params.yaml").write_text("{}\n")
    return tmp_path


def replace(monkeypatch: pytest.MonkeyPatch, module: str, **members: object) -> None:
    """A stand-in module in place of the real one."""
    stand_in = ModuleType(module)
    for name, member in members.items():
        setattr(stand_in, name, member)
    monkeypatch.setitem(sys.modules, module, stand_in)


def test_train_hands_on_only_what_training_depends_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"data": {"fs": 200.0}, "model": {"tokenizer_mode": "rr"}}
    data = trained["data"] | {"source": "wfdb", "path": "/home/me/records"}
    (here / "params.yaml").write_text(yaml.safe_dump(trained | {"data": data, "missing_lead": {"seed": 99}}))
    left_over = here / "results/train/step_000007"
    left_over.mkdir(parents=True)
    row = {"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "val_r": 0.5, "val_r_personal": 0.5, "lr": 0.1}

    def train(config: Config, out: Path, *, on_epoch: Callable[[dict], None], pick_up: bool) -> dict:
        assert pick_up and left_over.is_dir(), "training itself decides about what a killed stage left"
        assert config_to_dict(config) == config_to_dict(config_from_dict(trained))
        on_epoch(row)
        write_csv(out / "history.csv", [row], list(row))
        return {"validation_r": 0.5}

    replace(monkeypatch, "ecggen.training.processes", train=train)
    assert run("train") == 0
    assert not left_over.exists(), "a finished run leaves nothing to go on from"


@pytest.mark.parametrize("name", ["reconstruction", "missing_lead", "linear_probe", "transfer"])
def test_evaluations_write_numbers_and_tables(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_csv(here / "data/transfer/databases.csv", [{"database": "there"}], ["database"])
    seen: list[object] = []

    def evaluate(renderer: SimpleNamespace, folder: str, *inputs: object, processes: int) -> Result:
        assert (renderer.path, folder, processes) == ("results/train", "windows of data/windows", 3)
        seen.extend(inputs)
        return Result({"test": {"r": 0.5}}, {"rows": ("a",)}, {"rows": [{"a": 1}]})

    renderer = lambda path: SimpleNamespace(path=path, device="cpu")  # noqa: E731
    at_home = SimpleNamespace(read=lambda results: f"measured in {results}")
    replace(monkeypatch, f"ecggen.eval.{name}", **{name: evaluate, "AtHome": at_home})
    replace(monkeypatch, "ecggen.data.pipeline", read_window_folder=lambda path: f"windows of {path}")
    monkeypatch.setattr(evaluation, "load", renderer)
    monkeypatch.setattr(evaluation, "default_processes", lambda device: 3)
    monkeypatch.setattr(evaluation, "read_window_folder", lambda path: f"windows of {path}")
    assert run(name) == 0
    out = here / "results" / name
    assert (out / "facts.csv").read_text() == "name,value\ntest.r,0.5\n"
    assert (out / "rows.csv").read_text() == "a\n1\n"
    others = [{"there": "windows of data/transfer/there"}] if name == "transfer" else []
    protocol = [Config().missing_lead, "measured in results"] if name == "transfer" else []
    assert seen == [*others, getattr(Config(), name), *protocol]


def test_the_report_gives_the_parent_the_numbers_of_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv("results/train/seconds.csv", [{"seconds": 12.3}], ["seconds"])
    values: dict[str, float] = {}
    monkeypatch.setattr(StageRun, "headline", lambda self, numbers, shown: values.update(numbers))
    replace(monkeypatch, "ecggen.report.page", build_report=lambda *arguments: {"bytes": 1})
    assert run("report") == 0
    assert values == {"train_s": 12}
    assert json.loads((here / "results/summary.json").read_text()) == values


def test_the_pipeline_refuses_a_window_folder_of_the_user(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "params.yaml").write_text("data:\n  meta_root: /my/windows\n")
    assert run_stage("train", lambda config, run: {}) == 1
    assert "data.meta_root is '/my/windows'" in capsys.readouterr().err


@pytest.mark.parametrize("name", STAGES)
def test_a_bad_parameter_is_one_sentence(here: Path, name: str) -> None:
    """As DVC runs them: in a process of its own."""
    (here / "params.yaml").write_text("model:\n  tokeniser_mode: rr\n")
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Unknown key 'model.tokeniser_mode'")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", STAGES)
def test_stage_scripts_stay_thin(name: str) -> None:
    assert len((ROOT / f"stages/{name}.py").read_text(encoding="utf-8").splitlines()) <= 45
