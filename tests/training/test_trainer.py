"""The loop: reproducibility, refusals, what it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ecggen import trainer as module
from ecggen.data.pipeline import DataError, read_window_folder
from ecggen.trainer import Trainer, TrainError, train
from ecggen.training.checkpoint import load_checkpoint
from ecggen.utils.config import Config
from ecggen.utils.files import read_csv, read_facts
from tests.tiny_training import tiny_config, write_windows

pytestmark = pytest.mark.usefixtures("few_lead_sets")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_windows(tmp_path_factory.mktemp("windows"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_seed_decides_about_the_bytes_and_the_number_of_threads_does_not(
    windows: Path, tmp_path: Path, precision: str
) -> None:
    """Without dropout, with which parts of a batch take turns."""

    def trained(threads: int, seed: int) -> bytes:
        config = tiny_config(windows, epochs=1, threads=threads, seed=seed, precision=precision)
        model = dataclasses.replace(config.model, dropout=0.0)
        out = tmp_path / f"{threads}-{seed}"
        train(dataclasses.replace(config, model=model), out, quiet=True)
        return (out / "checkpoint.pt").read_bytes()

    try:
        assert trained(1, seed=1) == trained(2, seed=1)
        assert trained(1, seed=1) != trained(1, seed=2)
    finally:
        torch.set_num_threads(1)


def test_it_learns_and_writes_what_it_says(windows: Path, tmp_path: Path) -> None:
    rows: list[dict] = []
    options = {"epochs": 12, "lr": 0.002, "field_jitter": 0}
    metrics = train(tiny_config(windows, **options), tmp_path, on_epoch=rows.append, quiet=True)
    assert np.mean([row["train_loss"] for row in rows[-4:]]) < 0.8 * rows[0]["train_loss"]
    assert metrics["validation_r"] == rows[metrics["best_epoch"]]["val_r"] and len(rows) == 12
    assert [int(row["epoch"]) for row in read_csv(tmp_path / "history.csv")] == list(range(12))
    assert read_facts(tmp_path / "facts.csv")["steps"] == str(metrics["steps"])
    content = load_checkpoint(tmp_path)
    assert content["preprocessing"] == {"low_hz": 0.67} and content["config"]["model"]["state_dim"] == 8


@pytest.fixture
def trainer(windows: Path, tmp_path: Path) -> Trainer:
    folder = read_window_folder(windows, fs=100, time_len=256)
    return Trainer(tiny_config(windows, epochs=1), folder, tmp_path, quiet=True)


def test_frozen_parameters_stay_as_they_are(trainer: Trainer) -> None:
    frozen = trainer.model.updater.log_step.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    assert torch.equal(frozen, before["updater.log_step"])
    assert not torch.equal(trainer.model.projection.field, before["projection.field"])


def test_not_a_number_is_refused_with_step_and_place(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.training_loss

    def poisoned(model, out, target, options):
        loss, terms = real(model, out, target, options)
        return loss * float("nan"), terms

    monkeypatch.setattr(module, "training_loss", poisoned)
    with pytest.raises(TrainError, match=r"loss became nan at step 0 .*, windows \d.*lower train.lr"):
        trainer.fit()
    assert not (trainer.out / "checkpoint.pt").exists()


def test_an_empty_split_is_refused(windows: Path, tmp_path: Path) -> None:
    folder = read_window_folder(windows)
    bare = dataclasses.replace(folder, split=["train"] * len(folder.split))
    with pytest.raises(DataError, match="validation"):
        Trainer(Config(), bare, tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.filterwarnings("error:.*determin")
def test_the_same_training_on_a_gpu_gives_the_same_bits(windows: Path, tmp_path: Path) -> None:
    weights = []
    for run in ("first", "second"):
        train(tiny_config(windows, device="cuda", precision="auto"), tmp_path / run, quiet=True)
        weights.append(load_checkpoint(tmp_path / run)["model"])
    assert not torch.are_deterministic_algorithms_enabled()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
