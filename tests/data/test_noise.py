"""Noise: rises with the noise that is added, local in time, blind to what is heart."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.data.quality.noise import STEP, noise_excess, noise_level, noisy_runs
from ecggen.data.quality.noise import bands_at_100 as at_100
from ecggen.leads import EXPAND, LEADS

ALL = np.ones(12, dtype=bool)
N = 1000


def heart(n: int = N, wide: float = 0.012, period: float = 0.8) -> np.ndarray:
    """[12, n] mV at 100 Hz: beats of a moving dipole, limb algebra exact, nothing else."""
    t = np.arange(n) / 100
    phase = (t % period) - period / 2
    loop = [a * np.exp(-0.5 * ((phase - at) / wide) ** 2) for a, at in ((0.3, -0.03), (1, 0), (-0.3, 0.03))]
    field = np.random.default_rng(5).normal(size=(8, 3))
    ecg = EXPAND @ field @ np.stack(loop)
    return ecg / np.abs(ecg).max()


def white(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_level_of_white_noise_is_its_share_of_the_band():
    ecg = np.stack([0.1 * white(k, 100_000) for k in range(12)])
    # 20 to 45 Hz of 0 to 50 Hz is half of the power; the largest of three windows lies a little higher.
    assert np.median(level_of(ecg)) == pytest.approx(0.1 * np.sqrt(0.5), rel=0.15)


def level_of(ecg: np.ndarray) -> np.ndarray:
    return noise_level(at_100(ecg).level)


def noisy_leads(ecg: np.ndarray) -> set[str]:
    return {LEADS[row] for row, runs in noisy_runs(at_100(ecg), ALL, 0.035, 1.0).items() if len(runs)}


@pytest.mark.parametrize("period", [0.35, 0.8])
def test_beats_are_no_noise(period):
    assert level_of(heart(period=period)).max() < 0.02
    assert level_of(4 * heart(period=period)).max() < 0.035  # tall, as over a thin chest wall
    wide = heart(wide=0.05, period=max(period, 0.5))  # a wide QRS at 120 a minute
    assert level_of(wide).max() < 0.01
    assert noise_excess(at_100(heart(period=period)).excess, ALL).max() < 0.1


def test_wander_and_offset_are_no_noise():
    t = np.arange(N) / 100
    assert not noisy_leads(heart() + 3 + 2 * np.sin(2 * np.pi * 0.2 * t))


def test_a_burst_is_found_where_it_is():
    ecg = heart(6000)
    ecg[7, 3000:3200] += 0.3 * white(2, 200)
    runs = noisy_runs(at_100(ecg), ALL, 0.035, 1.0)
    assert noisy_leads(ecg) == {"V2"}
    ((start, stop),) = runs[7]
    assert 2900 <= start <= 3000 and 3200 <= stop <= 3300


def test_motion_of_one_electrode_is_in_its_lead_alone():
    ecg, t = heart(), np.arange(N) / 100
    push = 3 * np.exp(-0.5 * ((t - 5) / 0.15) ** 2)  # slow: the level does not see it
    ecg[8] += push
    assert level_of(ecg)[8].max() < 0.03
    excess = noise_excess(at_100(ecg).excess, ALL)
    assert excess[8].max() > 1.5 and np.delete(excess, 8, axis=0).max() < 0.5
    assert abs(STEP * int(excess[8].argmax()) - 500) <= 100


def test_motion_of_an_arm_is_in_the_limb_leads_that_hold_it():
    ecg, t = heart(), np.arange(N) / 100
    push = 3 * np.exp(-0.5 * ((t - 5) / 0.15) ** 2)
    ecg[:6] += EXPAND[:6, :2] @ np.stack([push, 0 * push])  # the left arm: I, not II
    noisy = noisy_leads(ecg)
    assert {"I", "III", "aVL"} <= noisy and "II" not in noisy


def test_a_beat_of_another_shape_is_explained():
    """An ectopic beat is large in all leads: one more direction in space, not noise."""
    ecg, t = heart(), np.arange(N) / 100
    ectopic = 2 * np.exp(-0.5 * ((t - 5.2) / 0.06) ** 2)
    ecg += EXPAND @ np.random.default_rng(9).normal(size=(8, 1)) * ectopic
    assert not noisy_leads(ecg)


@pytest.mark.parametrize("n", [1, 24, 50, 74, 75, 99, 100, 101, 1013])
def test_any_length(n):
    ecg = heart(n)
    level, excess = noise_level(at_100(ecg).level), noise_excess(at_100(ecg).excess, ALL)
    assert level.shape == (12, n // STEP if n >= 75 else 0)
    assert excess.shape == (12, n // STEP if n >= 100 else 0)
    assert np.isfinite(level).all() and np.isfinite(excess).all()
    noisy_runs(at_100(ecg), ALL, 0.035, 1.0)
