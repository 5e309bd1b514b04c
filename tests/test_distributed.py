"""Several processes: the same bits, errors of one told by all, a lost one replaced, none left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ecggen.training.checkpoint import load_checkpoint
from ecggen.training.devices import DeviceError, pick_device
from ecggen.training.distributed import AcrossRanks, Ranks, ranks_of_environment
from ecggen.training.launch import processes
from ecggen.training.parallel import sum_in_pairs
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.run_id import list_step_dirs
from tests.training import ROOT, one_thread, tiny_config, write_windows

OUTS = ("checkpoint.pt", "history.csv", "metrics.json")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(write_windows(tmp_path_factory.mktemp("windows")), epochs=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def told(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/forking.py saw, and the folder with its runs."""
    root = tmp_path_factory.mktemp("runs")
    (root / "job.json").write_text(json.dumps({"config": config_to_dict(config), "root": str(root)}))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.forking", str(root / "job.json")],
        cwd=ROOT, env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"root": root, "stderr": done.stderr}


def equal(told: dict[str, Any], a: str, b: str) -> bool:
    root = told["root"]
    return all((root / a / name).read_bytes() == (root / b / name).read_bytes() for name in OUTS)


@pytest.mark.parametrize(
    ("ranks", "one"), [("2 ranks, 2 parts", "1 rank, 2 parts"), ("4 ranks, 4 parts", "1 rank, 4 parts")]
)
def test_ranks_that_share_out_the_parts_give_the_same_bits(
    told: dict[str, Any], ranks: str, one: str
) -> None:
    assert equal(told, ranks, one)


def test_ranks_that_hold_several_parts_give_the_same_bits(told: dict[str, Any]) -> None:
    assert equal(told, "2 ranks, 4 parts", "1 rank, 4 parts")


def test_another_cut_of_the_batch_gives_the_same_curve_within_rounding(told: dict[str, Any]) -> None:
    """Three ranks and two parts: a batch is cut in three. AdamW's first steps are the signs of gradients, so
    that rounding can turn one of a gradient near nothing; hence a tolerance of curves, not of weights."""
    losses = {}
    for name in ("3 ranks, 2 parts", "1 rank, 2 parts"):
        lines = (told["root"] / name / "history.csv").read_text().splitlines()
        losses[name] = [float(line.split(",")[2]) for line in lines[1:]]
    a, b = losses.values()
    assert a == pytest.approx(b, rel=1e-3) and len(a) == 2
    one = load_checkpoint(told["root"] / "1 rank, 2 parts")["config"]
    assert one == load_checkpoint(told["root"] / "3 ranks, 2 parts")["config"]


@pytest.mark.parametrize("order", ["1 then 2 ranks", "2 then 1 ranks"])
def test_a_run_goes_on_with_another_number_of_ranks(told: dict[str, Any], order: str) -> None:
    assert equal(told, order, "1 rank, 2 parts")


def test_an_error_of_one_rank_is_everybodys(told: dict[str, Any]) -> None:
    sentence = "TrainError: the second part of step 1 is spoilt"
    assert told["error of one rank"] == [sentence, sentence]
    assert told["error in validation"] == ["DataError: window 3 is spoilt"] * 2
    assert told["error of the writer"] == ["CheckpointError: no room"] * 2


def test_a_lost_process_is_replaced_and_changes_nothing(told: dict[str, Any]) -> None:
    assert equal(told, "one lost", "1 rank, 2 parts")
    assert told["rows of one lost"] == [0, 1], "every epoch is told once"


def test_an_error_in_words_is_not_tried_again(told: dict[str, Any]) -> None:
    assert told["elastic error"] == "TrainError: the second part of step 1 is spoilt"
    assert told["starts of elastic error"] == 1


def test_processes_that_are_lost_again_and_again_end_in_one_sentence(told: dict[str, Any]) -> None:
    error = told["always lost"]
    assert error.startswith(
        "LaunchError: Training on 2 processes was given up after 1 restart (train.restarts)"
    )
    assert "process 1 was ended by SIGKILL (often: out of memory)" in error and "\n" not in error
    assert told["starts of always lost"] == 2
    assert "torch/distributed" not in told["stderr"], "no pages of the agent's own"


def test_a_broken_program_shows_its_traceback_and_ends_in_one_sentence(told: dict[str, Any]) -> None:
    assert "process 1 failed (ZeroDivisionError: " in told["broken"]
    assert "Traceback" in told["stderr"] and "ZeroDivisionError" in told["stderr"]


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
    from ecggen.trainer import Trainer, train

    data = {key: mapping["data"][key] for key in ("fs", "time_len")}  # what the stage hands on
    one = config_from_dict(
        {"data": data, "model": mapping["model"], "train": mapping["train"] | {"nproc": 1}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(Trainer, "fit", lambda self, on_epoch: {"step": self.at.step})
        assert train(one, out, pick_up=True, quiet=True)["step"] == saved[-1]


def wait_for(condition: Any, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_sums_in_pairs_are_sums_of_branches() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1000) * 10**k for k in range(-4, 4)]
    whole = sum_in_pairs(parts)
    assert whole is not None
    torch.testing.assert_close(whole.double(), torch.stack(parts).double().sum(0), rtol=1e-4, atol=1e-3)
    for ranks in (2, 4, 8):
        each = len(parts) // ranks
        branches = [sum_in_pairs(parts[at : at + each]) for at in range(0, len(parts), each)]
        again = sum_in_pairs(branches)
        assert again is not None and torch.equal(again, whole)
    assert not torch.equal(torch.stack(parts).cumsum(0)[-1], whole), "the order of a sum does matter"
    one = parts[0]
    assert sum_in_pairs([None, one]) is one and sum_in_pairs([None, None]) is None


def test_alone_every_exchange_is_a_call() -> None:
    alone = Ranks()
    assert alone.main and alone.together(lambda: 3) == [3]
    assert alone.each(lambda: 4) == 4 and alone.from_main(lambda: 5) == 5
    assert AcrossRanks(alone, torch.device("cpu"), 1).map(lambda x: 2 * x, range(3)) == [0, 2, 4]
    flat = torch.ones(3)
    assert alone.add(flat) is flat


def test_torchrun_tells_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert ranks_of_environment() == Ranks()
    for name, value in zip(names, "58132", strict=True):
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(5, 8, 1, 3, 2)
    assert not ranks_of_environment().main


def test_processes_and_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**rules: Any) -> Config:
        return config_from_dict({"train": rules})

    assert processes(of(device="cpu", nproc=3)) == 3 and processes(of(device="cpu", nproc=0)) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes(of(nproc=0)) == 2 and processes(of(device="cpu", nproc=3)) == 3
    assert pick_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"nproc is 3 and this machine has 2 GPU\(s\): use train.nproc=0"):
        processes(of(nproc=3))
    with pytest.raises(DeviceError, match="one device for several processes"):
        processes(of(device="cuda:1", nproc=2))
    with pytest.raises(DeviceError, match="Process 3 on this machine has no GPU, there are 2"):
        pick_device("cuda", 2)


def test_torchrun_by_hand(config: Config, told: dict[str, Any], tmp_path: Path) -> None:
    """torchrun -m ecggen.main: one process has the say, and the result is that of one process."""
    mapping = config_to_dict(config)
    (tmp_path / "config.json").write_text(json.dumps(mapping))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ecggen.main", "--config", "config.json", "--mode", "train", "--out", "runs", "--quiet"]
    environment = one_thread() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained m1s1k1") == 1
    run = tmp_path / "runs/m1s1k1"
    a = load_checkpoint(run)["model"]
    b = load_checkpoint(told["root"] / "1 rank, 2 parts")["model"]
    # Calibrated through fewer lead sets there.
    assert all(torch.equal(a[name], b[name]) for name in a if name != "calibration")
    assert (run / "history.csv").read_text() == (told["root"] / "1 rank, 2 parts/history.csv").read_text()
