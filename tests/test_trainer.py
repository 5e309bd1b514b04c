"""The loop: exact resume, reproducibility, refusals, what it writes."""

import csv
import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ecggen.data.pipeline import DataError, read_window_folder
from ecggen.trainer import Trainer, TrainError, train
from ecggen.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ecggen.training.devices import DeviceError, pick_device, pick_precision
from ecggen.utils.config import Config, config_from_dict
from tests.training import tiny_config, write_windows

MODEL = {"width": 32, "depth": 1, "heads": 2, "channels": [8, 16], "state_dim": 12, "basis": 4}
MODEL |= {"beat_len": 32}


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_windows(tmp_path_factory.mktemp("windows"))


def make_config(windows: Path, **train_options) -> Config:
    options = {"epochs": 3, "batch_size": 4, "checkpoint_every": 1, "device": "cpu", "threads": 1}
    return config_from_dict(
        {
            "data": {"meta_root": str(windows), "time_len": 256},
            "model": MODEL | {"dropout": 0.1},
            "train": options | train_options,
        }
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at_step", [4, 6])  # in the middle of an epoch, and between two
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(
    windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: int
) -> None:
    config = make_config(windows)
    whole = train(config, tmp_path / "whole", quiet=True)
    step = Trainer._step

    def dying(self: Trainer, batch: dict) -> dict:
        if self.at.step == at_step:
            raise KilledError
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", dying)
    with pytest.raises(KilledError):
        train(config, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever happened in between
    resumed = train(config, tmp_path / "parts", resume=True, quiet=True)
    assert resumed == whole
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    assert (tmp_path / "whole/history.csv").read_text() == (tmp_path / "parts/history.csv").read_text()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(windows: Path, tmp_path: Path) -> None:
    config = make_config(windows, epochs=1)
    for name in ("a", "b"):
        train(config, tmp_path / name, quiet=True)
    train(make_config(windows, epochs=1, seed=2), tmp_path / "c", quiet=True)
    a, b, c = ((tmp_path / name / "checkpoint.pt").read_bytes() for name in "abc")
    assert a == b and a != c


def test_it_learns_and_writes_what_it_says(windows: Path, tmp_path: Path) -> None:
    rows: list[dict] = []
    options = {"epochs": 12, "lr": 0.002, "field_jitter": 0}
    metrics = train(make_config(windows, **options), tmp_path, on_epoch=rows.append, quiet=True)
    assert np.mean([row["train_loss"] for row in rows[-4:]]) < 0.8 * rows[0]["train_loss"]
    assert metrics["validation_r"] == rows[metrics["best_epoch"]]["val_r"] and len(rows) == 12
    with (tmp_path / "history.csv").open() as stream:
        assert [int(row["epoch"]) for row in csv.DictReader(stream)] == list(range(12))
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == metrics["steps"]
    content = load_checkpoint(tmp_path)
    assert content["preprocessing"] == {"low_hz": 0.67} and content["config"]["model"]["state_dim"] == 12
    steps = sorted(path.name for path in tmp_path.glob("step_*"))
    assert steps[-1] == f"step_{metrics['steps']:06d}"
    kept = list(tmp_path.glob("step_*/checkpoint.pt"))
    assert len(kept) == 2, "only the newest resumable checkpoints are kept; every step keeps its log"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_changes_nothing(windows: Path, tmp_path: Path, precision: str) -> None:
    model = MODEL | {"dropout": 0.0}
    for threads in (1, 2):
        config = dataclasses.replace(
            make_config(windows, epochs=1, threads=threads, precision=precision),
            model=config_from_dict({"model": model}).model,
        )
        train(config, tmp_path / str(threads), quiet=True)
    torch.set_num_threads(1)
    a, b = (load_checkpoint(tmp_path / str(threads))["model"] for threads in (1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_frozen_parameters_stay_as_they_are(windows: Path, tmp_path: Path) -> None:
    folder = read_window_folder(windows, fs=100, time_len=256)
    trainer = Trainer(make_config(windows, epochs=1), folder, tmp_path, quiet=True)
    frozen = trainer.model.updater.log_step.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    assert torch.equal(frozen, before["updater.log_step"])
    assert not torch.equal(trainer.model.projection.field, before["projection.field"])


def test_early_stopping_stops(windows: Path, tmp_path: Path) -> None:
    metrics = train(make_config(windows, epochs=30, patience=1, lr=1e-8), tmp_path, quiet=True)
    assert metrics["epochs"] < 30


def test_not_a_number_is_refused_with_step_and_place(
    windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ecggen.trainer as module

    real = module.training_loss

    def poisoned(model, out, target, rules):
        loss, terms = real(model, out, target, rules)
        return (loss * float("nan") if model.training else loss), terms

    monkeypatch.setattr(module, "training_loss", poisoned)
    with pytest.raises(TrainError, match=r"loss became nan at step 0 .*lower train.lr"):
        train(make_config(windows), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_model_that_is_not_calibrated_is_not_left_as_the_finished_one(
    windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes every epoch and not the end; an earlier training had been finished in this folder."""
    import ecggen.trainer as module

    config, out = make_config(windows, epochs=2), tmp_path / "full"
    train(config, tmp_path / "whole", quiet=True)
    train(make_config(windows, epochs=1), out, quiet=True)

    def full(path: Path, content: dict) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(config, out, quiet=True)
    assert not (out / "metrics.json").exists()
    with pytest.raises(CheckpointError, match="train first"):
        load_checkpoint(out)
    monkeypatch.undo()
    train(config, out, quiet=True, resume=True)
    for name in ("checkpoint.pt", "history.csv", "metrics.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_refuses_another_configuration(windows: Path, tmp_path: Path) -> None:
    train(make_config(windows, epochs=1), tmp_path, quiet=True)
    with pytest.raises(TrainError, match=r"another configuration \(section train\)"):
        train(make_config(windows, epochs=2), tmp_path, resume=True, quiet=True)


def test_an_empty_split_is_refused(windows: Path, tmp_path: Path) -> None:
    folder = read_window_folder(windows)
    bare = dataclasses.replace(folder, split=["train"] * len(folder.split))
    with pytest.raises(DataError, match="validation"):
        Trainer(make_config(windows), bare, tmp_path)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.filterwarnings("error:.*determin")
def test_the_same_training_on_a_gpu_gives_the_same_bits(tmp_path: Path) -> None:
    windows, weights = write_windows(tmp_path / "windows"), []
    for run in ("first", "second"):
        train(tiny_config(windows, device="cuda", precision="auto"), tmp_path / run, quiet=True)
        weights.append(load_checkpoint(tmp_path / run)["model"])
    assert not torch.are_deterministic_algorithms_enabled()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_devices_and_precision() -> None:
    assert pick_device("cpu").type == "cpu" and pick_precision("fp32", torch.device("cpu")) is None
    with pytest.raises(DeviceError, match="auto, cpu"):
        pick_device("tpu0")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="does not have"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("told", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True, "avx512_bf16": False}, None), ({}, None)],
)
def test_half_precision_is_chosen_where_the_processor_has_it(
    told: dict, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == expected
    assert pick_precision("bf16", cpu) == torch.bfloat16 and pick_precision("fp32", cpu) is None
