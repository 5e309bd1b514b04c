"""The outbox under faults: stores away, locked, broken or full; senders and stages that are killed."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ecggen import tracking
from ecggen.tracking import courier, locks, outbox, sender
from ecggen.tracking.__main__ import main
from ecggen.utils.config import Config, config_from_dict

NEVER = "http://127.0.0.1:9"  # the discard port: nothing listens there
KILLED = """
import os, signal
from ecggen.tracking import stage_run
from ecggen.utils.config import Config, config_from_dict
with stage_run("train", Config()) as run:
    for epoch in range(3):
        run.epoch({"epoch": epoch, "val_r": 0.1 * epoch})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def in_memory() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder in memory where there is such a disk: databases wait for a real one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


@pytest.fixture
def quick() -> Iterator[Path]:
    with in_memory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A store that is there already; tests take a copy."""
    with in_memory() as folder:
        sender.Store(f"sqlite:///{folder}/mlflow.db")
        yield Path(folder) / "mlflow.db"


@pytest.fixture
def inside(quick: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a store, no courier: tests send themselves."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "DVC_", "ECGGEN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ECGGEN_TRACKING_WAIT", "0")
    monkeypatch.setenv("ECGGEN_RUN_KEY", "key")
    monkeypatch.setattr(courier, "start", lambda root: None)
    (quick / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(made, quick / "mlflow.db")
    monkeypatch.chdir(quick)
    return quick


def record(stage: str = "train") -> None:
    """One stage that tells everything a stage can tell."""
    Path("data/windows").mkdir(parents=True, exist_ok=True)
    Path("data/windows/meta.json").write_text('{"fingerprint": "f00d", "counts": {"windows": 3}}')
    with tracking.stage_run(stage, Config()) as run:
        run.dataset("data/windows", "training")
        run.epoch({"epoch": 0, "val_r": 0.25})
        run.headline({"train.validation_r": 0.5})
        run.epoch({"epoch": 1, "val_r": 0.5})
        run.artifact("dvc.yaml", parent=True)
        run.artifact("data", "folder")


def state(key: str = "key") -> list[dict[str, Any]]:
    """Everything that the store knows of the runs of one pipeline run, apart from ids and times."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking.tracking_uri())
    experiment = client.get_experiment_by_name("ecggen")
    found = client.search_runs([experiment.experiment_id], f"tags.`{tracking.KEY_TAG}` = '{key}'")
    changing = {sender.JOURNAL_TAG, tracking.KEY_TAG, "mlflow.parentRunId"}
    out = []
    for run in sorted(found, key=lambda run: run.data.tags["stage"]):
        keys = sorted(run.data.metrics)
        points = {name: client.get_metric_history(run.info.run_id, name) for name in keys}
        files = [f.path for f in client.list_artifacts(run.info.run_id)]
        files += [f.path for f in client.list_artifacts(run.info.run_id, "folder/windows")]
        out.append(
            {
                "status": run.info.status,
                "metrics": {name: [(p.step, p.value) for p in own] for name, own in points.items()},
                "params": run.data.params,
                "tags": {k: v for k, v in run.data.tags.items() if k not in changing},
                "inputs": [d.dataset.digest for d in run.inputs.dataset_inputs],
                "files": files,
            }
        )
    return out


class Crash(BaseException):
    """The sender's process ends here."""


def test_a_sender_that_dies_anywhere_loses_and_doubles_nothing(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record()
    assert main(["send"]) == 0
    expected = state()
    assert [run["status"] for run in expected] == ["FINISHED", "FINISHED"]
    assert expected[1]["metrics"] == {"epoch/val_r": [(0, 0.25), (1, 0.5)]}
    assert expected[0]["metrics"] == {"train.validation_r": [(0, 0.5)]}
    assert expected[1]["files"] == ["dvc.yaml", "folder", "folder/windows/meta.json"]
    whole = sender.Store.call
    deaths = 0
    for number in range(100):
        key = f"death{number}"
        monkeypatch.setenv("ECGGEN_RUN_KEY", key)
        record()
        left = [number]

        def dying(self: sender.Store, name: str, /, *args: Any, **kwargs: Any) -> Any:
            left[0] -= 1  # noqa: B023
            if left[0] == -1 and number % 2:  # noqa: B023
                raise Crash  # before the call, and in every second run after it
            done = whole(self, name, *args, **kwargs)
            if left[0] == -1:  # noqa: B023
                raise Crash
            return done

        monkeypatch.setattr(sender.Store, "call", dying)
        try:
            courier.Round(outbox.outbox()).once()
        except Crash:
            deaths += 1
        monkeypatch.setattr(sender.Store, "call", whole)
        if not outbox.waiting(outbox.outbox()):
            break
        assert main(["send"]) == 0
        assert state(key) == expected, f"after a death at call {number}"
    assert deaths > 12


def test_a_crash_in_the_middle_of_a_long_journal(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first saved position."""
    with tracking.stage_run("train", Config()) as run:
        for step in range(2300):
            run.metrics({"loss": 1.0 / (1 + step)}, step)
    batches: list[int] = []
    whole = sender.Store.call

    def dying(self: sender.Store, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name == "log_batch" and "metrics" in kwargs:
            batches.append(len(kwargs["metrics"]))
            if len(batches) == 20:
                raise Crash
        return whole(self, name, *args, **kwargs)

    monkeypatch.setattr(sender.Store, "call", dying)
    with pytest.raises(Crash):
        courier.Round(outbox.outbox()).once()
    (journal,) = outbox.waiting(outbox.outbox())
    journal.load()
    assert journal.sent["position"] > 0
    assert main(["send"]) == 0
    history = state()[1]["metrics"]["loss"]
    assert [step for step, _ in history] == list(range(2300))
    assert sum(batches) < 2300 + 2 * 50  # and it did not start from the beginning


def test_two_senders_at_once(inside: Path) -> None:
    for stage in ("train", "reconstruction", "missing_lead"):
        record(stage)
    command = [sys.executable, "-m", "ecggen.tracking", "send"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) for _ in range(2)]
    said = b"".join(process.communicate(timeout=120)[0] for process in both)
    main(["send"])  # the quicker one may have met a journal that the other one held
    assert said.count(b"Sent") == 2 and outbox.waiting(outbox.outbox()) == []
    found = state()
    assert sorted(run["tags"]["stage"] for run in found) == [
        "missing_lead",
        "pipeline",
        "reconstruction",
        "train",
    ]
    assert all(run["status"] == "FINISHED" for run in found)


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": root, "ECGGEN_TRACKING_WAIT": "120"}


# --- stores -------------------------------------------------------------------------------------------------


def test_a_locked_store_costs_no_stage_and_no_number(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real courier: a stage of its own process, and the store locked by this one."""
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    with sqlite3.connect("mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0
        (line,) = done.stderr.splitlines()
        assert line.startswith("warning: the MLflow store sqlite:///") and "database is locked" in line
        assert str(outbox.FOLDER) in line and line.endswith("python -m ecggen.tracking send")
        assert main(["waiting"]) == 1
        assert "database is locked" in capsys.readouterr().out
        assert main(["send"]) == 1
        other.execute("ROLLBACK")
    other.close()
    assert main(["send"]) == 0 and main(["waiting"]) == 0
    assert state()[1]["metrics"]["epoch/val_r"] == [(0, 0.0), (1, 0.1), (2, 0.2)]


@pytest.fixture
def server() -> Iterator[Callable[[int | None], str]]:
    """Makes a server that answers everything with this status, or (None) never."""
    running: list[http.server.ThreadingHTTPServer] = []
    stop = threading.Event()

    def make(status: int | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                if status is None:
                    stop.wait(60)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        running.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield make
    stop.set()
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize("kind", ["nobody there", "hangs", "answers 500"])
def test_a_server_that_is_away(
    inside: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[[int | None], str], kind: str
) -> None:
    uri = NEVER if kind == "nobody there" else server(None if kind == "hangs" else 500)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    record()
    assert main(["send"]) == 1
    (journal,) = outbox.waiting(outbox.outbox())
    assert journal.failed() and journal.header()["uri"] == uri
    assert len(list(journal.entries())) == 10


def test_a_store_that_is_away_is_not_asked_at_every_pass(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("train")
    record("report")
    asked: list[str] = []

    def away(uri: str) -> None:
        asked.append(uri)
        raise OSError("away\nsecond line")

    monkeypatch.setattr(sender, "_probe", away)
    told: list[str] = []
    work = courier.Round(outbox.outbox(), told.append)
    for _ in range(50):
        work.once()
    assert len(asked) <= 2 and len(told) == len(asked)
    assert [journal.failed() for journal in outbox.waiting(outbox.outbox())] == ["away", "away"]


def test_a_corrupt_store_and_a_full_one(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: Path
) -> None:
    Path("mlflow.db").write_bytes(b"this is not a database" * 1000)
    record()
    assert main(["send"]) == 1
    assert "file is not a database" in capsys.readouterr().err
    shutil.copy(made, "mlflow.db")
    whole, opened = sqlite3.connect, []

    def full(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = whole(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 1")  # no page more than it has
        opened.append(connection)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3.dbapi2, "connect", full)
        patch.setattr(sqlite3, "connect", full)
        with tracking.stage_run("train", Config()) as run:
            for step in range(4000):
                run.metrics({"a": 1.0, "b": 2.0}, step)
        assert main(["send"]) == 1
        assert "full" in capsys.readouterr().err
    for connection in opened:  # MLflow keeps its own, ours are closed
        with contextlib.suppress(sqlite3.ProgrammingError):
            connection.execute("PRAGMA max_page_count = 1000000")
    assert main(["send"]) == 0
    first, second = state()[1:]
    assert [len(own) for run in (first, second) for own in run["metrics"].values()] in (
        [2, 4000, 4000],
        [4000, 4000, 2],
    )


def test_a_journal_that_a_store_does_not_take_stops_no_other(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("train")
    record("report")
    whole = sender._Replay._run

    def refuse(self: Any, entry: Any) -> None:
        if entry["stage"] == "train":
            raise RuntimeError("not this one")
        whole(self, entry)

    monkeypatch.setattr(sender._Replay, "_run", refuse)
    assert main(["send"]) == 1
    (left,) = outbox.waiting(outbox.outbox())
    assert left.header()["stage"] == "train" and left.failed() == "not this one"


def test_one_refused_entry_is_told_and_the_others_are_sent(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.stage_run("train", Config()) as run:
        run._add("tags", to=["child"], values={"x" * 300: "a key that is too long for the store"})
        run.metrics({"a": 1.0})
    assert main(["send"]) == 0
    assert "did not take" in capsys.readouterr().err
    assert state()[1]["metrics"] == {"a": [(0, 1.0)]}


def test_a_database_of_the_network_is_named_by_its_address(inside: Path) -> None:
    config = config_from_dict({"data": {"source": "physionet", "database": "ludb"}})
    with tracking.stage_run("train", config) as run:
        run.dataset("data/windows", "training")
    (journal,) = outbox.waiting(outbox.outbox())
    (entry,) = (entry for _, entry in journal.entries() if entry["kind"] == "dataset")
    described = sender._described(entry)
    assert described["source_type"] == "http" and described["name"] == "ludb"
    assert json.loads(described["source"])["url"].startswith("https://physionet.org/files/ludb/")


# --- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["nonsense://nowhere", "http://", "http:/127.0.0.1:5000", "https://a b/", "sqlite:mlflow.db", "x:y"],
)
def test_a_malformed_address_is_said_at_once(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    Path("params.yaml").write_text("{}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.run_stage("train", lambda config, run: {}) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: MLFLOW_TRACKING_URI is {uri!r}: ")
    assert len(message.splitlines()) == 1
    assert outbox.waiting(outbox.outbox()) == []


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("sqlite:///other.db", "sqlite:///{root}/other.db"),
        ("sqlite:////somewhere/a.db", "sqlite:////somewhere/a.db"),
        ("mlruns", "file://{root}/mlruns"),
        ("file:///a/b", "file:///a/b"),
        ("databricks", "databricks"),
        ("postgresql+psycopg2://me:secret@host/db", "postgresql+psycopg2://me:secret@host/db"),
        ("HTTPS://host:80/path?x=1", "HTTPS://host:80/path?x=1"),
    ],
)
def test_an_address_means_the_same_wherever_a_stage_runs(
    inside: Path, monkeypatch: pytest.MonkeyPatch, uri: str, meant: str
) -> None:
    below = inside / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.tracking_uri() == meant.format(root=inside.as_posix())


def test_a_password_is_not_shown() -> None:
    from ecggen.tracking.identity import shown

    assert shown("http://me:secret@host:5000/x") == "http://me:***@host:5000/x"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_a_wait_that_is_no_number_is_said_at_once(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text("{}\n")
    monkeypatch.setenv("ECGGEN_TRACKING_WAIT", "long")
    assert tracking.run_stage("train", lambda config, run: {}) == 1
    assert capsys.readouterr().err.startswith("error: ECGGEN_TRACKING_WAIT is 'long': a number of seconds")


# --- stages -------------------------------------------------------------------------------------------------


def test_a_killed_stage_is_closed_by_the_next_one(inside: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment(), timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    # Its courier may have been quicker than this; then there is nothing left to do.
    for _ in range(600):
        if not courier.serves(outbox.outbox()):
            break
        threading.Event().wait(0.1)
    assert main(["send"]) == 0
    parent, child = state()
    assert (parent["status"], child["status"]) == ("KILLED", "KILLED")
    assert child["metrics"]["epoch/val_r"] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert child["tags"]["error"] == "The process was killed."


def test_a_running_stage_is_left_open(inside: Path) -> None:
    with tracking.stage_run("train", Config()) as run:
        run.metrics({"a": 1.0})
        assert main(["send"]) == 0
        assert [found["status"] for found in state()] == ["RUNNING", "RUNNING"]
        run.metrics({"b": 2.0})
    assert main(["send"]) == 0
    parent, child = state()
    assert (parent["status"], child["status"]) == ("FINISHED", "FINISHED")
    assert child["metrics"] == {"a": [(0, 1.0)], "b": [(0, 2.0)]}


def test_a_line_cut_short_costs_that_line_alone(inside: Path) -> None:
    with tracking.stage_run("train", Config()) as run:
        run.metrics({"a": 1.0})
        assert run._journal is not None
        run._journal._stream.write(b'{"kind": "metrics", "ti')  # and no more, on a full disk
        run._journal._torn = True
        run.metrics({"b": 2.0})
    assert main(["send"]) == 0
    assert state()[1]["metrics"] == {"a": [(0, 1.0)], "b": [(0, 2.0)]}


def test_an_outbox_that_cannot_be_written_costs_a_warning(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: outbox.Journal, kind: str, **fields: Any) -> None:
        raise OSError(28, "No space left on device")

    with tracking.stage_run("train", Config()) as run:
        monkeypatch.setattr(outbox.Journal, "add", full)
        run.metrics({"a": 1.0})
        run.metrics({"b": 1.0})
        run.artifact("dvc.yaml")
    with tracking.stage_run("train", Config()) as run:
        run.metrics({"a": 1.0})
    first, second = capsys.readouterr().err.splitlines()
    assert "is not recorded further" in first and "No space left on device" in first and first == second
    assert len(outbox.waiting(outbox.outbox())) == 1


def test_locks_belong_to_the_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.held(path) and not path.exists()
    assert locks.take(path) and not locks.take(path) and locks.held(path)
    code = (
        f"from pathlib import Path; from ecggen.tracking import locks; print(locks.held(Path({str(path)!r})))"
    )
    ask = [sys.executable, "-c", code]
    assert subprocess.check_output(ask, env=environment(), text=True) == "True\n"
    child = os.fork()
    if child == 0:  # has the file open as well, and ends
        os._exit(0)
    os.waitpid(child, 0)
    assert subprocess.check_output(ask, env=environment(), text=True) == "True\n"
    locks.drop(path)
    assert subprocess.check_output(ask, env=environment(), text=True) == "False\n"
