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
from ecggen.training import checkpoint
from ecggen.training.checkpoint import (
    CONDUCT,
    CheckpointError,
    ResumeError,
    load_checkpoint,
    lock_run,
    result_config,
    save_checkpoint,
    save_step,
)
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.run_id import list_step_dirs, saved_steps
from tests.tiny_training import tiny_config, write_windows

OUTS = ("checkpoint.pt", "history.csv", "facts.csv")
pytestmark = pytest.mark.usefixtures("few_lead_sets")


class KilledError(Exception):
    pass


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
    assert steps(out) == [1, 2, 3, 4, 5]
    return out


@pytest.fixture
def out(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return copied(killed, tmp_path / "out")


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
    return Path(shutil.copytree(source, to))


def changed(config: Config, **train_options: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train_options))


def equal(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in OUTS)


def steps(out: Path, *, saved: bool = False) -> list[int]:
    return [step for step, _ in (saved_steps if saved else list_step_dirs)(out)]


def test_outputs_that_are_gone_come_back(config: Config, whole: Path, out: Path) -> None:
    """DVC deletes a stage's outputs before it runs it; earlier rows are reported again, once each."""
    rows: list[dict[str, Any]] = []
    for name in OUTS:
        (out / name).unlink(missing_ok=True)
    train(config, out, pick_up=True, on_epoch=rows.append, quiet=True)
    assert equal(out, whole)
    assert [row["epoch"] for row in rows] == [0, 1]


@pytest.mark.parametrize("at_step", [4, 3])  # in the middle of an epoch, and between two
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(
    config: Config, whole: Path, tmp_path: Path, at_step: int
) -> None:
    die(config, tmp_path, "_step", lambda trainer: trainer.at.step == at_step)
    torch.manual_seed(99)  # whatever happened in between
    train(config, tmp_path, resume=True, quiet=True)
    assert equal(tmp_path, whole)


def test_a_run_killed_before_calibration_is_not_left_as_an_earlier_finished_one(
    config: Config, whole: Path, tmp_path: Path
) -> None:
    out = copied(whole, tmp_path / "out")
    die(config, out, "_calibrate")
    assert not (out / "facts.csv").exists() and not (out / "checkpoint.pt").exists()
    train(config, out, resume=True, quiet=True)
    assert equal(out, whole)


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


@pytest.mark.parametrize(
    ("spoil", "count"),
    [
        (lambda data: data[: len(data) // 3], 1),
        (lambda data: data[: (half := len(data) // 2)] + bytes([data[half] ^ 4]) + data[half + 1 :], 1),
        (lambda data: b"", 5),
    ],
    ids=["cut short", "one bit", "all empty"],
)
def test_spoilt_checkpoints_are_passed_over_for_those_before(
    config: Config, whole: Path, out: Path, capsys: pytest.CaptureFixture[str], spoil: Any, count: int
) -> None:
    paths = [folder / "checkpoint.pt" for _, folder in reversed(saved_steps(out))]
    assert len(paths) == 2
    for path in paths[:count]:
        path.write_bytes(spoil(path.read_bytes()))
    train(config, out, pick_up=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"passed over: {paths[0]} is not a readable checkpoint")
    assert lines[1].startswith("resumed at step 4 (epoch 2)" if count == 1 else f"passed over: {paths[1]}")
    assert equal(out, whole) and steps(out, saved=True) == [5, 6]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("configuration", "was trained with another configuration (section train)"),
        ("windows", "was trained on other windows"),
        ("code", "was trained by another code (0."),
    ],
)
def test_only_the_same_run_is_gone_on_with(
    config: Config, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, change: str, why: str,
) -> None:  # fmt: skip
    if change == "windows":
        root, read = copied(Path(config.data.meta_root), tmp_path / "windows"), module.read_window_folder
        (root / "meta.json").write_text((root / "meta.json").read_text().replace('"f"', '"g"'))
        monkeypatch.setattr(module, "read_window_folder", lambda _, **options: read(root, **options))
    elif change == "code":
        monkeypatch.setattr(checkpoint, "code_version", lambda: "0.1.0+0")
    else:
        config = changed(config, lr=0.004)
    monkeypatch.setattr(Trainer, "fit", lambda self, on_epoch: {})
    if change != "code":  # that is not refused where somebody wants to resume
        with pytest.raises(ResumeError) as refusal:
            train(config, out, resume=True, quiet=True)
        assert f"step_000005 {why}" in str(refusal.value) and len(steps(out)) == 5, "nothing is removed"
    train(config, out, pick_up=True)
    assert f"starting anew: {out / 'step_000005'} {why}" in capsys.readouterr().err
    assert steps(out) == []


def test_a_new_run_takes_nothing_of_an_old_one(config: Config, out: Path) -> None:
    die(config, out, "_epoch")
    assert steps(out) == []


def test_how_it_is_carried_out_is_no_other_configuration(config: Config, whole: Path, out: Path) -> None:
    """Neither for going on nor in the checkpoint's bytes."""
    other = changed(config, nproc=3, restarts=0, checkpoint_every=0, checkpoint_minutes=1e-9)
    assert set(CONDUCT) <= set(config_to_dict(config)["train"])
    train(other, out, pick_up=True, quiet=True)
    assert equal(out, whole)
    stored = load_checkpoint(whole)["config"]
    assert stored == result_config(config_to_dict(config))
    assert config_from_dict(stored).train.nproc == Config().train.nproc


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, [1, 2, 3, 4, 5, 6]), (0, [3, 6])])
def test_the_clock_saves_within_an_epoch(
    config: Config, whole: Path, tmp_path: Path, minutes: float, expected: list[int]
) -> None:
    train(changed(config, checkpoint_every=0, checkpoint_minutes=minutes), tmp_path, quiet=True)
    assert steps(tmp_path) == expected and steps(tmp_path, saved=True) == expected[-2:]
    assert equal(tmp_path, whole)


def test_a_full_disk_is_one_sentence_and_loses_nothing(config: Config, whole: Path, out: Path) -> None:
    write, before = Path.write_bytes, (out / "step_000005/checkpoint.pt").read_bytes()

    def full(self: Path, data: Any) -> int:
        write(self, bytes(data)[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = r"checkpoint\.pt: no space left on device \(.* MB are needed, .* are free there"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match=words):
        patch.setattr(Path, "write_bytes", full)
        train(config, out, pick_up=True, quiet=True)
    assert (out / "step_000005/checkpoint.pt").read_bytes() == before and not list(out.rglob(".*"))
    train(config, out, pick_up=True, quiet=True)
    assert equal(out, whole)


def test_later_checkpoints_of_a_lost_course_are_removed(tmp_path: Path) -> None:
    for step in (3, 6, 9, 7):  # 9 could not be read
        save_step(tmp_path, step, {"resume": {}}, {})
    assert steps(tmp_path, saved=True) == [6, 7] and steps(tmp_path) == [3, 6, 7, 9], "logs stay"


def test_one_training_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(ResumeError, match="Another training is writing")
    with lock_run(tmp_path), refused, lock_run(tmp_path):
        pass
    with lock_run(tmp_path):
        pass


def test_broken_foreign_and_old_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no zip")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    save_checkpoint(tmp_path / "old.pt", {"format": 0})
    for path, words in {
        tmp_path: "train first",
        tmp_path / "broken.pt": "not a readable checkpoint",
        tmp_path / "foreign.pt": "was not written by ecggen",
        tmp_path / "old.pt": "format 0, this version reads 1",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)
