"""MLflow records: parent and children, failures, two processes meeting a fresh store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecggen import tracking
from ecggen.report.summary import headline, headlines, words
from ecggen.report.summary import main as last_words
from ecggen.tracking import courier, identity, outbox, stage
from ecggen.tracking.__main__ import main
from ecggen.tracking.identity import own_process
from ecggen.tracking.stage import StageRun
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """A folder with a fresh store, met by two stages at once."""
    # In memory where there is such a disk: the making of a database waits for a real one.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        meet(Path(folder).resolve())
        yield Path(folder).resolve()


def meet(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: {}\n")
    code = (
        "import sys\n"
        "from ecggen.tracking import stage_run\n"
        "from ecggen.utils.config import Config\n"
        "with stage_run(sys.argv[1], Config()) as run:\n"
        "    run.metrics({'a': {'I+II': 0.5}, 'text': 'x', 'bad': float('nan')})\n"
    )
    drop = ("MLFLOW_", "DVC_", "ECGGEN_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    environment = clean | {"ECGGEN_RUN_KEY": "both", "ECGGEN_TRACKING_WAIT": "200"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, name], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")


@pytest.fixture
def inside(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder of the store, without a courier: tests send themselves."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "DVC_", "ECGGEN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ECGGEN_TRACKING_WAIT", "0")
    monkeypatch.setattr(courier, "start", lambda root: None)
    monkeypatch.chdir(store)
    return store


def client():
    import mlflow

    return mlflow.MlflowClient(tracking_uri=tracking.tracking_uri())


def runs(stage: str = "", key: str = "") -> list:
    experiment = client().get_experiment_by_name("ecggen")
    found = client().search_runs([experiment.experiment_id])
    return [
        run
        for run in found
        if run.data.tags["stage"].startswith(stage) and run.data.tags[tracking.KEY_TAG].startswith(key)
    ]


def send(capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m ecggen.tracking send` prints where nothing stays behind."""
    capsys.readouterr()
    assert main(["send"]) == 0
    assert outbox.waiting(outbox.outbox()) == []
    return capsys.readouterr().out


def test_two_processes_on_a_fresh_store_share_one_parent(inside: Path) -> None:
    (parent,) = runs("pipeline", "both")
    children = [run for run in runs(key="both") if run.info.run_id != parent.info.run_id]
    assert sorted(run.data.tags["stage"] for run in children) == ["first", "second"]
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics == {"a.I_II": 0.5}
        assert child.data.params["model.tokenizer_mode"] == "equidistant"
        assert child.info.status == "FINISHED"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["train.reg.smooth"] == str(Config().train.reg.smooth)
    assert (inside / "mlflow.db").is_file()
    assert parent.info.artifact_uri.startswith((inside / "mlartifacts").as_uri())


def test_epochs_dataset_files_and_headline(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ECGGEN_RUN_KEY", "full")
    write_json(inside / "data/windows/meta.json", {"fingerprint": "f" * 64, "counts": {"windows": 3}})
    (inside / "table.csv").write_text("a\n1\n")
    config = config_from_dict({"model": {"tokenizer_mode": "rr"}})
    with tracking.stage_run("train", config) as run:
        run.dataset("data/windows", "training")
        for epoch in range(3):
            run.epoch({"epoch": epoch, "val_r": 0.1 * epoch})
        run.artifact("table.csv")
        (inside / "table.csv").write_text("later\n")  # the file of that moment is what is recorded
        run.headline({"train.validation_r": 0.2})
        run.headline({"train.validation_r": 0.9, "other": 1.0})
    began = int(run._journal.path.name[9:15])  # hhmmss
    assert send(capsys) == "Sent 1, waiting 0, of stages that still run 0.\n"
    (parent,), (child,) = runs("pipeline", "full"), runs("train", "full")
    history = client().get_metric_history(child.info.run_id, "epoch/val_r")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert parent.data.metrics == {"train.validation_r": 0.2, "other": 1.0}  # the first value stands
    for record in (parent, child):
        (entry,) = record.inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("synthetic", "f" * 36)
        assert record.data.tags["data_fingerprint"] == "f" * 64
        assert record.data.tags["tokenizer_mode"] == "rr"
    assert [file.path for file in client().list_artifacts(child.info.run_id)] == ["table.csv"]
    kept = Path(client().download_artifacts(child.info.run_id, "table.csv"))
    assert kept.read_text() == "a\n1\n"
    begun = time.gmtime(child.info.start_time / 1000)
    assert begun.tm_hour * 10000 + begun.tm_min * 100 + begun.tm_sec == began
    assert child.info.start_time <= history[0].timestamp <= child.info.end_time


def test_failure_ends_child_and_parent(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ECGGEN_RUN_KEY", "broken")
    (inside / "params.yaml").write_text("train:\n  epochs: 2\n")

    def body(config: Config, run: tracking.StageRun) -> dict:
        raise EcggenError(f"There are {config.train.epochs} reasons.")

    assert tracking.run_stage("train", body) == 1
    assert capsys.readouterr().err == "error: There are 2 reasons.\n"
    send(capsys)
    assert [run.info.status for run in runs(key="broken")] == ["FAILED", "FAILED"]
    assert runs("train", "broken")[0].data.tags["error"] == "There are 2 reasons."


def test_off_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    with tracking.stage_run("train", Config()) as run:
        run.metrics({"a": 1})
        run.epoch({"epoch": 0})
        run.headline({"a": 1.0})
        run.dataset("data/windows", "training")
        run.artifact("nothing")
        run.figure(None, "nothing")
    assert list(tmp_path.iterdir()) == []


def test_store_belongs_to_the_main_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary experiments run in a copy that is deleted afterwards; DVC_ROOT names the original."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path.as_posix()}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert tracking.tracking_uri() == f"sqlite:///{(tmp_path / 'main').as_posix()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.tracking_uri() == "http://127.0.0.1:5000"


def test_run_key_tells_experiments_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECGGEN_RUN_KEY", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    plain = tracking.run_key()
    assert plain == tracking.run_key()
    monkeypatch.setenv("DVC_EXP_NAME", "quick-fox")
    named = tracking.run_key()
    monkeypatch.setenv("ECGGEN_RUN_KEY", "it's mine")
    assert len({plain, named, tracking.run_key()}) == 3
    assert tracking.run_key() == "it_s_mine"


@pytest.mark.parametrize(
    ("command", "dvc"),
    [
        (["python", "-u", "-B", "-m", "dvc", "repro"], True),
        (["/v/bin/python", "/v/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "exp", "run"], True),
        (["dvc", "exp", "exec-run"], True),
        (["make", "run"], False),
        (["/bin/sh", "-c", "python stages/train.py"], False),
        (["vim", "notes", "dvc"], False),
    ],
)
def test_dvc_process_is_recognised(command: list[str], dvc: bool) -> None:
    assert identity.is_dvc(command) is dvc


def test_pipeline_refuses_a_window_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    (tmp_path / "params.yaml").write_text("data:\n  meta_root: /my/windows\n")
    assert tracking.run_stage("train", lambda config, run: {}) == 1
    assert "data.meta_root is '/my/windows'" in capsys.readouterr().err


def test_headlines_and_words(tmp_path: Path) -> None:
    lead_sets = {"I+II": {"model": {"r": 0.8, "r_low": 0.7}, "linear_regression": {"r": 0.6}}}
    missing = {"test": lead_sets | {"-V3": {"model": {"r": 0.9}}}, "ttt_gain_r": {"I+II": 0.01}}
    expected = {"missing_lead.I+II.r": 0.8, "missing_lead.ttt_gain_r.I+II": 0.01}
    assert headline("missing_lead", missing) == expected
    assert headline("unknown", missing) == {}
    assert words(tmp_path) == [] and headlines(tmp_path) == {}
    write_json(tmp_path / "missing_lead/metrics.json", missing)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.json").write_text("not json")
    assert headlines(tmp_path) == expected
    text = "\n".join(words(tmp_path))
    assert "0.800" in text and "0.600" in text and "-V3" not in text


def test_the_last_words_name_what_was_not_sent(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(inside / "results/train/metrics.json", {"validation_r": 0.5})
    assert last_words() == 0
    assert "ecggen.tracking send" not in capsys.readouterr().out
    with tracking.stage_run("train", Config()):
        assert last_words() == 0
    assert "ecggen.tracking send" not in capsys.readouterr().out, "its stage is still running"
    assert last_words() == 0
    said = capsys.readouterr().out
    assert f"1 stage runs yet: they wait in {outbox.outbox()}; python -m ecggen.tracking send" in said
    send(capsys)


def test_only_where_the_pipeline_may_end_does_a_stage_wait(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[str, float]] = []
    monkeypatch.setattr(StageRun, "_wait", lambda self, seconds: waited.append((self.name, seconds)))

    def one(name: str) -> None:
        with tracking.stage_run(name, Config()):
            pass

    monkeypatch.delenv("ECGGEN_TRACKING_WAIT")
    one("train")  # by hand: nothing follows
    monkeypatch.setattr(stage, "pipeline_process", own_process)
    one("train")
    one("report")
    with pytest.raises(EcggenError), tracking.stage_run("window", Config()):
        raise EcggenError("no such folder")
    monkeypatch.setenv("ECGGEN_TRACKING_WAIT", "60")  # somebody wants it
    one("preprocess")
    assert waited == [("train", 3), ("train", 0), ("report", 3), ("window", 3), ("preprocess", 60)]


def test_a_stage_that_does_not_wait_still_says_what_is_wrong(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(stage, "pipeline_process", own_process)
    monkeypatch.setattr(courier, "start", started.append)
    monkeypatch.delenv("ECGGEN_TRACKING_WAIT")
    with tracking.stage_run("train", Config()) as run:
        assert run._journal is not None
        (run._journal.path / outbox.FAILED).write_text("the disk is full\n")
    assert "does not take the records of stage train now (the disk is full)" in capsys.readouterr().err
    with tracking.stage_run("train", Config()):
        pass
    assert capsys.readouterr().err == "" and len(started) == 3, "its courier was lost: another one is started"


def test_transfer_is_told_by_database(tmp_path: Path) -> None:
    there = {name: {"model": {"r": r, "difference": r - 0.9}} for name, r in (("I+II", 0.85), ("-V3", 0.95))}
    metrics = {
        "train": "home",
        "missing_lead": {"home": {"I+II": {"model": {"r": 0.9}}}, "there": there},
        "lead_sets_within": {"there": {"within": 1, "of": 2}},
        "margin": 0.03,
    }
    assert headline("transfer", metrics) == pytest.approx(
        {
            "transfer.home.I+II.r": 0.9,
            "transfer.there.I+II.r": 0.85,
            "transfer.there.I+II.difference": -0.05,
            "transfer.there.lead_sets_within": 1,
        }
    )
    write_json(tmp_path / "transfer/metrics.json", metrics)
    (line,) = words(tmp_path)
    assert "tested on there" in line and "1 of 2 lead sets" in line and "I+II 0.850 (0.900)" in line
    write_json(tmp_path / "transfer/metrics.json", {"train": "home", "databases": {}, "skipped": "none"})
    assert words(tmp_path) == []
