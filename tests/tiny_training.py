"""Tiny trainings that several test files share. Not a test itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from ecggen.leads import LEADS
from ecggen.utils.config import Config, config_from_dict
from tests.models.test_ecggen import make_ecg

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"width": 16, "depth": 1, "heads": 2, "channels": [8, 8], "state_dim": 8, "basis": 4}
MODEL |= {"beat_len": 32, "ttt": {"steps": 1}}


def write_windows(root: Path) -> Path:
    """Twelve records of two windows each; six train, three validation, three test."""
    root.mkdir(parents=True, exist_ok=True)
    ecg = make_ecg(12)
    both = torch.stack([ecg, ecg.roll(17, -1)], 1).flatten(0, 1)
    np.save(root / "windows.npy", both.numpy())
    lines = ["window,record,patient,start_s,split,labels,scale,observed,quality,reasons"]
    for n in range(24):
        split = ("train", "train", "validation", "test")[n // 2 % 4]
        lines.append(f"{n},r{n // 2},p{n // 2},{n % 2 * 2.56},{split},A,1,{'1' * 12},1,")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    meta = {"fs": 100, "time_len": 256, "leads": list(LEADS), "label_classes": ["A"], "fingerprint": "f",
            "preprocessing": {"low_hz": 0.67}}  # fmt: skip
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def tiny_config(windows: Path, **train_options: object) -> Config:
    """A training of three steps an epoch, with dropout."""
    options = {"epochs": 2, "batch_size": 4, "device": "cpu", "threads": 1, "precision": "fp32"}
    return config_from_dict(
        {
            "data": {"meta_root": str(windows), "time_len": 256},
            "model": MODEL | {"dropout": 0.1},
            "train": options | train_options,
        }
    )


def one_thread() -> dict[str, str]:
    """The environment of a process that shares the machine with others, and forks: no GPU survives that."""
    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | alone | {"ECGGEN_TRACKING": "off"}
