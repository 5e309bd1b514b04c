"""Several processes: the same losses, errors of one raised by all, a lost one replaced, none left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ecggen.training.checkpoint import CheckpointError, load_checkpoint
from ecggen.training.devices import DeviceError, pick_device
from ecggen.training.processes import LaunchError, Ranks, process_count, ranks_of_environment, train
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.files import read_csv
from ecggen.utils.run_id import list_step_dirs
from tests.tiny_training import ROOT, one_thread, tiny_config, write_windows

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", autouse=True)
def quiet_workers() -> Iterator[None]:
    """Workers get one thread and no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"):
            patch.setenv(name, one_thread()[name])
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return changed(tiny_config(write_windows(tmp_path_factory.mktemp("windows"))), checkpoint_every=1)


@pytest.fixture(scope="module")
def one(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("one")
    train(config, out, quiet=True)
    return out


def changed(config: Config, model: dict[str, Any] | None = None, **options: Any) -> Config:
    mapping = config_to_dict(config)
    mapping["train"] |= options
    mapping["model"] |= model or {"dropout": 0.0}
    return config_from_dict(mapping)


def losses(out: Path) -> list[float]:
    return [float(row[name]) for row in read_csv(out / "history.csv") for name in ("train_loss", "val_loss")]


@contextmanager
def killing(process: int, when: Callable[[], bool]) -> Iterator[None]:
    """Within the block kill -9 the worker of this number, once, as soon as there are workers and `when`."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            if when() and len(workers := children(os.getpid())) > process:
                os.kill(workers[process], signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_two_processes_one_of_them_lost_give_the_losses_of_one(config: Config, tmp_path: Path) -> None:
    """Three parts of a batch in one process, two in each of two, started again in the second epoch."""
    rows: list[dict[str, Any]] = []
    out = tmp_path / "two"
    train(changed(config, shards=3), tmp_path / "one", quiet=True)
    with killing(1, lambda: len(list_step_dirs(out)) > 3):
        train(changed(config, shards=3, nproc=2), out, on_epoch=rows.append, quiet=True)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert [row["epoch"] for row in rows] == [0, 1], "every epoch is reported once"


def test_processes_that_are_lost_for_good_end_in_one_sentence(config: Config, tmp_path: Path) -> None:
    with (
        killing(1, lambda: bool(list_step_dirs(tmp_path))),
        pytest.raises(LaunchError, match=r"0 restart.*process 1 was ended by SIGKILL \(often: out of memory"),
    ):
        train(changed(config, nproc=2, restarts=0, epochs=500), tmp_path, quiet=True)


def test_an_error_of_one_process_is_raised_once_and_not_tried_again(config: Config, tmp_path: Path) -> None:
    (tmp_path / "step_000002").touch()  # rank 0 alone writes
    with pytest.raises(CheckpointError, match="step_000002"):
        train(changed(config, nproc=2), tmp_path, quiet=True)
    assert [step for step, _ in list_step_dirs(tmp_path)] == [1]


def test_no_process_outlives_the_stage_and_the_next_stage_goes_on(config: Config, tmp_path: Path) -> None:
    """As DVC runs it, with two processes; kill -9 of the stage alone."""
    mapping = config_to_dict(config)
    del mapping["data"]["meta_root"]
    mapping["train"] |= {"nproc": 2, "epochs": 60, "checkpoint_every": 1}
    (tmp_path / "params.yaml").write_text(json.dumps(mapping))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/windows").symlink_to(config.data.meta_root)
    out, environment = tmp_path / "results/train", one_thread() | {"PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=tmp_path, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: len(list_step_dirs(out)) > 1 or stage.poll() is not None)
        workers = children(stage.pid)
        assert stage.poll() is None and len(workers) >= 2
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    wait_for(lambda: not any(map(alive, workers)), 30)
    saved = [step for step, folder in list_step_dirs(out) if (folder / "checkpoint.pt").is_file()]
    assert saved
    from ecggen import trainer

    data = {key: mapping["data"][key] for key in ("fs", "time_len")}  # what the stage hands on
    single = {"data": data, "model": mapping["model"], "train": mapping["train"] | {"nproc": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(trainer.Trainer, "fit", lambda self, on_epoch: {"step": self.at.step})
        assert trainer.train(config_from_dict(single), out, pick_up=True, quiet=True)["step"] == saved[-1]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Workers of a process, in the order of their start."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    pids = sorted(int(child) for path in lists for child in path.read_text().split())
    return [child for child in pids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def alive(pid: int) -> bool:
    """Whether any of its threads runs: the first one may have ended before the others."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def test_torchrun_by_hand(config: Config, one: Path, tmp_path: Path) -> None:
    """torchrun -m ecggen.main: one process reports, and the result is that of one process."""
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ecggen.main", "--config", "config.json", "--mode", "train", "--out", "runs", "--quiet"]
    environment = one_thread() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained m1s1k1") == 1
    run = tmp_path / "runs/m1s1k1"
    assert losses(run) == pytest.approx(losses(one), rel=1e-4)
    assert load_checkpoint(run)["config"] == load_checkpoint(one)["config"]


def test_torchrun_says_which_process_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert ranks_of_environment() == Ranks()
    for name, value in zip(names, "58132", strict=True):
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(5, 8, 1, 3, 2)


def test_processes_and_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**options: Any) -> int:
        return process_count(config_from_dict({"train": options}))

    assert count(device="cpu", nproc=3) == 3 and count(device="cpu", nproc=0) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert count(nproc=0) == 2 and count(device="cpu", nproc=3) == 3
    assert pick_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"nproc is 3 and this machine has 2 GPU\(s\): use train.nproc=0"):
        count(nproc=3)
    with pytest.raises(DeviceError, match="one device for several processes"):
        count(device="cuda:1", nproc=2)
    with pytest.raises(DeviceError, match="Process 3 on this machine has no GPU, there are 2"):
        pick_device("cuda", 2)
