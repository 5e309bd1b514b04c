"""Stages that are killed, told to end, or short of disk; results that were cut short."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError, disk_words, in_words
from stages import run_stage
from stages.record import StageRun
from tests.small_pipeline import SMALL

ROOT = Path(__file__).resolve().parents[1]
#: Stage -> what it leaves, in the order of the pipeline; of the evaluations, which share one frame, one.
OUTPUTS = {
    "download": ["data/raw"],
    "preprocess": ["data/records"],
    "window": ["data/windows"],
    "train": ["results/train/checkpoint.pt", "results/train/history.csv", "results/train/facts.csv"],
    "linear_probe": ["results/linear_probe"],
    "transfer_windows": ["data/transfer"],
    "report": ["results/report"],
}
QUICKER: dict[str, dict[str, Any]] = {
    "synthetic": {"patients": 16, "seconds": 5.2},
    "train": {"epochs": 1},
    "linear_probe": {"pca": 4},
}

# Stages run in processes of their own, forked from one that has imported already what all of them need.
FORK = multiprocessing.get_context("forkserver")
ROOMS = "report.page trainer training.processes eval.linear_probe eval.workers inference.renderer"
ROOMS += " prepare.check prepare.download.stage prepare.preprocess.stage prepare.window.stage"
ROOMS += " prepare.synthetic.windows prepare.transfer_windows"
MODULES = (
    "torch._dynamo wfdb scipy.signal scipy.interpolate sklearn.linear_model pydicom.data stages.evaluation"
)
FORK.set_forkserver_preload(
    [*MODULES.split(), "stages.evaluation", *(f"ecggen.{room}" for room in ROOMS.split())]
)


def work(folder: Path, stage: str, words: Path) -> None:
    """One stage, as `python -m stages.NAME` in this folder; what it prints goes to the file `words`."""
    handle = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ |= {"ECGGEN_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    os.chdir(folder)
    import torch

    from ecggen.training import calibration

    torch.set_num_threads(1)
    calibration.SETS = calibration.SETS[:4]
    sys.exit(run_stage(stage, importlib.import_module(f"stages.{stage}").stage))


def run(folder: Path, stage: str, words: Path, kill_after: float | None = None) -> int:
    """Exit code of a stage that is killed after some seconds, or (None) left to its work."""
    process = FORK.Process(target=work, args=(folder, stage, words))
    process.start()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def contents(folder: Path, stage: str) -> dict[str, bytes]:
    """Every file that a stage leaves."""
    paths = [path for name in OUTPUTS[stage] for path in (folder / name, *(folder / name).rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def litter(folder: Path) -> list[Path]:
    """Hidden files and folders: temporaries, locks."""
    return [*(folder / "data").rglob(".*"), *(folder / "results").rglob(".*")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder in which every stage ran in peace, and the seconds each one took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in (*SMALL.items(), *QUICKER.items()):
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    run(folder, "", folder / "words")  # the first process waits for the imports
    seconds = {}
    for stage in OUTPUTS:
        began = time.perf_counter()
        assert run(folder, stage, folder / "words") == 0, (folder / "words").read_text()
        seconds[stage] = time.perf_counter() - began
        assert contents(folder, stage)
    assert litter(folder) == []
    return folder, seconds


@pytest.mark.parametrize("stage", [name for name in OUTPUTS if name != "train"])
def test_a_killed_stage_leaves_the_same_bytes_when_it_runs_again(
    undisturbed: tuple[Path, dict[str, float]], stage: str
) -> None:
    folder, seconds = undisturbed
    expected = contents(folder, stage)
    moment = random.Random(stage).uniform(0.1, 0.9)
    code = run(folder, stage, folder / "words", moment * seconds[stage])
    assert code in (-signal.SIGKILL, 0)  # 0: on a quicker minute of the machine it was done
    for name, data in contents(folder, stage).items():
        if name in expected and ".partial" not in name:
            assert data == expected[name], f"{name} was half-written"
    assert run(folder, stage, folder / "words") == 0, (folder / "words").read_text()
    assert contents(folder, stage) == expected
    assert litter(folder) == []


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_disk(undisturbed: tuple[Path, dict[str, float]], tmp_path_factory: Any) -> Iterator[Path]:
    """A disk of 48 MB in memory, with a copy of the folder."""
    place = tmp_path_factory.mktemp("disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here (root can): a full one cannot be tried")
    try:
        shutil.copytree(undisturbed[0], place / "project")
        yield place / "project"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_full_disk_is_one_sentence(
    undisturbed: tuple[Path, dict[str, float]], small_disk: Path, tmp_path: Path, stage: str
) -> None:
    """With room for a few blocks, so that small files go well and what follows them does not."""
    before = contents(small_disk, stage)
    filler = small_disk.parent / "filler"
    free = shutil.disk_usage(small_disk).free
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free - 3 * 4096)
    try:
        code = run(small_disk, stage, tmp_path / "words")
        words = [line for line in (tmp_path / "words").read_text().splitlines() if "epoch" not in line]
    finally:
        filler.unlink()
    assert code == 1, words
    assert words[-1].startswith("error: ") and not any("Traceback" in line for line in words), words
    assert "no space left on device" in words[-1].lower()
    assert "run dvc repro again" in words[-1] or "run the same command again" in words[-1]
    assert litter(small_disk) == []
    for name, data in contents(small_disk, stage).items():
        assert data == before.get(name, data), f"{name} was half-written"
    for name, data in contents(undisturbed[0], stage).items():  # for the stages that follow
        (small_disk / name).parent.mkdir(parents=True, exist_ok=True)
        (small_disk / name).write_bytes(data)


# --- results cut short --------------------------------------------------------------------------------------


@pytest.fixture
def copy(undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: Any) -> Path:
    """The folder, to be spoiled; the working directory."""
    shutil.copytree(undisturbed[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    return tmp_path / "copy"


def refusal(stage: str) -> str:
    """The one sentence that a stage ends with."""
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        assert run_stage(stage, importlib.import_module(f"stages.{stage}").stage) == 1
    (line,) = words.getvalue().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_checkpoint_cut_short_is_one_sentence(copy: Path) -> None:
    path = copy / "results/train/checkpoint.pt"
    whole, rng, before = path.read_bytes(), random.Random(0), contents(copy, "linear_probe")
    stages = ("reconstruction", "missing_lead", "linear_probe")
    for length in [0, 1, *(rng.randrange(len(whole)) for _ in range(10))]:
        path.write_bytes(whole[:length])
        for stage in stages:
            assert "checkpoint.pt is not a readable checkpoint" in refusal(stage)
    assert contents(copy, "linear_probe") == before


def test_windows_cut_short_are_one_sentence(copy: Path) -> None:
    path, index = copy / "data/windows/windows.npy", copy / "data/windows/index.csv"
    whole, rows = path.read_bytes(), index.read_text()
    for length in (0, 5, 64, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "windows.npy" in refusal("reconstruction"), length
    path.write_bytes(whole)
    index.write_text("".join(rows.splitlines(keepends=True)[:-3]))
    assert "index.csv" in refusal("linear_probe")
    index.write_text(rows)
    np.save(path, np.load(path)[:-3])
    assert "index.csv" in refusal("missing_lead")


# --- in words -----------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("{}\n")
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "DVC_", "ECGGEN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")  # in this process
    return tmp_path


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: no space left on device ("),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied: give this user"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.csv"), "x.csv: No such file or dir"),
        (OSError(errno.EFBIG, "File too large"), "A file: larger than this system or user may write"),
        (OSError("odd"), "odd."),
        (sqlite3.OperationalError("database or disk is full"), "The disk: no space left on device ("),
        (MemoryError(), "Not enough memory: close other programs"),
        (MemoryError("Unable to allocate 9 TiB"), "Not enough memory (Unable to allocate 9 TiB): close"),
        (EcggenError("The value is 3."), "The value is 3."),
    ],
)
def test_what_lies_outside_the_program_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], error: Exception, expected: str
) -> None:
    def body(config: Config, run: StageRun) -> dict[str, Any]:
        raise error

    assert run_stage("window", body) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")


def test_a_full_disk_says_what_is_needed_and_what_is_free(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    words = disk_words(error, tmp_path / "none" / "x.npy", 39_321_600_000)
    assert words.startswith(f"{tmp_path}/none/x.npy: no space left on device (39.3 GB are needed, ")
    assert " are free there): make room" in words
    assert " needed" not in disk_words(error) and "(0.2 MB are needed" in disk_words(error, "a", 204_800)


def test_a_real_lack_of_memory(here: Path) -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert str(in_words(caught.value)).startswith("Not enough memory")


def test_a_defect_keeps_its_traceback(here: Path) -> None:
    with pytest.raises(KeyError, match="missing"):
        run_stage("window", lambda config, run: {"x": {}["missing"]})


# --- signals ------------------------------------------------------------------------------------------------

WAITING = """
import sys, time, multiprocessing
from pathlib import Path
from stages import record, run_stage
record._start_following = lambda: None
def stage(config, run):
    run.metrics({"a": 1.0})
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    time.sleep(0.1)
    worker.terminate()  # a worker inherits the handlers and must simply end
    worker.join()
    Path("ready").write_text(str(worker.exitcode))
    time.sleep(60)
    return {}
sys.exit(run_stage("train", stage))
"""


def started(here: Path, **options: Any) -> subprocess.Popen[str]:
    """A stage that runs until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ECGGEN_TRACKING": ""},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    until = time.monotonic() + 100
    while not (here / "ready").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_stage_that_is_ended_by_a_signal_says_so(here: Path, name: str) -> None:
    """As SLURM and Kubernetes end a job, Ctrl-C, and a closed terminal."""

    def default() -> None:  # a shell's background jobs ignore Ctrl-C, and a hang-up may be ignored as well
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    process = started(here, preexec_fn=default)
    assert (here / "ready").read_text() == str(-signal.SIGTERM)
    number = getattr(signal, name)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == f"error: stage train was ended ({name})."
    (record,) = (here / ".ecggen/runs").glob("*/run.json")
    assert json.loads(record.read_text())["status"] == "KILLED"


def test_nohup_is_respected(here: Path) -> None:
    process = started(here, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_no_second_stage_beside_one_that_lost_its_dvc(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body: Callable[..., dict[str, Any]] = lambda config, run: {}  # noqa: E731
    process = started(here)
    assert run_stage("train", body) == 1
    assert "Stage train is still running in this folder" in capsys.readouterr().err
    assert run_stage("window", body) == 0
    process.kill()
    process.communicate(timeout=60)
    assert run_stage("train", body) == 0
