"""Several processes: the same losses, errors of one raised by all, a lost one replaced, none left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ecggen.training.checkpoint import load_checkpoint
from ecggen.training.devices import DeviceError, pick_device
from ecggen.training.processes import LaunchError, Ranks, process_count, ranks_of_environment, train
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.files import read_csv
from ecggen.utils.run_id import list_step_dirs
from tests.running import runs, wait_for, workers_of
from tests.tiny_training import ROOT, one_thread, tiny_config, write_windows

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
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
    windows = write_windows(tmp_path_factory.mktemp("windows"))
    return changed(tiny_config(windows, shards=3, epochs=3, checkpoint_every=1))


@pytest.fixture(scope="module")
def one(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process: three parts of a batch, of which two processes compute two each."""
    out = tmp_path_factory.mktemp("one")
    train(config, out, quiet=True)
    return out


def changed(config: Config, **options: Any) -> Config:
    mapping = config_to_dict(config)
    mapping["train"] |= options
    mapping["model"]["dropout"] = 0.0
    return config_from_dict(mapping)


def losses(out: Path) -> list[float]:
    return [float(row[name]) for row in read_csv(out / "history.csv") for name in ("train_loss", "val_loss")]


@contextmanager
def killing(process: int, out: Path, steps: tuple[int, ...]) -> Iterator[None]:
    """Within the block kill -9 the worker of this number whenever so many steps are saved."""
    ended = threading.Event()

    def kill() -> None:
        last = None
        for count in steps:
            while not ended.wait(0.02):
                workers = workers_of(os.getpid())
                if len(list_step_dirs(out)) >= count and len(workers) > process and workers[process] != last:
                    last = workers[process]
                    last.kill()
                    break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_lost_processes_are_replaced_as_often_as_allowed_and_losses_are_those_of_one(
    config: Config, one: Path, tmp_path: Path
) -> None:
    """Lost in the first and in the second epoch; the rest is trained by one process."""
    rows: list[dict[str, Any]] = []
    with (
        killing(1, tmp_path, (2, 5)),
        pytest.raises(LaunchError, match=r"1 restart.*process 1 ended with .*SIGKILL.*out of memory"),
    ):
        train(changed(config, nproc=2, restarts=1), tmp_path, on_epoch=rows.append, quiet=True)
    assert [row["epoch"] for row in rows] == list(range(len(rows))) and rows, "each is reported once"
    assert [row["train_loss"] for row in rows] == pytest.approx(losses(one)[: 2 * len(rows) : 2], rel=1e-4)
    train(config, tmp_path, resume=True, quiet=True)
    assert losses(tmp_path) == pytest.approx(losses(one), rel=1e-4)


def test_an_error_of_one_process_is_raised_once_and_not_tried_again(config: Config, tmp_path: Path) -> None:
    (tmp_path / "step_000002").touch()  # rank 0 alone writes
    with pytest.raises(FileExistsError, match="step_000002"):
        train(changed(config, nproc=2), tmp_path, quiet=True)
    assert [step for step, _ in list_step_dirs(tmp_path)] == [1]


def test_no_process_outlives_the_stage(config: Config, tmp_path: Path) -> None:
    """As DVC runs it, with two processes; kill -9 of the stage alone."""
    mapping = config_to_dict(config)
    del mapping["data"]["meta_root"]
    mapping["train"] |= {"nproc": 2, "epochs": 60}
    (tmp_path / "params.yaml").write_text(json.dumps(mapping))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/windows").symlink_to(config.data.meta_root)
    out, environment = tmp_path / "results/train", one_thread() | {"PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=tmp_path, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: list_step_dirs(out) or stage.poll() is not None, 240)
        workers = workers_of(stage.pid)
        assert stage.poll() is None and len(workers) >= 2
    finally:
        stage.kill()
        stage.wait()
    wait_for(lambda: not any(map(runs, workers)), 30)


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
    with pytest.raises(DeviceError, match="one device for several processes"):
        count(device="cuda:1", nproc=2)
    with pytest.raises(DeviceError, match=r"Process 3 on .* there are 2: use train\.nproc=0"):
        count(nproc=3)
