"""MLflow records: parent and children, stores that are away, killed stages, moved projects."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecggen import tracking
from ecggen.report.summary import Number
from ecggen.tracking import Logger, main, runs_folder
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.files import write_json
from stages import record
from stages.description import command, run_name, uncommitted
from stages.record import StageRun

ROOT = Path(__file__).resolve().parents[1]
SHOWN_TAGS = ("error", "data_fingerprint", "tokenizer_mode", "mlflow.note.content")
REGULARISERS = ("smooth", "energy", "closed", "ortho", "drift", "gauge", "field")
NUMBERS = [
    Number("r_I", "mean r", "missing_lead", 0.25, 0.2, 0.3, 30),
    Number("r_I+II", "mean r", "missing_lead", 0.5, 0.4, 0.6, 30),
    Number("margin", "r from I+II less that of dower", "missing_lead", 0.2, 0.1, 0.3, 30, "above"),
    Number("train_s", "seconds of training", "train", 11.0),
]
KILLED = """
import os, signal
from stages.record import StageRun
from ecggen.utils.config import Config
run = StageRun("train", Config())
for epoch in range(3):
    run.epoch({"epoch": epoch, "val_r": 0.1 * epoch})
os.kill(os.getpid(), signal.SIGKILL)
"""


def in_memory() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder in memory where there is such a disk: databases wait for a real one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


@pytest.fixture(scope="module")
def empty_store() -> Iterator[Path]:
    """A store without runs; tests take a copy."""
    with in_memory() as folder:
        tracking._client(f"sqlite:///{folder}/mlflow.db")
        yield Path(folder) / "mlflow.db"


@pytest.fixture
def project(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with a store; the working directory. No process follows: tests log by hand."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "DVC_", "ECGGEN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ECGGEN_RUN_KEY", "key")
    monkeypatch.setattr(record, "_start_following", lambda: None)
    with in_memory() as folder:
        root = Path(folder).resolve() / "project"
        root.mkdir()
        (root / "dvc.yaml").write_text("stages: {}\n")
        shutil.copy(empty_store, root / "mlflow.db")
        write_json(root / "data/windows/meta.json", {"fingerprint": "f" * 64, "counts": {"windows": 3}})
        monkeypatch.chdir(root)
        yield root


def leave_record(stage: str = "train", config: Config | None = None) -> None:
    """A stage that records everything a stage can record."""
    run = StageRun(stage, config or Config())
    run.dataset("data/windows", "training")
    for epoch in range(3):
        run.epoch({"epoch": epoch, "val_r": 0.25 * epoch})
    Path("table.csv").write_text("a\n1\n")
    run.artifact("table.csv", parent=True)
    Path("table.csv").write_text("later\n")
    run.artifact("data", "files")
    run.artifact("missing.csv")  # a warning
    run.metrics({"test": {"I+II": 0.5}, "text": "x", "bad": float("nan")})
    run.headline({"r_I+II": 0.5, "margin": 0.25}, NUMBERS)
    run.close("FINISHED")


def client() -> Any:
    return tracking._client(tracking.tracking_uri())


def state(key: str = "key", experiment: str = "ecggen") -> list[dict[str, Any]]:
    """What the store knows of one pipeline run, without ids and times; the parent first."""
    store = client()
    ids = [store.get_experiment_by_name(experiment).experiment_id]
    runs = store.search_runs(ids, f"tags.`{tracking.KEY_TAG}` = '{key}'")
    parents = {run.info.run_id for run in runs if run.data.tags["stage"] == "pipeline"}
    out = []
    for run in sorted(runs, key=lambda run: (run.info.run_id not in parents, run.info.start_time)):
        run_id, tags = run.info.run_id, run.data.tags
        assert run_id in parents or tags["mlflow.parentRunId"] in parents
        history = {name: store.get_metric_history(run_id, name) for name in sorted(run.data.metrics)}
        out.append(
            {
                "stage": tags["stage"],
                "status": run.info.status,
                "metrics": {name: [(p.step, p.value) for p in points] for name, points in history.items()},
                "params": run.data.params,
                "name": run.info.run_name,
                "tags": {name: tags[name] for name in sorted(tags) if name in SHOWN_TAGS},
                "inputs": [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs],
                "files": [file.path for file in store.list_artifacts(run_id)],
                "place": run.info.artifact_uri,
            }
        )
    return out


# --- what is recorded ---------------------------------------------------------------------------------------


def test_a_stage_is_recorded_whole_and_logging_twice_is_once(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_record(config=config_from_dict({"model": {"tokenizer_mode": "rr"}}))
    shutil.copytree(runs_folder(), "copy")
    assert main([]) == 0
    counts, page = capsys.readouterr().out.splitlines()
    assert counts == "MLflow: 1 stage runs logged now, 0 still wait, 0 still run."
    assert page.endswith("/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=ecggen")
    first = state()
    parent, child = first
    assert (parent["status"], child["status"], child["stage"]) == ("FINISHED", "FINISHED", "train")
    assert child["metrics"] == {"epoch/val_r": [(0, 0), (1, 0.25), (2, 0.5)], "test.I_II": [(0, 0.5)]}
    assert parent["metrics"] == {"margin": [(0, 0.25)], "r_I_II": [(0, 0.5)]}
    assert (parent["name"], child["name"]) == ("tokenizer_mode=rr, seed 1, synthetic", "train")
    assert parent["tags"]["tokenizer_mode"] == "rr"
    note = parent["tags"]["mlflow.note.content"]
    assert note.startswith(
        "With nothing known of the person, hidden leads are rendered from I+II with r 0.500"
    )
    assert "r 0.500: 0.200 above dower." in note and "| r_I+II | 0.500 | 0.400 to 0.600 | 30 |" in note
    assert "**Make it again**" in note and "with model.tokenizer_mode=rr in params.yaml" in note
    tags = client().get_experiment_by_name("ecggen").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.ecggen"])
    assert (
        view["selectedColumns"] == ["metrics.`r_I_II`", "metrics.`margin`"]
        and "pipeline" in view["searchFilter"]
    )
    for run in first:
        assert run["inputs"] == [("synthetic", "f" * 36)]
        assert run["params"]["model.tokenizer_mode"] == "rr"
        assert run["tags"]["data_fingerprint"] == "f" * 64 and "error" not in run["tags"]
        assert run["place"].startswith((project / "mlartifacts").as_uri())
    assert (parent["files"], child["files"]) == (["table.csv"], ["files", "table.csv"])
    path = Path(child["place"].removeprefix("file://")) / "table.csv"
    assert path.read_text() == "a\n1\n", "as it was at that moment"
    assert not list(runs_folder().iterdir())
    shutil.copytree("copy", runs_folder(), dirs_exist_ok=True)  # as if it had been killed before the end
    assert main([]) == 0
    assert state() == first


def test_two_stages_meet_a_fresh_store_with_their_logger_beside_them(project: Path) -> None:
    """The real thing: two processes at once, one following process, live epochs, one parent."""
    Path("mlflow.db").unlink()
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(1)")
    code = code.replace('"train"', "__import__('sys').argv[1]") + 'run.close("FINISHED")\n'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    stages = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in ("a", "b")]
    assert [stage.wait(timeout=60) for stage in stages] == [0, 0]
    until = time.monotonic() + 120
    while list(runs_folder().glob("[0-9]*")) and time.monotonic() < until:
        time.sleep(0.1)
    parent, *children = state()
    assert [run["status"] for run in (parent, *children)] == ["FINISHED"] * 3
    assert sorted(run["stage"] for run in children) == ["a", "b"]
    assert all(run["metrics"]["epoch/val_r"] == [(0, 0), (1, 0.1), (2, 0.2)] for run in children)


def test_a_running_stage_is_seen_live(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, logger = StageRun("train", Config()), Logger()
    run.epoch({"epoch": 0, "val_r": 0.5})
    assert logger.log_all() and not logger.log_all(), "nothing new the second time"
    run.epoch({"epoch": 1, "val_r": 0.75})
    assert logger.log_all() and logger.running == 1
    assert [run["status"] for run in state()] == ["RUNNING", "RUNNING"]
    assert state()[1]["metrics"] == {"epoch/val_r": [(0, 0.5), (1, 0.75)]}
    run.close("FINISHED")
    assert main([]) == 0
    assert [run["status"] for run in state()] == ["FINISHED", "FINISHED"]


def test_the_parent_is_as_its_stages_ended_last(project: Path) -> None:
    for status, expected in (("FINISHED", "FAILED"), ("FINISHED", "FINISHED")):
        StageRun("train", Config()).close("FAILED" if expected == "FAILED" else "FINISHED", "reasons")
        StageRun("window", Config()).close(status)
        assert main([]) == 0
        assert state()[0]["status"] == expected
    assert [run["tags"].get("error") for run in state()].count("reasons") == 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "defaults, seed 1, synthetic"),
        ({"train.epochs": 1, "model.tokenizer_mode": "rr"}, "epochs=1 tokenizer_mode=rr, seed 1, synthetic"),
        ({"train.seed": 2}, "train.seed=2, synthetic"),  # others have a seed
        ({"model.ttt.steps": 3, "train.reg.drift": 0.1}, "steps=3 drift=0.1, seed 1, synthetic"),
        ({"data.source": "physionet", "data.database": "ptb-xl"}, "defaults, seed 1, ptb-xl"),
        ({"data.source": "wfdb", "data.path": "/my/records"}, "defaults, seed 1, records"),
        ({"data.source": "several", "data.sources": ["mimic:/a", "ludb:/b"]}, "defaults, seed 1, mimic+ludb"),
        ({"missing_lead.lead_sets": ["I", "I+II", "I+II+V1"]}, 'lead_sets=["I", "I+II", "I+II+V1"], seed 1'),
        ({"data.patient": "x" * 25}, f"patient={'x' * 21}..., seed 1, synthetic"),
        (dict.fromkeys([f"train.reg.{key}" for key in REGULARISERS], 9.0),
         "smooth=9.0 energy=9.0 closed=9.0 ortho=9.0 drift=9.0 gauge=9.0 and 1 more, seed 1, synthetic"),
    ],
)  # fmt: skip
def test_a_run_is_named_by_what_differs(changes: dict[str, Any], name: str) -> None:
    mapping: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, last = key.split(".")
        at = mapping
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    assert run_name(config_from_dict(mapping), changes).startswith(name)


def test_the_command_makes_the_run_again() -> None:
    text = command(
        {"data.patient": "(a b)"}, "c" * 40, uncommitted(" M ecggen/leads.py\n M params.yaml\n M dvc.lock")
    )
    assert "git checkout cccccccccccc\ndvc exp run -S 'data.patient=(a b)'\n" in text
    assert text.endswith("The commit is not all: ecggen/leads.py had changes that were not committed.")
    assert "dvc repro" in command({}, "c" * 40) and "checkout" not in command({}, "")


def test_off_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    run = StageRun("train", Config())
    run.epoch({"epoch": 0})
    run.headline({"a": 1.0})
    run.dataset("data/windows", "training")
    run.artifact("nothing")
    run.close("FINISHED")
    assert list(tmp_path.iterdir()) == []


# --- which store, which run ---------------------------------------------------------------------------------


def test_queued_and_temporary_experiments_use_the_main_store(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, each in a copy that is deleted afterwards; DVC_ROOT names the original."""
    monkeypatch.delenv("ECGGEN_RUN_KEY")
    monkeypatch.setenv("DVC_ROOT", str(project))
    runs = []
    for name in ("quick-fox", "slow-dog"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        copy = project / ".dvc/tmp/exps" / name
        copy.mkdir(parents=True)
        monkeypatch.chdir(copy)
        (copy / "result.csv").write_text(name)
        runs.append((StageRun("train", Config()), record.run_key()))
        runs[-1][0].artifact("result.csv")
    for run, _ in runs:
        run.close("FINISHED")
    monkeypatch.chdir(project)
    shutil.rmtree(project / ".dvc")
    assert main([]) == 0
    assert runs[0][1] != runs[1][1]
    for (_, key), name in zip(runs, ("quick-fox", "slow-dog"), strict=True):
        parent, child = state(key)
        assert child["files"] == ["result.csv"] and parent["status"] == "FINISHED"
        path = Path(child["place"].removeprefix("file://")) / "result.csv"
        assert path.read_text() == name and path.is_relative_to(project / "mlartifacts")


def test_the_run_key_is_stable_and_tells_experiments_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECGGEN_RUN_KEY", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    plain = record.run_key()
    assert plain == record.run_key()
    monkeypatch.setenv("DVC_EXP_NAME", "quick-fox")
    named = record.run_key()
    monkeypatch.setenv("ECGGEN_RUN_KEY", "it's mine")
    assert len({plain, named, record.run_key()}) == 3
    assert record.run_key() == "it_s_mine"


@pytest.mark.parametrize(
    ("command", "dvc"),
    [
        (["python", "-u", "-m", "dvc", "repro"], True),
        (["/v/bin/python", "/v/bin/dvc", "exp", "exec-run"], True),
        (["C:/v/dvc.EXE", "repro"], True),
        (["make", "run"], False),
        (["/bin/sh", "-c", "python -m stages.train"], False),
    ],
)
def test_the_dvc_process_is_recognised(
    monkeypatch: pytest.MonkeyPatch, command: list[str], dvc: bool
) -> None:
    import psutil

    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: command)
    assert bool(record.dvc_process()[0]) is dvc


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///other.db", "sqlite:///{root}/other.db"),
        ("sqlite:////somewhere/a.db", "sqlite:////somewhere/a.db"),
        ("mlruns", "file://{root}/mlruns"),
        ("databricks", "databricks"),
        ("postgresql+psycopg2://me:secret@host/db", "postgresql+psycopg2://me:secret@host/db"),
        ("HTTPS://host:80/path?x=1", "HTTPS://host:80/path?x=1"),
    ],
)
def test_an_address_means_the_same_wherever_a_stage_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.tracking_uri() == expected.format(root=project.as_posix())


def test_after_a_move_of_the_project_files_lie_beside_its_store_and_the_stage_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_record()
    assert main([]) == 0
    leave_record("window")  # waits while the project is moved
    moved = project.with_name("moved")
    project.rename(moved)
    monkeypatch.chdir(moved)
    run = StageRun("train", Config())
    run.artifact("dvc.yaml")
    capsys.readouterr()
    monkeypatch.setattr(tracking, "_IDLE_S", 0.0)  # one pass, while the stage runs
    tracking.follow(Logger())
    run.close("FINISHED")
    words = capsys.readouterr().err
    assert words.startswith("warning: The project was moved") and str(moved / "mlartifacts") in words
    assert len(words.splitlines()) == 1
    StageRun("window", Config()).close("FINISHED")
    assert main([]) == 0 and "moved" not in capsys.readouterr().err, "said once"
    parent, *children = state(experiment=f"ecggen in {moved}")
    assert [child["stage"] for child in children] == ["window", "train", "window"]
    assert all(run["place"].startswith((moved / "mlartifacts").as_uri()) for run in (parent, *children))
    assert not project.exists()


def test_an_experiment_that_was_deleted_stays_deleted_and_another_takes_the_runs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_record()
    assert main([]) == 0
    client().delete_experiment(client().get_experiment_by_name("ecggen").experiment_id)
    for words in ("'ecggen' was deleted (mlflow experiments restore -x 1 brings it back)", ""):
        capsys.readouterr()
        leave_record("window")
        assert main([]) == 0
        said = capsys.readouterr().err
        assert words in said and bool(words) == ("New runs go to the experiment 'ecggen (2)'" in said)
    assert [run["stage"] for run in state(experiment="ecggen (2)")] == ["pipeline", "window", "window"]


def test_files_lie_beside_a_database_of_the_users_choice(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "below").mkdir()
    shutil.move("mlflow.db", "below/other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///below/other.db")
    leave_record()
    assert main([]) == 0
    place = (project / "below/mlartifacts").as_uri()
    assert all(run["place"].startswith(place) for run in state())


# --- stores that are away -----------------------------------------------------------------------------------


@pytest.fixture
def away(project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store that is away; its kind is the parameter. Afterwards it is there again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    kind = request.param
    with contextlib.ExitStack() as stack:
        if kind == "locked":
            other = sqlite3.connect("mlflow.db", isolation_level=None)
            stack.enter_context(contextlib.closing(other))
            other.execute("BEGIN EXCLUSIVE")
        elif kind == "broken":
            shutil.move("mlflow.db", "whole.db")
            Path("mlflow.db").write_bytes(b"this is not a database" * 1000)
            stack.callback(shutil.move, "whole.db", "mlflow.db")
        elif kind == "slow":  # takes the connection and never answers
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.getsockname()[1]}")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", kind)
        yield kind


@pytest.mark.parametrize(
    "away",
    ["locked", "broken", "slow", "http://127.0.0.1:9", "nonsense://nowhere"],
    indirect=True,
)
def test_a_store_that_is_away_costs_no_stage_and_no_record(
    away: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_IDLE_S", 0.0)
    monkeypatch.setattr(tracking, "_RETRY_S", 0.0)
    run = StageRun("train", Config())
    tracking.follow(Logger())  # one pass, as the following process makes it beside the stage
    began = time.monotonic()
    run.metrics({"a": 1.0})
    run.close("FINISHED")
    assert time.monotonic() - began < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the MLflow store ") and "has not taken the record of stage train" in line
    assert line.endswith("python -m ecggen.tracking logs it.") and "secret" not in line
    assert main([]) == 1
    assert len(list(runs_folder().glob("[0-9]*"))) == 1


def test_a_store_that_comes_back_takes_what_waited(project: Path) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        leave_record()
        assert main([]) == 1
    assert main([]) == 0
    assert [run["status"] for run in state()] == ["FINISHED", "FINISHED"]
    assert state()[1]["metrics"]["epoch/val_r"] == [(0, 0), (1, 0.25), (2, 0.5)]


def test_a_full_store_takes_the_rest_when_there_is_room(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect, opened = sqlite3.connect, list[sqlite3.Connection]()

    def full(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        opened[-1].execute("PRAGMA max_page_count = 1")  # no page more than it has
        return opened[-1]

    run = StageRun("train", Config())
    for step in range(50):
        run.metrics({str(n): 1.0 for n in range(20)}, step)
    run.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3.dbapi2, "connect", full)
        patch.setattr(sqlite3, "connect", full)
        assert main([]) == 1
        assert "full" in capsys.readouterr().err
    for connection in opened:  # MLflow keeps its own, ours are closed
        with contextlib.suppress(sqlite3.ProgrammingError):
            connection.execute("PRAGMA max_page_count = 1000000")
    assert main([]) == 0
    assert {len(points) for points in state()[1]["metrics"].values()} == {50}


def test_one_record_that_is_refused_stops_no_other(project: Path) -> None:
    run = StageRun("train", Config())
    run._record["params"]["x" * 300] = "a key that is too long for the store"
    run.close("FINISHED")
    leave_record("report")
    assert main([]) == 1
    (left,) = runs_folder().glob("[0-9]*")
    assert json.loads((left / "run.json").read_text())["stage"] == "train"


def test_a_logger_that_dies_anywhere_loses_and_doubles_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_record()
    assert main([]) == 0
    expected = [{**run, "place": None} for run in state()]
    import mlflow

    calls = ("create_run", "log_batch", "set_tag", "log_inputs", "log_artifacts", "set_terminated")
    whole = {name: getattr(mlflow.MlflowClient, name) for name in calls}
    for number in range(0, 40, 2):
        monkeypatch.setenv("ECGGEN_RUN_KEY", f"death{number}")
        leave_record()
        left = [number]

        def call(name: str, left: list[int], after: bool, *args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == -1 and not after:
                raise KeyboardInterrupt
            answer = whole[name](*args, **kwargs)
            if left[0] == -1:
                raise KeyboardInterrupt
            return answer

        with monkeypatch.context() as patch:
            for name in calls:
                dying = functools.partialmethod(functools.partial(call, name, left, number % 4 == 0))
                patch.setattr(mlflow.MlflowClient, name, dying)
            with contextlib.suppress(KeyboardInterrupt):
                Logger().log_all()
        if left[0] >= 0:
            break
        assert main([]) == 0
        runs = [{**run, "place": None} for run in state(f"death{number}")]
        assert runs == expected, f"after a death at call {number}"
    assert number >= 10


# --- stages that are killed, and disks that are full --------------------------------------------------------


def test_a_killed_stage_is_closed(project: Path) -> None:
    code = KILLED.replace("run = ", "import stages.record as r; r._start_following = lambda: None\nrun = ")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    leave_record("window")
    assert main([]) == 0
    parent, killed, window = state()
    assert (killed["stage"], killed["status"], window["status"]) == ("train", "KILLED", "FINISHED")
    assert parent["status"] == "KILLED"
    assert killed["metrics"]["epoch/val_r"] == [(0, 0), (1, 0.1), (2, 0.2)]
    assert killed["tags"]["error"].startswith("The process was killed")


def test_a_stage_of_another_host_is_given_a_day(project: Path) -> None:
    """Its lock may be invisible here."""
    run = StageRun("train", Config())
    run._record["host"] = "elsewhere"
    run.metrics({})
    run._alive.close()  # as this host sees it
    assert main([]) == 0
    assert state()[1]["status"] == "RUNNING"
    os.utime(run.folder / "run.json", (0, 0))
    assert main([]) == 0
    assert state()[1]["status"] == "KILLED"


def test_a_run_whose_record_was_deleted_does_not_stay_running(project: Path) -> None:
    run = StageRun("train", Config())
    Logger().log_all()
    run._alive.close()
    shutil.rmtree(runs_folder())
    leave_record("window")
    assert main([]) == 0
    assert [run["status"] for run in state()] == ["KILLED", "KILLED", "FINISHED"]


def test_a_disk_that_cannot_be_written_costs_one_warning(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = StageRun("train", Config())
    monkeypatch.setattr(record, "write_json", full)
    run.metrics({"a": 1.0})
    run.epoch({"epoch": 1})
    run.artifact("dvc.yaml")
    run.close("FINISHED")
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not recorded further in MLflow" in line and "No space left on device" in line
