"""A renderer with a closed form and a small folder of windows with a known truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ecggen.data.pipeline import WindowFolder
from ecggen.leads import DOWER, EXPAND
from ecggen.utils.files import write_csv

FS, T = 100.0, 256
FIELD = EXPAND @ DOWER


class TinyBody(nn.Module):
    """A network with the two things the evaluations touch: features() and a start W0."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = nn.Linear(24, 16)
        self.start = torch.zeros(12)

    def features(self, ecg, observed, *, steps=None):
        seen = ecg * observed[:, :, None]
        return torch.tanh(self.layer(torch.cat([seen.std(-1), seen.amax(-1)], -1)))


class DowerRenderer:
    """Renders by the regularised Dower lift. Each inner step adds a little; a held state is a gain per lead.

    Refuses to see anything but zeros in a hidden lead.
    """

    def __init__(self, seed: int = 0) -> None:
        self.device = torch.device("cpu")
        ttt = SimpleNamespace(steps=2)
        self.config = SimpleNamespace(model=SimpleNamespace(head="linear", head_hidden=8, ttt=ttt))
        self.model = TinyBody(seed)
        self.held: list[np.ndarray] = []

    def _dipole(self, ecg: np.ndarray, observed: np.ndarray) -> np.ndarray:
        mask = np.broadcast_to(observed, ecg.shape[:2])
        assert not ecg[~mask].any(), "a hidden lead was handed to the model"
        out = np.zeros((len(ecg), 3, ecg.shape[2]), dtype=np.float32)
        for pattern in np.unique(mask, axis=0):
            rows = (mask == pattern).all(axis=1)
            a = FIELD[pattern]
            lift = a.T @ np.linalg.inv(a @ a.T + 0.01 * np.eye(len(a)))
            out[rows] = lift @ ecg[rows][:, pattern]
        return out

    def render_windows(
        self, ecg, observed, *, state=None, another_day=False, window_states=None, steps=None, batch_size=128
    ):
        vcg = self._dipole(ecg, observed)
        dipole = (FIELD @ vcg).astype(np.float32)
        if state is None:
            state = self.states(ecg, observed, steps=steps)
        else:
            self.held.append(state)
        steps_made = state.sum(1) / np.maximum(self.states(ecg, observed, steps=0).sum(1), 1e-9)
        noise = np.random.default_rng(5).normal(0, 0.2, dipole.shape[1:])  # alike in every batch
        residual = (noise / np.maximum(steps_made, 1)[:, None, None]).astype(np.float32)
        out = {"leads": dipole + residual, "dipole": dipole, "residual": residual}
        return out | {"vcg": vcg, "state": state, "std": np.full_like(dipole, 0.2)}

    def states(self, ecg, observed, *, steps=None, batch_size=128):
        steps = 2 if steps is None else steps
        return (1 + steps) * (ecg * np.broadcast_to(observed, ecg.shape[:2])[:, :, None]).std(axis=2)

    def state_path(self, ecg, observed, *, steps, batch_size=128):
        return np.stack([self.states(ecg, observed, steps=step) for step in range(steps + 1)])

    def shared_states(self, ecg, observed, *, batch_size=128):
        return np.stack([self.states(one, observed).mean(0) for one in ecg])

    def closed_form_windows(self, ecg, observed):
        return (FIELD @ self._dipole(ecg, observed)).astype(np.float32)

    def remembered_windows(self, ecg, observed, state, *, batch_size=128):
        assert len(state) == len(ecg)
        return self.closed_form_windows(ecg, observed)

    def embed_windows(self, ecg, observed, batch_size=128):
        mask = torch.as_tensor(np.broadcast_to(observed, ecg.shape[:2]).copy())
        with torch.no_grad():
            return self.model.features(torch.as_tensor(ecg), mask).numpy()

    def random_copy(self, seed):
        other = copy.copy(self)
        other.model = TinyBody(seed)
        return other


def beats(rng: np.random.Generator, turn: np.ndarray, length: int) -> np.ndarray:
    """[3, length] mV, a dipole with sharp beats about 0.8 s apart, turned by the patient's own rotation."""
    time = np.arange(length) / FS
    out = np.zeros((3, length))
    for peak in np.arange(0.4, time[-1], 0.8) + rng.normal(0, 0.02):
        qrs = np.exp(-0.5 * ((time - peak) / 0.012) ** 2)
        lag = np.exp(-0.5 * ((time - peak - 0.02) / 0.015) ** 2)
        wave = np.exp(-0.5 * ((time - peak - 0.25) / 0.05) ** 2)
        out += turn @ np.stack([qrs, 0.8 * qrs - 0.3 * lag + 0.2 * wave, 0.6 * lag + 0.15 * wave])
    return out - out.mean(axis=1, keepdims=True)


def make_folder(root: Path, seed: int = 0, patients: int = 24, frank: bool = True) -> WindowFolder:
    """Two windows a record, two records for every fourth patient; the label is the size of the heart."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {k: [] for k in ("record", "patient", "split", "start", "labels")}
    windows, vcgs = [], []
    for p in range(patients):
        turn = np.eye(3) + rng.normal(0, 0.3, (3, 3))
        big = p % 2
        field = FIELD * (1 + rng.normal(0, 0.1, (12, 1)))
        field[:6] = EXPAND[:6, :2] @ field[:2]
        split = ("train", "train", "validation", "test")[(p // 2) % 4]
        for record in range(2 if (p // 2) % 4 == 3 and p % 4 < 3 else 1):
            vcg = (1 + big) * beats(rng, turn, 2 * T - 16)
            for start in (0, T - 16):
                part = vcg[:, start : start + T]
                windows.append(field @ part + rng.normal(0, 0.01, (12, T)))
                vcgs.append(part)
                values = (f"r{p}_{record}", f"p{p}", split, start / FS, [big, 1 - big])
                for key, value in zip(columns, values, strict=True):
                    columns[key].append(value)
    n = len(windows)
    return WindowFolder(
        root=root,
        windows=np.asarray(windows, dtype=np.float32),
        frank=np.asarray(vcgs, dtype=np.float32) if frank else None,  # type: ignore[arg-type]
        record=columns["record"],
        patient=columns["patient"],
        split=columns["split"],
        start_s=np.asarray(columns["start"]),
        observed=np.ones((n, 12), dtype=bool),
        labels=np.asarray(columns["labels"], dtype=np.float32),
        label_valid=np.ones(n, dtype=bool),
        label_classes=["big", "small"],
        meta={"fs": FS, "time_len": T},
    )


@pytest.fixture
def renderer() -> DowerRenderer:
    return DowerRenderer()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> WindowFolder:
    return make_folder(tmp_path_factory.mktemp("windows"))


def pick(rows: list[dict], **cells: object) -> list[dict]:
    """The rows that hold these cells."""
    return [row for row in rows if all(row[key] == value for key, value in cells.items())]


def with_index(folder: WindowFolder, root: Path, column: str, entry: Callable[[int], str]) -> WindowFolder:
    """The folder with an index.csv in `root` that says entry(number) of each record, in their order."""
    records = list(dict.fromkeys(folder.record))
    rows = [{"record": name, column: entry(i)} for i, name in enumerate(records)]
    write_csv(root / "index.csv", rows, ("record", column))
    return replace(folder, root=root)
