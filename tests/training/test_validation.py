"""Validation scores are means over windows, however these are cut into batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ecggen.data.pipeline import read_window_folder
from ecggen.leads import INDEPENDENT_INDEX, observed_mask, parse_lead_set
from ecggen.trainer import Trainer
from ecggen.training.validation import VALIDATION_SETS, validation_scores
from tests.tiny_training import tiny_config, write_windows


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    folder = read_window_folder(write_windows(tmp_path / "windows"))
    return Trainer(tiny_config(folder.root), folder, tmp_path / "out", quiet=True)


def test_scores_are_those_of_every_window_alone(trainer: Trainer) -> None:
    """Pearson's r of the hidden independent leads by NumPy; W from the window itself and from its support."""
    data, model = trainer.validation_set, trainer.model.eval()
    scores = trainer.validate()
    alone: list[float] = []
    personal: list[float] = []
    for index in range(len(data)):
        item = data[index]
        mask = observed_mask(parse_lead_set(VALIDATION_SETS[item["row"] % len(VALIDATION_SETS)]))
        ecg, observed = item["ecg"][None], torch.from_numpy(mask)[None]
        with torch.no_grad():
            by_itself = model(ecg, observed).leads[0]
            support, there = item["support"][None], item["support_observed"][None]
            held = model(ecg, observed, reference=support, reference_observed=there).leads[0]
        hidden = [lead for lead in INDEPENDENT_INDEX if not mask[lead]]
        for leads, to in ((by_itself, alone), (held, personal)):
            to.append(np.mean([np.corrcoef(leads[lead], item["ecg"][lead])[0, 1] for lead in hidden]))
    assert scores["val_r"] == pytest.approx(np.mean(alone), abs=1e-4)
    assert scores["val_r_personal"] == pytest.approx(np.mean(personal), abs=1e-4)
    assert abs(scores["val_r"] - scores["val_r_personal"]) > 1e-4, "two scores"


def test_batches_of_any_size_and_number_give_the_same_scores(trainer: Trainer) -> None:
    def scores(batch_size: int, shards: int) -> dict[str, float]:
        options = dataclasses.replace(trainer.config.train, batch_size=batch_size, shards=shards)
        return validation_scores(trainer.model, trainer.validation_set, options, None, map)

    whole = scores(64, 1)
    for batch_size, shards in ((1, 1), (2, 3), (64, 4)):
        assert scores(batch_size, shards) == pytest.approx(whole, abs=1e-5)
