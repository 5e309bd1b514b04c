"""Limb-lead algebra in batches, against the NumPy statement of it."""

import itertools

import numpy as np
import pytest
import torch

from ecggen.leads import EXPAND
from ecggen.models.slots import LimbSlots


@pytest.fixture
def ecg() -> torch.Tensor:
    eight = np.random.default_rng(0).normal(size=(1, 8, 50))
    return torch.tensor(EXPAND @ eight)


def observed(*leads: int) -> torch.Tensor:
    return torch.isin(torch.arange(12), torch.tensor(leads))[None]


@pytest.mark.parametrize("leads", [*itertools.combinations(range(6), 2), *((lead,) for lead in range(6))])
def test_limb_leads_fill_slots_that_say_what_they_measure(ecg: torch.Tensor, leads: tuple[int, ...]) -> None:
    """Any two give I and II, a single one stands for itself."""
    seen = LimbSlots()(ecg, observed(*leads))
    filled = seen.mask[0]
    assert int(filled.sum()) == len(leads)
    torch.testing.assert_close(
        (seen.rows @ ecg[:, [0, 1, 6, 7, 8, 9, 10, 11]])[:, filled], seen.values[:, filled]
    )
    truth = ecg[:, :2] if len(leads) == 2 else ecg[:, list(leads)]
    torch.testing.assert_close(seen.values[:, filled], truth, atol=1e-5, rtol=1e-5)


def test_hidden_nan_never_enters(ecg: torch.Tensor) -> None:
    ecg[0, 8] = float("nan")
    seen = LimbSlots()(ecg, ~observed(8))
    assert torch.isfinite(seen.values).all() and not seen.mask[0, 4]


def test_rms_counts_filled_slots_only_and_survives_silence(ecg: torch.Tensor) -> None:
    v1 = observed(6)
    assert LimbSlots()(ecg, v1).rms().item() == pytest.approx(ecg[0, 6].square().mean().sqrt().item())
    assert LimbSlots()(ecg * 0, v1).rms().item() == 1.0
