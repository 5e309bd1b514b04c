"""python -m ecggen.main: a whole run on synthetic windows, resuming, and bad input in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecggen.eval.result import EvalError
from ecggen.main import main
from ecggen.utils.files import read_csv, read_facts, read_json

SMALL = {
    "synthetic": {"patients": 16, "seconds": 10.3},
    "model": {"width": 16, "depth": 1, "heads": 2, "channels": [8, 8, 8], "state_dim": 8, "basis": 4},
    "train": {"epochs": 2, "batch_size": 8},
    "reconstruction": {"bootstrap": 10},
    "missing_lead": {
        "lead_sets": ["I", "I+II+V2"], "leave_one_out": False, "personal": False,
        "ttt_steps": 1, "bootstrap": 10,
    },
    "linear_probe": {"bootstrap": 10},
    "window": {"min_label_count": 1},
    "run": {"m": "m7", "s": "s1", "k": "tiny"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_windows_here(tmp_path_factory):
    """The default data.meta_root, data/windows, does not exist in the current folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["--config", str(config), "--mode", "train", "--out", str(out), "--quiet"]) == 0
    return out / "m7s1tiny"


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments: object) -> str:
    """The one sentence on stderr of a call that must fail."""
    code, _, err = call(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and "Traceback" not in err
    return last


def test_training_writes_a_whole_run(trained):
    assert {p.name for p in trained.iterdir() if not p.name.startswith("step_")} == {
        "checkpoint.pt", "config.json", "history.csv", "seconds.csv", "facts.csv", "synthetic_windows",
    }  # fmt: skip
    steps = sorted(trained.glob("step_*"))
    assert steps and (steps[-1] / "checkpoint.pt").is_file()
    assert all(len(p.name) == len("step_000500") for p in steps)
    history = read_csv(trained / "history.csv")
    assert [row["epoch"] for row in history] == ["0", "1"]
    saved = read_json(trained / "config.json")
    assert saved["model"]["width"] == 16 and saved["data"]["meta_root"] == str(trained / "synthetic_windows")
    assert np.isfinite(float(read_facts(trained / "facts.csv")["validation_r"]))


def test_the_fallback_is_said_aloud(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ecggen.trainer.train", lambda *a, **k: {"validation_r": 0.5})
    code, out, err = call(capsys, "--config", config, "--mode", "train", "--out", tmp_path)
    assert code == 0 and "validation_r 0.5" in out
    assert "No windows in data/windows" in err and "synthetic" in err


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_named_folder_without_windows_is_not_replaced_by_synthetic_ones(
    config, trained, tmp_path, capsys, mode
):
    arguments = ("--config", config, "--mode", mode, "--out", tmp_path / "runs")
    arguments += ("--checkpoint", trained) if mode == "eval" else ()
    (tmp_path / "empty").mkdir()
    for root in ("nope", tmp_path / "empty"):
        words = refused(capsys, *arguments, f"data.meta_root={root}")
        assert f"No .npy windows in {root} (data.meta_root)" in words
    assert not (tmp_path / "runs").exists()


def test_windows_that_are_there_are_used(config, trained, tmp_path, capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr("ecggen.trainer.train", lambda c, run, **k: seen.update(root=c.data.meta_root) or {})
    root = trained / "synthetic_windows"
    arguments = ("--config", config, "--mode", "train", "--out", tmp_path, f"data.meta_root={root}")
    code, _, err = call(capsys, *arguments)
    assert code == 0 and seen["root"] == str(root) and err == ""
    assert [p.name for p in (tmp_path / "m7s1tiny").iterdir()] == ["config.json"]


def test_evaluation_of_the_best_checkpoint(config, trained, capsys):
    code, out, _ = call(capsys, "--config", config, "--mode", "eval", "--out", trained.parent)
    assert code == 0
    tables = {"reconstruction": "overall", "missing_lead": "lead_sets", "linear_probe": "probe"}
    for name, table in tables.items():
        assert (trained / "eval" / name / f"{table}.csv").is_file()
    for words in (
        "All leads given: rendered leads r",
        "Hidden leads, mean r on test patients",
        "Linear probe",
    ):
        assert words in out
    methods = {row["method"] for row in read_csv(trained / "eval" / "missing_lead" / "lead_sets.csv")}
    assert {"model", "linear_regression"} <= methods


def test_evaluation_without_labels_says_so(config, trained, tmp_path, capsys):
    root = tmp_path / "npy"
    root.mkdir()
    windows = np.load(trained / "synthetic_windows" / "windows.npy")
    for i in range(12):
        np.save(root / f"{i}.npy", windows[2 * i : 2 * i + 2])
    code, out, _ = call(
        capsys, "--config", config, "--mode", "eval", "--out", tmp_path / "runs", "--checkpoint", trained,
        f"data.meta_root={root}", "missing_lead.lead_sets=[\"I+II+V2\"]",
    )  # fmt: skip
    assert code == 0 and "linear_probe skipped: the windows carry no labels." in out
    assert sorted(p.name for p in (tmp_path / "runs" / "m7s1tiny" / "eval").iterdir()) == [
        "missing_lead", "reconstruction",
    ]  # fmt: skip


def test_other_databases_are_named_by_their_folders(config, trained, tmp_path, capsys, monkeypatch):
    def not_here(*args):
        raise EvalError("not here")

    for name in ("reconstruction", "missing_lead", "linear_probe"):  # tested above
        monkeypatch.setattr(f"ecggen.eval.{name}.{name}", not_here)
    there = tmp_path / "there"
    shutil.copytree(trained / "synthetic_windows", there)
    common = (
        "--config", config, "--mode", "eval", "--out", tmp_path / "runs", "--checkpoint", trained,
        f"data.meta_root={trained / 'synthetic_windows'}",
    )  # fmt: skip
    code, out, _ = call(capsys, *common, "--other", there)
    assert code == 0 and "tested on there: r is shown" in out and "I+II+V2 0." in out
    rows = read_csv(tmp_path / "runs" / "m7s1tiny" / "eval" / "transfer" / "missing_lead.csv")
    same = {row["database"]: row["r"] for row in rows if row["method"] == "model" and row["lead_set"] == "I"}
    assert same["there"] == same["synthetic"], "the same windows, the same numbers"
    again = tmp_path / "more" / "there"
    assert "two folders called 'there'" in refused(capsys, *common, "--other", there, "--other", again)
    assert "No folder" in refused(capsys, *common, "--other", again)


def test_a_run_is_not_overwritten_in_silence(config, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ecggen.trainer.train", lambda *a, **k: {})
    before = (trained / "checkpoint.pt").read_bytes()
    words = refused(capsys, "--config", config, "--mode", "train", "--out", trained.parent)
    assert "already holds a run" in words and "--resume" in words and "--overwrite" in words
    assert (trained / "checkpoint.pt").read_bytes() == before
    run = tmp_path / "m7s1tiny"
    (run / "step_000003").mkdir(parents=True)
    for name in ("step_000003/checkpoint.pt", "checkpoint.pt", "notes.txt"):
        (run / name).touch()
    assert call(capsys, "--config", config, "--mode", "train", "--out", tmp_path, "--overwrite")[0] == 0
    assert {p.name for p in run.iterdir()} == {"notes.txt", "config.json", "synthetic_windows"}


def test_an_interrupted_run_equals_the_whole_one(config, trained, tmp_path, capsys, monkeypatch):
    from ecggen import trainer

    whole = trainer.train

    def stop_after_one(*args, **kwargs):
        def stop(row):
            raise KeyboardInterrupt

        return whole(*args, **kwargs | {"on_epoch": stop})

    monkeypatch.setattr("ecggen.trainer.train", stop_after_one)
    # The same windows by the same path, so that both runs can be compared.
    arguments = (
        "--config", config, "--mode", "train", "--out", tmp_path, "--quiet",
        f"data.meta_root={trained / 'synthetic_windows'}",
    )  # fmt: skip
    code, _, err = call(capsys, *arguments)
    assert code == 130 and "Interrupted" in err and "--resume" in err
    monkeypatch.setattr("ecggen.trainer.train", whole)
    assert call(capsys, *arguments, "--resume")[0] == 0
    history = (tmp_path / "m7s1tiny" / "history.csv").read_text()
    assert history == (trained / "history.csv").read_text()
    assert (tmp_path / "m7s1tiny" / "checkpoint.pt").read_bytes() == (trained / "checkpoint.pt").read_bytes()


def test_an_interrupt_before_the_first_checkpoint(config, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecggen.main.train", interrupt)
    code, _, err = call(capsys, "--config", config, "--mode", "train", "--out", tmp_path)
    assert code == 130 and "before the first checkpoint" in err


def test_overrides_in_both_forms_and_among_the_options(config, tmp_path, capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr("ecggen.main.train", lambda c, run, **k: seen.update(config=c, run=run))
    arguments = ("--config", config, "model.tokenizer_mode=rr", "--mode", "train", "--set", "train.epochs=5")
    arguments += ("--out", tmp_path, "--device", "cpu", "model.residual=false", "run.k=k9")
    assert call(capsys, *arguments)[0] == 0
    assert seen["config"].model.tokenizer_mode == "rr" and seen["config"].train.epochs == 5
    assert seen["config"].train.device == "cpu" and seen["config"].model.residual is False
    assert seen["run"] == tmp_path / "m7s1k9"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["model.tokeniser=rr"], "Unknown key 'model.tokeniser'"),
        (["epochs"], "Override 'epochs'"),
        (["run.k=a/b"], "run.k is 'a/b'"),
        (["run={}"], "run is empty"),
        (["--mode", "eval"], "holds no checkpoint.pt: train first"),
        (["--mode", "eval", "--checkpoint", "none.pt"], "none.pt"),
        (["--config", "none.yaml"], "Cannot read configuration none.yaml"),
        (["--device", "abacus"], "train.device is 'abacus': use auto, cpu"),
    ],
)
def test_bad_input_is_one_sentence(config, trained, tmp_path, capsys, extra, words):
    common = ["--config", config, "--mode", "train", "--out", tmp_path]
    windows = f"data.meta_root={trained / 'synthetic_windows'}"
    assert words in refused(capsys, *common, *extra, windows)


def test_another_rate_and_an_output_that_is_a_file(config, trained, tmp_path, capsys):
    root = trained / "synthetic_windows"
    arguments = ("--config", config, "--mode", "train", f"data.meta_root={root}", "--quiet")
    assert "100 Hz but data.fs is 125 Hz" in refused(capsys, *arguments, "--out", tmp_path, "data.fs=125")
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, *arguments, "--out", tmp_path / "file")


def test_the_command_line_is_read_before_torch_is_imported():
    code = (
        "import sys, ecggen.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'yaml' not in sys.modules\n"
        "import os; assert os.environ['OMP_WAIT_POLICY']\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "section.key=value" in done.stdout
