"""The scale of a window: its definition, for one and for many."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.prepare.window.scale import robust_scale, robust_scales


def test_scale():
    rng = np.random.default_rng(0)
    ecg = rng.normal(size=(12, 500))
    observed = np.arange(12) < 6
    assert robust_scale(ecg, observed) == pytest.approx(1.0, abs=0.05)
    spiked = ecg.copy()
    spiked[0, :10] = 500.0  # less than one per cent of the observed samples
    assert robust_scale(spiked, observed) == pytest.approx(1.0, abs=0.1)
    spiked[7:] = 1e6
    assert robust_scale(spiked, observed) == pytest.approx(1.0, abs=0.1)
    assert robust_scale(0 * ecg, observed) == 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_is_that_of_its_definition_to_the_bit(dtype):
    rng = np.random.default_rng(0)
    for length in (1, 2, 9, 50, 512):
        for _ in range(20):
            ecg, observed = rng.normal(size=(12, length)).astype(dtype), rng.random(12) < 0.7
            observed[3] = True
            x = np.abs(ecg[observed].astype(np.float64))
            wanted = float(np.sqrt(np.mean(np.minimum(x, np.percentile(x, 99)) ** 2)))
            assert robust_scale(ecg, observed) == max(1e-3, wanted)


def test_many_windows_have_the_scales_of_each():
    rng = np.random.default_rng(1)
    ecg = rng.normal(size=(70, 12, 100)).astype(np.float32)
    observed = rng.random((70, 12)) < rng.random((70, 1))
    observed[[3, 50]], observed[20:45] = False, True  # nothing observed, and more than fit at once
    scales = robust_scales(ecg, observed)
    assert scales.dtype == np.float64 and (scales[[3, 50]] == 1.0).all() and (scales != 1.0).sum() >= 60
    assert scales.tolist() == [robust_scale(*one) for one in zip(ecg, observed, strict=True)]
