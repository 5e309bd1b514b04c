"""Baselines: against plain least squares, and blind to what they must not see."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.eval.baselines import (
    ClosedFormMethod,
    CopyBestLead,
    DowerLift,
    LinearRegression,
    MeanBeat,
    ModelMethod,
    Moments,
    Training,
    baselines,
    lagged,
)
from ecggen.eval.lead_sets import named_sets
from ecggen.leads import DOWER, EXPAND

SET = named_sets(["I+II+V2"])[0]


@pytest.fixture
def training(folder) -> Training:
    return Training(folder.windows, folder.rows("train"), folder.observed, 100.0, context=2)


def _methods(renderer, training):
    methods = [*baselines(2), ModelMethod(renderer, 16), ClosedFormMethod(renderer)]
    for method in methods:
        method.fit(training)
    return methods


@pytest.mark.parametrize("context", [0, 2])
def test_linear_regression_equals_lstsq(training, context) -> None:
    method = LinearRegression(context)
    method.fit(training)
    x = training.ecg[training.rows].astype(np.float64)
    flat = lagged(x[:, SET.mask], context).transpose(1, 0, 2).reshape(3 * (2 * context + 1), -1)
    wanted = np.linalg.lstsq(flat.T, x.transpose(1, 0, 2).reshape(12, -1).T, rcond=None)[0].T
    hidden = SET.hidden
    assert np.allclose((method.weights(SET.mask) @ flat)[hidden], (wanted @ flat)[hidden], atol=1e-4)
    rendered = method.predict(training.ecg[training.rows[:3]], SET.mask)
    again = (wanted @ lagged(x[:3, SET.mask], context))[:, hidden]
    assert np.allclose(rendered[:, hidden], again, atol=1e-3)


def test_lagged_repeats_edges_and_keeps_the_centre() -> None:
    x = np.arange(10.0).reshape(1, 2, 5)
    out = lagged(x, 1)
    assert out.shape == (1, 6, 5)
    assert out[0, 0].tolist() == [0, 0, 1, 2, 3]
    assert out[0, 1].tolist() == x[0, 0].tolist()
    assert out[0, 5].tolist() == [6, 7, 8, 9, 9]


def test_moments_leave_out_windows_without_the_lead() -> None:
    rng = np.random.default_rng(0)
    ecg = rng.normal(size=(6, 12, 20))
    observed = np.ones((6, 12), dtype=bool)
    observed[3:, 7] = False
    moments = Moments(0)
    moments.add(ecg, observed)
    needed = np.arange(12) == 7
    wanted = np.einsum("nct,ndt->cd", ecg[:3], ecg[:3])
    assert np.allclose(moments.gram(needed), wanted)
    spoiled = ecg.copy()
    spoiled[3:, 7] = 1e3
    other = Moments(0)
    other.add(spoiled, observed)
    assert np.allclose(other.gram(np.zeros(12, bool)), moments.gram(np.zeros(12, bool)))


def test_no_method_reads_a_hidden_lead(folder, training, renderer) -> None:
    rows = folder.rows("test")
    clean = folder.windows[rows]
    spoiled = clean.copy()
    spoiled[:, SET.hidden] = 1e3 * np.random.default_rng(9).normal(size=spoiled[:, SET.hidden].shape)
    for method in _methods(renderer, training):
        one, two = method.predict(clean, SET.mask), method.predict(spoiled, SET.mask)
        assert np.array_equal(one, two), method.name
        assert one.shape == clean.shape
        assert one.dtype == np.float32, method.name


def test_no_method_reads_beyond_the_training_split(folder, training, renderer) -> None:
    rows = folder.rows("test")
    before = [m.predict(folder.windows[rows], SET.mask) for m in _methods(renderer, training)]
    spoiled = folder.windows.copy()
    spoiled[np.concatenate([rows, folder.rows("validation")])] = 100.0
    other = Training(spoiled, training.rows, training.observed, 100.0, context=2)
    after = [m.predict(folder.windows[rows], SET.mask) for m in _methods(renderer, other)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_dower_renders_a_dower_heart() -> None:
    vcg = np.random.default_rng(0).normal(size=(2, 3, 40))
    ecg = (EXPAND @ DOWER @ vcg).astype(np.float32)
    rendered = DowerLift().predict(ecg, SET.mask)
    assert np.corrcoef(rendered.ravel(), ecg.ravel())[0, 1] > 0.999


def test_copy_best_lead_takes_the_lead_that_fits() -> None:
    rng = np.random.default_rng(0)
    ecg = rng.normal(size=(8, 12, 50)).astype(np.float32)
    ecg[:, 8] = -3 * ecg[:, 7]
    method = CopyBestLead()
    method.fit(Training(ecg, np.arange(8), np.ones((8, 12), bool), 100.0))
    assert np.allclose(method.predict(ecg, SET.mask)[:, 8], -3 * ecg[:, 7], atol=1e-4)


def test_mean_beat_recovers_a_heart_that_always_beats_alike() -> None:
    time = np.arange(500) / 100
    beat = sum(np.exp(-0.5 * ((time - p) / 0.015) ** 2) for p in np.arange(0.5, 4.6, 0.9))
    gains = np.linspace(0.5, 2, 12)
    size = np.linspace(0.5, 1.5, 6)
    ecg = (size[:, None, None] * gains[:, None] * beat).astype(np.float32)
    method = MeanBeat()
    method.fit(Training(ecg, np.arange(6), np.ones((6, 12), bool), 100.0))
    rendered = method.predict(ecg, SET.mask)
    assert np.corrcoef(rendered[:, 8].ravel(), ecg[:, 8].ravel())[0, 1] > 0.99
    flat = method.predict(np.zeros((2, 12, 500), np.float32), SET.mask)
    assert not flat.any()
