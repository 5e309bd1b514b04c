"""The stage scripts, with stand-ins for what they call."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml

from ecggen.eval.result import Result
from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.files import write_csv, write_json

ROOT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def three_processes(device: str) -> int:
    assert device == "cpu"
    return 3


def test_download(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(config: Config, out: Path) -> dict:
        write_json(out / "source.json", {"fingerprint": "x"})
        return {"records": 3, "source": config.data.source}

    replace(monkeypatch, "ecggen.prepare.download.stage", download=download)
    stage = script("download")
    assert run_stage("download", stage.stage) == 0
    assert Path("data/raw/source.json").is_file()


def test_preparation_stages_pass_their_own_section(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def record(name: str):  # type: ignore[no-untyped-def]
        def call(source: Path, out: Path, data: object, rules: object) -> dict:
            seen[name] = (source.as_posix(), out.as_posix(), type(data).__name__, type(rules).__name__)
            return {"records": 1}

        return call

    replace(monkeypatch, "ecggen.prepare.preprocess.stage", preprocess=record("preprocess"), notes=list)
    replace(monkeypatch, "ecggen.prepare.window.stage", window=record("window"))
    for name in ("preprocess", "window"):
        assert run_stage(name, script(name).stage) == 0
    assert seen == {
        "preprocess": ("data/raw", "data/records", "DataConfig", "PreprocessConfig"),
        "window": ("data/records", "data/windows", "DataConfig", "WindowConfig"),
    }


def test_train_hands_on_only_what_training_depends_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {
        "data": {"source": "wfdb", "path": "/home/me/records", "fs": 200.0},
        "missing_lead": {"seed": 99},
        "model": {"tokenizer_mode": "rr"},
    }
    (here / "params.yaml").write_text(yaml.safe_dump(changed))
    left_over = here / "results/train/step_000007"
    left_over.mkdir(parents=True)
    rows = [{"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "val_r": 0.5, "val_r_personal": 0.5, "lr": 0.1}]
    seen: list[Config] = []

    def train(config: Config, out: Path, *, on_epoch: object = None, pick_up: bool = False) -> dict:
        assert pick_up and left_over.is_dir(), "what a killed stage left is training's to judge"
        seen.append(config)
        for row in rows:
            on_epoch(row)  # type: ignore[operator]
        write_csv(out / "history.csv", rows, list(rows[0]))
        return {"validation_r": 0.5}

    replace(monkeypatch, "ecggen.training.launch", train=train)
    assert run_stage("train", script("train").stage) == 0
    expected = config_from_dict({"data": {"fs": 200.0}, "model": {"tokenizer_mode": "rr"}})
    assert config_to_dict(seen[0]) == config_to_dict(expected)
    assert not left_over.exists(), "a finished run leaves nothing to go on from"


@pytest.mark.parametrize("name", ["reconstruction", "missing_lead", "linear_probe"])
def test_evaluations_write_numbers_tables_and_figures(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rules_seen = []

    def evaluate(renderer: SimpleNamespace, folder: str, rules: object, *, processes: int) -> Result:
        assert (renderer.path, folder, processes) == ("results/train", "windows of data/windows", 3)
        rules_seen.append(rules)
        result = Result(metrics={"test": {"r": 0.5}}, arrays={"x": np.zeros(3)})
        result.add_table("rows", ("a",), [{"a": 1}])
        return result

    replace(monkeypatch, f"ecggen.eval.{name}", **{name: evaluate})
    replace(
        monkeypatch, "ecggen.inference.renderer", load=lambda path: SimpleNamespace(path=path, device="cpu")
    )
    replace(monkeypatch, "ecggen.eval.workers", default_processes=three_processes)
    replace(monkeypatch, "ecggen.data.pipeline", read_window_folder=lambda path: f"windows of {path}")
    replace(
        monkeypatch,
        "ecggen.report.figures",
        stage_figures=lambda stage, tables, arrays: {f"{stage}_figure": "drawing"},
        save=lambda figure, path: path.write_text(figure),
    )
    left_over = here / "results" / name / "figures" / "old.png"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    assert run_stage(name, script(name).stage) == 0
    out = here / "results" / name
    assert json.loads((out / "metrics.json").read_text()) == {"test": {"r": 0.5}}
    assert (out / "rows.csv").read_text() == "a\n1\n"
    assert [path.name for path in (out / "figures").iterdir()] == [f"{name}_figure.png"]
    assert rules_seen == [getattr(Config(), name)]


def test_transfer_windows_hands_on_the_whole_configuration(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def transfer_windows(config: Config, raw: Path, out: Path) -> dict:
        seen.append((config.transfer.sources, raw.as_posix(), out.as_posix()))
        return {"databases": 1, "counts": {"there": {"windows": 2}}}

    (here / "params.yaml").write_text("transfer:\n  sources: [wfdb:/there]\n")
    replace(monkeypatch, "ecggen.prepare.transfer_windows", transfer_windows=transfer_windows)
    assert run_stage("transfer_windows", script("transfer_windows").stage) == 0
    assert seen == [(["wfdb:/there"], "data/transfer_raw", "data/transfer")]


@pytest.mark.parametrize("names", [["one", "two"], []])
def test_transfer_evaluates_every_database(
    here: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    rows = [{"database": name, "windows": 3} for name in names]
    write_csv(here / "data/transfer/databases.csv", rows, ("database", "windows"))
    seen = []

    def transfer(
        renderer: SimpleNamespace,
        home: str,
        others: dict,
        rules: object,
        protocol: object,
        *,
        processes: int,
    ) -> Result:
        assert (renderer.path, home, processes) == ("results/train", "windows of data/windows", 3)
        seen.append((others, rules, protocol))
        result = Result(metrics={"databases": list(others)})
        result.add_table("missing_lead", ("a",), [])
        return result

    replace(monkeypatch, "ecggen.eval.transfer", transfer=transfer)
    replace(
        monkeypatch, "ecggen.inference.renderer", load=lambda path: SimpleNamespace(path=path, device="cpu")
    )
    replace(monkeypatch, "ecggen.eval.workers", default_processes=three_processes)
    replace(monkeypatch, "ecggen.data.pipeline", read_window_folder=lambda path: f"windows of {path}")
    assert run_stage("transfer", script("transfer").stage) == 0
    ((others, rules, missing_lead),) = seen
    assert others == {name: f"windows of data/transfer/{name}" for name in names}
    assert (rules, missing_lead) == (Config().transfer, Config().missing_lead)
    assert json.loads((here / "results/transfer/metrics.json").read_text()) == {"databases": names}
    assert (here / "results/transfer/missing_lead.csv").read_text() == "a\n"
    assert (here / "results/transfer/figures").is_dir()


def test_report_tells_the_parent_every_headline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json("results/train/metrics.json", {"validation_r": 0.7})
    told: dict[str, float] = {}
    monkeypatch.setattr(StageRun, "headline", lambda self, values: told.update(values))
    replace(monkeypatch, "ecggen.report.page", build_report=lambda *arguments: {"bytes": 1})
    assert run_stage("report", script("report").stage) == 0
    assert told == {"train.validation_r": 0.7}


@pytest.mark.parametrize("name", STAGES)
def test_bad_parameter_is_one_sentence(here: Path, name: str) -> None:
    """As DVC runs them: a script in a process of its own."""
    (here / "params.yaml").write_text("model:\n  tokeniser_mode: rr\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "stages" / f"{name}.py")],
        cwd=here,
        env=os.environ | {"ECGGEN_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Unknown key 'model.tokeniser_mode'")
    assert len(done.stderr.splitlines()) == 1
    assert not (here / "data").exists() and not (here / "results").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_stage_scripts_stay_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
