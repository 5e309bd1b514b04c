"""A small untrained model, as `ecggen.load` reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ecggen
from ecggen.inference.renderer import Renderer
from ecggen.training.checkpoint import save_checkpoint
from ecggen.utils.config import config_from_dict, config_to_dict
from tests.models.test_ecggen import FS, T, make_model, small


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with its checkpoint."""
    config = config_to_dict(config_from_dict({"data": {"time_len": T}}))
    config["model"] = config_to_dict(small())
    preprocessing = {"low_hz": 0.67, "high_hz": 40.0, "order": 3, "max_gap_s": 0.2}
    content = {"config": config, "preprocessing": preprocessing, "model": make_model().state_dict()}
    out = tmp_path_factory.mktemp("results")
    save_checkpoint(out / "checkpoint.pt", content | {"fs": FS, "time_len": T})
    return out


@pytest.fixture(scope="session")
def model(path: Path) -> Renderer:
    return ecggen.load(path, device="cpu")
