"""Calibration: 90 % of the validation errors of every lead lie within the interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ecggen.calibration import SETS, calibrate
from ecggen.data.pipeline import ECGDataset, read_window_folder
from ecggen.leads import EXPAND, INDEPENDENT_INDEX, observed_mask, parse_lead_set
from ecggen.models.ecggen import ECGGen
from ecggen.parallel import SideBySide
from ecggen.utils.config import config_from_dict
from ecggen.utils.files import write_csv, write_json

T, WINDOWS = 256, 24


@pytest.fixture
def data(tmp_path: Path) -> ECGDataset:
    """Windows of noise, a third of them without V6."""
    rng = np.random.default_rng(0)
    windows = (EXPAND @ rng.normal(size=(WINDOWS, 8, T))).astype(np.float32)
    np.save(tmp_path / "windows.npy", windows)
    rows = [
        {
            "record": f"r{i}",
            "patient": f"p{i}",
            "split": "validation",
            "observed": "1" * 11 + ("0" if i % 3 == 0 else "1"),
        }
        for i in range(WINDOWS)
    ]
    write_csv(tmp_path / "index.csv", rows, list(rows[0]))
    write_json(tmp_path / "meta.json", {"fs": 100.0, "time_len": T})
    return ECGDataset(read_window_folder(tmp_path), "validation")


def make_model() -> ECGGen:
    torch.manual_seed(0)
    config = config_from_dict({"model": {"channels": [8, 8, 16], "width": 16, "depth": 1, "state_dim": 8}})
    return ECGGen(config.model, 100.0, T)


def test_ninety_percent_lie_within_the_interval_whatever_is_given(data: ECGDataset) -> None:
    model = make_model()
    calibrate(model, data, SideBySide(torch.device("cpu")), 16)
    assert not model.training
    assert (model.calibration > 0).all() and len(set(model.calibration.flatten().tolist())) > 20
    ecg = torch.stack([data[i]["ecg"] for i in range(WINDOWS)])
    there = torch.stack([data[i]["observed"] for i in range(WINDOWS)])
    for name in ("I", "I+II", "I+II+V1+V4", "I+II+V2+V3+V5+V6", "I+II+V1+V2+V4+V5+V6"):
        mask = torch.from_numpy(observed_mask(parse_lead_set(name)))
        use = (there | ~mask).all(1)
        with torch.no_grad():
            out = model(ecg[use], mask.expand(int(use.sum()), -1))
        inside = (out.leads - ecg[use]).abs() <= 1.645 * out.std
        hidden = [i for i in INDEPENDENT_INDEX if not mask[i]]
        share = inside[:, hidden][there[use][:, hidden]].float().mean()
        assert share == pytest.approx(0.9, abs=0.03), name


def test_it_can_be_repeated(data: ECGDataset) -> None:
    model = make_model()
    calibrate(model, data, SideBySide(torch.device("cpu")), 16)
    first = model.calibration.clone()
    calibrate(model, data, SideBySide(torch.device("cpu")), 16)
    assert torch.equal(model.calibration, first)


def test_the_sets_hide_every_lead_and_give_every_number() -> None:
    masks = np.stack([observed_mask(parse_lead_set(name)) for name in SETS])[:, list(INDEPENDENT_INDEX)]
    counts = masks.sum(1)
    assert set(counts) == set(range(1, 8))
    for given in range(3, 8):
        assert (~masks[counts == given])[:, 2:].any(0).all(), (
            f"{given} given: every precordial lead hidden once"
        )
