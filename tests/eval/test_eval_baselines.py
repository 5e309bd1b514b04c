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


def test_a_lead_is_learned_from_windows_that_have_it() -> None:
    """Lead V3 is -3 V2 where it was recorded; elsewhere the array holds rubbish."""
    ecg = np.random.default_rng(0).normal(size=(8, 12, 50)).astype(np.float32)
    clean = ecg.copy()
    clean[:, 8] = -3 * ecg[:, 7]
    observed = np.ones((8, 12), bool)
    observed[5:, 8] = False
    training = Training(np.where(observed[:, :, None], clean, 1e3), np.arange(8), observed, 100.0, 1)
    for method in (CopyBestLead(), LinearRegression(), LinearRegression(1)):
        method.fit(training)
        assert np.allclose(method.predict(ecg, SET.mask)[:, 8], clean[:, 8], atol=1e-3), method.name


def test_dower_renders_a_dower_heart() -> None:
    ecg = (EXPAND @ DOWER @ np.random.default_rng(0).normal(size=(2, 3, 40))).astype(np.float32)
    assert np.corrcoef(DowerLift().predict(ecg, SET.mask).ravel(), ecg.ravel())[0, 1] > 0.999


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
