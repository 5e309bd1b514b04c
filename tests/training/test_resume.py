"""Going on after a kill: what is gone on with, what is not, and what is said."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ecggen import trainer as module
from ecggen.trainer import Trainer, train
from ecggen.training import calibration, checkpoint
from ecggen.training.checkpoint import (
    CONDUCT,
    CheckpointError,
    ResumeError,
    alone_in,
    load_checkpoint,
    result_config,
    save_checkpoint,
    save_step,
)
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.run_id import list_step_dirs
from tests.tiny_training import tiny_config, write_windows

OUTS = ("checkpoint.pt", "history.csv", "metrics.json")


class KilledError(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def few_lead_sets() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(calibration, "SETS", calibration.SETS[:3])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(write_windows(tmp_path_factory.mktemp("windows")), checkpoint_every=1)


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    train(config, out, quiet=True)
    return out


@pytest.fixture(scope="module")
def killed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended in step 5, the last of the second epoch."""
    out = tmp_path_factory.mktemp("killed")
    die(config, out, "_step", lambda trainer: trainer.at.step == 5)
    assert [step for step, _ in list_step_dirs(out)] == [1, 2, 3, 4, 5]
    return out


def die(config: Config, out: Path, method: str, when: Any = lambda trainer: True, **how: Any) -> None:
    """Train until a method of the trainer is called at a certain moment."""
    original = getattr(Trainer, method)

    def dying(self: Trainer, *args: Any) -> Any:
        if when(self):
            raise KilledError
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, method, dying)
        with pytest.raises(KilledError):
            train(config, out, quiet=True, **how)


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to, dirs_exist_ok=True)
    return to


def changed(config: Config, **train_options: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train_options))


def equal(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in OUTS)


def test_outputs_that_are_gone_come_back(config: Config, whole: Path, killed: Path, tmp_path: Path) -> None:
    """DVC deletes a stage's outputs before it runs it; earlier rows are reported again, once each."""
    out, rows = copied(killed, tmp_path), []
    for name in OUTS:
        (out / name).unlink(missing_ok=True)
    train(config, out, pick_up=True, on_epoch=rows.append, quiet=True)
    assert equal(out, whole)
    assert [row["epoch"] for row in rows] == [0, 1]


def test_a_run_killed_while_calibrating_after_early_stopping_trains_no_further(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = Trainer.validate

    def worse(self: Trainer) -> dict[str, float]:
        return {name: value - self.at.epoch for name, value in validate(self).items()}

    monkeypatch.setattr(Trainer, "validate", worse)
    short = changed(config, epochs=30, patience=1)
    metrics = train(short, tmp_path / "whole", quiet=True)
    assert metrics["epochs"] == 2
    die(short, tmp_path / "parts", "_calibrate")
    assert train(short, tmp_path / "parts", pick_up=True, quiet=True) == metrics
    assert equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("spoil", ["cut short", "one bit", "empty"])
def test_a_spoilt_checkpoint_is_passed_over_for_the_one_before(
    config: Config, whole: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    out = copied(killed, tmp_path)
    path = out / "step_000005" / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    if spoil == "one bit":
        data[len(data) // 2] ^= 4
    path.write_bytes(data[: {"cut short": len(data) // 3, "empty": 0}.get(spoil, len(data))])
    train(config, out, pick_up=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"passed over: {path} is not a readable checkpoint")
    assert lines[1] == "resumed at step 4 (epoch 2)"
    assert equal(out, whole)
    kept = [step for step, folder in list_step_dirs(out) if (folder / "checkpoint.pt").is_file()]
    assert kept == [5, 6]


def test_no_readable_checkpoint_is_a_fresh_start(
    config: Config, whole: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(killed, tmp_path)
    for _, folder in list_step_dirs(out):
        (folder / "checkpoint.pt").write_bytes(b"")
    train(config, out, pick_up=True)
    assert capsys.readouterr().err.count("passed over") == 5
    assert equal(out, whole)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"lr": 0.004}, "was trained with another configuration (section train)"),
        ("windows", "was trained on other windows"),
        ("code", "was trained by another code (0."),
    ],
)
def test_what_is_picked_up_is_of_the_same_run(
    config: Config, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, change: Any, why: str,
) -> None:  # fmt: skip
    out = copied(killed, tmp_path / "out")
    if change == "windows":
        root, read = copied(Path(config.data.meta_root), tmp_path / "windows"), module.read_window_folder
        (root / "meta.json").write_text((root / "meta.json").read_text().replace('"f"', '"g"'))
        monkeypatch.setattr(module, "read_window_folder", lambda _, **options: read(root, **options))
    elif change == "code":
        monkeypatch.setattr(checkpoint, "code_version", lambda: "0.1.0+0")
    else:
        config = changed(config, **change)
    monkeypatch.setattr(Trainer, "fit", lambda self, on_epoch: {})
    train(config, out, pick_up=True)
    assert f"starting anew: {out / 'step_000005'} {why}" in capsys.readouterr().err
    assert list_step_dirs(out) == []


def test_how_it_is_carried_out_is_no_other_configuration(
    config: Config, whole: Path, killed: Path, tmp_path: Path
) -> None:
    """Neither for going on nor in the checkpoint's bytes."""
    other = changed(config, nproc=3, restarts=0, checkpoint_every=0, checkpoint_minutes=1e-9)
    assert set(CONDUCT) <= set(config_to_dict(config)["train"])
    out = copied(killed, tmp_path)
    train(other, out, pick_up=True, quiet=True)
    assert equal(out, whole)
    stored = load_checkpoint(whole)["config"]
    assert stored == result_config(config_to_dict(config))
    assert config_from_dict(stored).train.nproc == Config().train.nproc


def test_the_clock_saves_within_an_epoch(config: Config, whole: Path, tmp_path: Path) -> None:
    train(changed(config, checkpoint_every=0, checkpoint_minutes=1e-9), tmp_path / "often", quiet=True)
    train(changed(config, checkpoint_every=0, checkpoint_minutes=0), tmp_path / "epochs", quiet=True)
    assert [step for step, _ in list_step_dirs(tmp_path / "often")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in list_step_dirs(tmp_path / "epochs")] == [3, 6]
    assert equal(tmp_path / "often", whole) and equal(tmp_path / "epochs", whole)


def test_a_new_run_takes_nothing_of_an_old_one(config: Config, killed: Path, tmp_path: Path) -> None:
    out = copied(killed, tmp_path)
    die(config, out, "_epoch")
    assert list_step_dirs(out) == []


@pytest.mark.parametrize("at_step", [4, 3])  # in the middle of an epoch, and between two
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(
    config: Config, whole: Path, tmp_path: Path, at_step: int
) -> None:
    die(config, tmp_path, "_step", lambda trainer: trainer.at.step == at_step)
    torch.manual_seed(99)  # whatever happened in between
    train(config, tmp_path, resume=True, quiet=True)
    assert equal(tmp_path, whole)


def test_resuming_refuses_what_is_not_of_this_run(config: Config, killed: Path, tmp_path: Path) -> None:
    out = copied(killed, tmp_path)
    words = r"step_000005 was trained with another configuration \(section train"
    with pytest.raises(ResumeError, match=words):
        train(changed(config, epochs=9), out, resume=True, quiet=True)
    assert len(list_step_dirs(out)) == 5, "nothing is removed"


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    config: Config, whole: Path, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = copied(killed, tmp_path), Path.write_bytes

    def full(self: Path, data: Any) -> int:
        write(self, bytes(data)[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    before = (out / "step_000005/checkpoint.pt").read_bytes()
    words = r"checkpoint\.pt: no space left on device \(.* MB are needed, .* are free there"
    with pytest.raises(CheckpointError, match=words):
        train(config, out, pick_up=True, quiet=True)
    assert (out / "step_000005/checkpoint.pt").read_bytes() == before and not list(out.rglob(".*"))
    monkeypatch.undo()
    monkeypatch.setattr(calibration, "SETS", calibration.SETS[:3])
    train(config, out, pick_up=True, quiet=True)
    assert equal(out, whole)


def test_two_checkpoints_are_kept_and_later_ones_of_a_lost_course_are_not(tmp_path: Path) -> None:
    def holding() -> list[int]:
        return [step for step, folder in list_step_dirs(tmp_path) if (folder / "checkpoint.pt").is_file()]

    for step in (3, 6, 9):
        save_step(tmp_path, step, {"resume": {}}, {})
    assert holding() == [6, 9]
    save_step(tmp_path, 7, {"resume": {}}, {})  # 9 could not be read
    assert holding() == [6, 7]
    assert [step for step, _ in list_step_dirs(tmp_path)] == [3, 6, 7, 9], "logs stay"


def test_one_training_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(ResumeError, match="Another training is writing")
    with alone_in(tmp_path), refused, alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_broken_foreign_and_old_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train first"):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path)
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="was not written by ecggen"):
        load_checkpoint(tmp_path / "foreign.pt")
    save_checkpoint(tmp_path / "old.pt", {"format": 0})
    with pytest.raises(CheckpointError, match=r"format 0, this version reads 1"):
        load_checkpoint(tmp_path / "old.pt")
