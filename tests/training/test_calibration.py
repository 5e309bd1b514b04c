"""Calibration: 90 % of the validation errors of every lead lie within the interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ecggen.data.pipeline import ECGDataset, read_window_folder
from ecggen.leads import EXPAND, INDEPENDENT_INDEX, KORS, observed_mask, parse_lead_set
from ecggen.models.ecggen import ECGGen
from ecggen.training.calibration import SETS, align_axes, calibrate
from ecggen.utils.config import config_from_dict
from ecggen.utils.files import write_csv, write_json

T, WINDOWS = 256, 24


@pytest.fixture
def data(tmp_path: Path) -> ECGDataset:
    """Windows of noise, a third of them without V6."""
    rng = np.random.default_rng(0)
    windows = (EXPAND @ rng.normal(size=(WINDOWS, 8, T))).astype(np.float32)
    np.save(tmp_path / "windows.npy", windows)
    observed = ["1" * 11 + ("0" if i % 3 == 0 else "1") for i in range(WINDOWS)]
    rows = [
        {"record": f"r{i}", "patient": f"p{i}", "split": "validation", "observed": observed[i]}
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
    calibrate(model, data, map, 16)
    assert not model.training
    first = model.calibration.clone()
    calibrate(model, data, map, 16)
    assert torch.equal(model.calibration, first), "it can be repeated"
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


def test_the_sets_hide_every_lead_and_give_every_number() -> None:
    masks = np.stack([observed_mask(parse_lead_set(name)) for name in SETS])[:, list(INDEPENDENT_INDEX)]
    counts = masks.sum(1)
    assert set(counts) == set(range(1, 8))
    for given in range(3, 8):
        hidden = ~masks[counts == given]
        assert hidden[:, 2:].any(0).all(), f"{given} given: every precordial lead hidden once"


def test_axis_alignment_takes_the_vcg_to_kors_axes_and_leaves_every_lead(data: ECGDataset) -> None:
    model = make_model()
    with torch.no_grad():  # a dipole in axes of its own
        turn = torch.tensor([[0.0, 1.2, 0.0], [-0.8, 0.3, 0.1], [0.2, 0.0, -1.0]])
        model.projection.field.copy_(model.projection.field @ turn)
    whole = [window for window in map(data.__getitem__, range(WINDOWS)) if window["observed"].all()]
    ecg, seen = (torch.stack([window[key] for window in whole]) for key in ("ecg", "observed"))
    kors = torch.tensor(KORS, dtype=torch.float32) @ ecg[:, list(INDEPENDENT_INDEX)]
    with torch.no_grad():
        before = model.eval()(ecg, seen)
        align_axes(model, data, map, 5)
        after = model(ecg, seen)
    assert not torch.equal(model.gauge, torch.eye(3))
    for name in ("leads", "dipole", "residual", "std", "state"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    expand = torch.tensor(EXPAND, dtype=torch.float32)
    torch.testing.assert_close(expand @ (after.field @ after.vcg), after.dipole, atol=1e-4, rtol=1e-3)

    def relative(vcg: torch.Tensor) -> torch.Tensor:
        return ((vcg - kors) / after.scale).reshape(len(ecg), -1)

    # Least squares: what is left is orthogonal to the VCG, and less than before.
    assert relative(after.vcg).square().sum() < 0.9 * relative(before.vcg).square().sum()
    left = ((after.vcg - kors) / after.scale) @ (after.vcg / after.scale).transpose(1, 2)
    assert left.sum(0).abs().max() < 1e-2 * (after.vcg / after.scale).square().sum()


def test_a_vcg_that_sees_no_direction_keeps_its_axes(data: ECGDataset) -> None:
    model = make_model()
    data.folder = dataclasses.replace(data.folder, windows=np.zeros_like(data.folder.windows))
    align_axes(model, data, map, 16)
    assert torch.equal(model.gauge, torch.eye(3))
