"""The gauge of the VCG and the average beat, against cases whose answer is known."""

import numpy as np
import pytest
import torch

from ecggen.leads import INDEPENDENT_INDEX, KORS
from ecggen.models.beats import average_beat
from ecggen.models.objective import FLOOR, gauge, make_target, slot_errors
from tests.models.test_ecggen import make_ecg, make_model, mask


@pytest.mark.parametrize("observed_weight", [0.0, 0.1])
def test_the_gauge_is_zero_on_kors_and_ignores_incomplete_recordings(observed_weight: float) -> None:
    model, ecg = make_model(), make_ecg()
    eight = ecg[:, [0, 1, 6, 7, 8, 9, 10, 11]]
    frank = torch.tensor(KORS, dtype=torch.float32) @ eight
    recorded = torch.ones(4, 12, dtype=torch.bool)
    recorded[3, 7] = False
    target = make_target(model, ecg, recorded, mask("I+II"), observed_weight)
    assert gauge(frank, target).max() < 1e-9
    off = gauge(frank + target.scale, target)
    torch.testing.assert_close(off, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_the_average_beat_is_the_beat() -> None:
    fs = 100.0
    spikes = np.zeros(600)
    spikes[[60, 150, 245, 330, 420, 560]] = 1.0  # the last has no whole beat behind it
    shape = np.exp(-0.5 * ((np.arange(-30, 50)) / 2.5) ** 2) + 0.3 * np.exp(
        -0.5 * ((np.arange(-30, 50) - 25) / 5.0) ** 2
    )
    lead = np.convolve(spikes, shape)[30 : 30 + 600]
    signal = torch.tensor(np.stack([lead, -2 * lead, 0 * lead + 0.5])[None], dtype=torch.float32)
    beat = average_beat(signal, signal[:, 0], fs)
    assert beat.shape == (1, 3, 70)
    np.testing.assert_allclose(beat[0, 0].numpy(), shape[5:75], atol=0.02)
    torch.testing.assert_close(beat[0, 1], -2 * beat[0, 0])
    torch.testing.assert_close(beat[0, 2], torch.full((70,), 0.5))


def test_no_beat_gives_zeros() -> None:
    silent = torch.zeros(2, 3, 300)
    assert average_beat(silent, silent[:, 0], 100.0).abs().max() == 0


def test_errors_of_a_stack_of_leads_are_those_of_numpy() -> None:
    model, ecg = make_model(), make_ecg()
    recorded = torch.ones(4, 12, dtype=torch.bool)
    target = make_target(model, ecg, recorded, mask("I+II"), 0.1)
    leads = torch.stack([ecg + 0.1 * torch.randn(ecg.shape, generator=torch.Generator().manual_seed(0)), ecg])
    errors, correlations = slot_errors(target, leads)
    truth = ecg[:, list(INDEPENDENT_INDEX)].double().numpy()
    rendered = leads[:, :, list(INDEPENDENT_INDEX)].double().numpy()
    rms = np.sqrt(np.square(truth).mean((1, 2), keepdims=True))
    wanted = np.sqrt(np.square((rendered - truth) / rms).mean(-1) + FLOOR) - np.sqrt(FLOOR)
    np.testing.assert_allclose(errors, wanted, atol=1e-5)
    for stack in range(2):
        for row in range(4):
            r = [np.corrcoef(a, b)[0, 1] for a, b in zip(rendered[stack, row], truth[row], strict=True)]
            np.testing.assert_allclose(correlations[stack, row], r, atol=1e-4)
