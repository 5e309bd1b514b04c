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
from ecggen.training.checkpoint import CheckpointError, load_checkpoint
from tests.tiny_training import tiny_config, write_windows


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_windows(tmp_path_factory.mktemp("windows"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(windows: Path, tmp_path: Path) -> None:
    config = tiny_config(windows, epochs=1)
    for name in ("a", "b"):
        train(config, tmp_path / name, quiet=True)
    train(tiny_config(windows, epochs=1, seed=2), tmp_path / "c", quiet=True)
    a, b, c = ((tmp_path / name / "checkpoint.pt").read_bytes() for name in "abc")
    assert a == b and a != c


def test_it_learns_and_writes_what_it_says(windows: Path, tmp_path: Path) -> None:
    rows: list[dict] = []
    options = {"epochs": 12, "lr": 0.002, "field_jitter": 0}
    metrics = train(tiny_config(windows, **options), tmp_path, on_epoch=rows.append, quiet=True)
    assert np.mean([row["train_loss"] for row in rows[-4:]]) < 0.8 * rows[0]["train_loss"]
    assert metrics["validation_r"] == rows[metrics["best_epoch"]]["val_r"] and len(rows) == 12
    with (tmp_path / "history.csv").open() as stream:
        assert [int(row["epoch"]) for row in csv.DictReader(stream)] == list(range(12))
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == metrics["steps"]
    content = load_checkpoint(tmp_path)
    assert content["preprocessing"] == {"low_hz": 0.67} and content["config"]["model"]["state_dim"] == 8
    steps = sorted(path.name for path in tmp_path.glob("step_*"))
    assert steps[-1] == f"step_{metrics['steps']:06d}"
    kept = list(tmp_path.glob("step_*/checkpoint.pt"))
    assert len(kept) == 2, "only the newest resumable checkpoints are kept; every step keeps its log"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_changes_nothing(windows: Path, tmp_path: Path, precision: str) -> None:
    for threads in (1, 2):
        config = tiny_config(windows, epochs=1, threads=threads, precision=precision)
        model = dataclasses.replace(config.model, dropout=0.0)  # else parts take turns
        train(dataclasses.replace(config, model=model), tmp_path / str(threads), quiet=True)
    torch.set_num_threads(1)
    a, b = (load_checkpoint(tmp_path / str(threads))["model"] for threads in (1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_frozen_parameters_stay_as_they_are(windows: Path, tmp_path: Path) -> None:
    folder = read_window_folder(windows, fs=100, time_len=256)
    trainer = Trainer(tiny_config(windows, epochs=1), folder, tmp_path, quiet=True)
    frozen = trainer.model.updater.log_step.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    assert torch.equal(frozen, before["updater.log_step"])
    assert not torch.equal(trainer.model.projection.field, before["projection.field"])


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
        train(tiny_config(windows), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_model_that_is_not_calibrated_is_not_left_as_the_finished_one(
    windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes every epoch and not the end; an earlier training had been finished in this folder."""
    import ecggen.trainer as module

    config, out = tiny_config(windows, epochs=2), tmp_path / "full"
    train(config, tmp_path / "whole", quiet=True)
    train(tiny_config(windows, epochs=1), out, quiet=True)

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


def test_an_empty_split_is_refused(windows: Path, tmp_path: Path) -> None:
    folder = read_window_folder(windows)
    bare = dataclasses.replace(folder, split=["train"] * len(folder.split))
    with pytest.raises(DataError, match="validation"):
        Trainer(tiny_config(windows), bare, tmp_path)


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
