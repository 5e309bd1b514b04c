"""Moving averages, maxima and differences: against NumPy, closed forms, and whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecggen.data.sliding import (
    curvature,
    decimate,
    local_maxima,
    moving_average,
    moving_max,
    repeat_blocks,
    split_blocks,
)


def noise(rows: int = 3, n: int = 200) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(rows * n))


@pytest.mark.parametrize("width", [0.3, 1, 2.5, 3, 4, 7, 12.5, 18.2])
def test_average_is_a_convolution_with_a_box(width):
    x = noise().double()
    wide = max(width, 1.0)
    half = int((wide - 1) // 2) + 1
    at = np.arange(-half, half + 1)
    box = np.clip(wide / 2 - np.abs(at) + 0.5, 0, 1)  # how much of each sample the box covers
    assert box.sum() == pytest.approx(wide)
    for silent, mode in ((True, "constant"), (False, "edge")):
        padded = np.pad(x.numpy(), ((0, 0), (half, half)), mode=mode)
        expected = [np.convolve(row, box / wide, "valid") for row in padded]
        got = moving_average(x, width, silent_outside=silent)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("step", [0.4, 1, 2.2, 5.625, 30])
def test_bend_of_a_line_is_0_and_of_a_cosine_its_gain(step):
    t = torch.arange(400.0, dtype=torch.float64)[None]
    inner = slice(40, -40)
    assert curvature(3 + 0.25 * t, step)[:, inner].abs().max() < 1e-12
    wave = torch.cos(0.02 * t)
    gain = 1 - np.cos(0.02 * step)
    np.testing.assert_allclose(curvature(wave, step)[:, inner], gain * wave[:, inner], atol=6e-5)
    even = curvature(wave, step, mirrored=True)  # about its end
    np.testing.assert_allclose(even[:, 0], gain, atol=6e-5)


@pytest.mark.parametrize("half", [1, 2, 7, 25])
def test_local_max_and_peaks_against_a_loop(half):
    x = (noise(2, 120) * 3).round()  # many equal values
    low, n = np.pad(x.numpy(), ((0, 0), (half, half)), constant_values=-np.inf), x.shape[1]
    expected = np.stack([low[:, i : i + n] for i in range(2 * half + 1)]).max(axis=0)
    np.testing.assert_array_equal(moving_max(x, half), expected)
    for row, largest in zip(x.numpy(), local_maxima(x, half).numpy(), strict=True):
        for i in range(n):
            before, after = row[max(0, i - half) : i], row[i + 1 : i + 1 + half]
            assert largest[i] == ((before < row[i]).all() and (after <= row[i]).all())


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_blocks_averages_and_back(size):
    x = noise(2, 35)
    np.testing.assert_array_equal(split_blocks(x, size).flatten(1)[:, :35], x)
    np.testing.assert_allclose(decimate(x, size), split_blocks(x, size).mean(dim=2), atol=1e-6)
    assert split_blocks(x, 8)[0, -1, -1] == x[0, -1]  # the last one is filled with its last value
    coarse = repeat_blocks(split_blocks(x, size)[:, :, 0], size, 35)
    np.testing.assert_array_equal(coarse[:, ::size], x[:, ::size])


def test_a_row_is_the_same_to_the_last_bit_alone_and_in_any_batch():
    x = noise(33, 311)
    functions = [
        lambda rows: moving_average(rows, 12.5),
        lambda rows: moving_average(rows, 9.0, silent_outside=True),
        lambda rows: curvature(rows, 2.75),
        lambda rows: decimate(rows, 3),
        lambda rows: moving_max(rows, 8),
    ]
    for function in functions:
        together = function(x)
        for i in (0, 7, 32):
            assert torch.equal(function(x[i : i + 1])[0], together[i])
