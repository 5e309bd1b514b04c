"""Beats around R-peaks, against plain loops."""

from __future__ import annotations

import pytest
import torch

from ecggen.models.beats import offset_to_peak


@pytest.mark.parametrize(
    ("peaks", "valid"),
    [
        ([[10, 30, 31, 49], [0, 25, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]]),
        ([[0], [49]], [[1], [1]]),
        ([[3, 0], [5, 9]], [[1, 0], [1, 1]]),
    ],
)
def test_every_sample_belongs_to_the_nearest_peak_and_to_the_earlier_of_two(
    peaks: list[list[int]], valid: list[list[int]]
) -> None:
    offset = offset_to_peak(torch.tensor(peaks), torch.tensor(valid).bool(), 50)
    for row, (positions, there) in enumerate(zip(peaks, valid, strict=True)):
        real = [peak for peak, one in zip(positions, there, strict=True) if one]
        for time in range(50):
            nearest = min(real, key=lambda peak, time=time: (abs(time - peak), peak))
            assert offset[row, time] == time - nearest


def test_without_a_peak_every_sample_is_far_from_one() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert (offset_to_peak(torch.zeros(2, 3, dtype=torch.long), nothing, 50) > 150).all()
