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


@pytest.mark.parametrize("pair", list(itertools.combinations(range(6), 2)))
def test_any_two_limb_leads_give_one_and_two(ecg: torch.Tensor, pair: tuple[int, int]) -> None:
    observed = torch.zeros(1, 12, dtype=torch.bool)
    observed[0, list(pair)] = True
    seen = LimbSlots()(ecg, observed)
    torch.testing.assert_close(seen.values[:, :2], ecg[:, :2], atol=1e-5, rtol=1e-5)
    assert seen.mask[0].tolist() == [True, True] + [False] * 6


@pytest.mark.parametrize("lead", range(6))
def test_a_single_limb_lead_is_one_slot_that_says_what_it_measures(ecg: torch.Tensor, lead: int) -> None:
    observed = torch.zeros(1, 12, dtype=torch.bool)
    observed[0, lead] = True
    seen = LimbSlots()(ecg, observed)
    assert int(seen.mask.sum()) == 1
    eight = ecg[:, [0, 1, 6, 7, 8, 9, 10, 11]]
    filled = seen.mask[0]
    torch.testing.assert_close((seen.rows @ eight)[:, filled], seen.values[:, filled])
    torch.testing.assert_close(seen.values[:, filled][0, 0], ecg[0, lead])


def test_hidden_nan_never_enters(ecg: torch.Tensor) -> None:
    observed = torch.ones(1, 12, dtype=torch.bool)
    observed[0, 8] = False
    ecg[0, 8] = float("nan")
    seen = LimbSlots()(ecg, observed)
    assert torch.isfinite(seen.values).all() and not seen.mask[0, 4]


def test_rms_counts_filled_slots_only_and_survives_silence(ecg: torch.Tensor) -> None:
    observed = torch.zeros(1, 12, dtype=torch.bool)
    observed[0, 6] = True
    assert LimbSlots()(ecg, observed).rms().item() == pytest.approx(ecg[0, 6].square().mean().sqrt().item())
    assert LimbSlots()(ecg * 0, observed).rms().item() == 1.0
