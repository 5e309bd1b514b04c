"""A state of another day: between no reference and one held, by how sure the rendering is of itself."""

import dataclasses

import pytest
import torch

from ecggen.leads import EXPAND
from ecggen.models.another_day import CHANGED, another_day, trust
from ecggen.models.ecggen import ECGGen
from tests.models.test_ecggen import make_ecg, make_model, mask


@pytest.fixture(scope="module")
def model() -> ECGGen:
    return make_model()


@torch.no_grad()
def test_trust_is_that_of_two_variances(model: ECGGen) -> None:
    alone = model(make_ecg(), mask("I+II"))
    hidden = alone.std.mean(-1, keepdim=True) > 0
    leads = torch.where(hidden, torch.ones(()), torch.full((), 50.0))  # leads that are given do not count
    for error, wanted in ((0.0, 0.0), (CHANGED**0.5, 0.5), (1e4, 1.0)):
        std = torch.where(hidden, error, torch.zeros(())).expand(alone.std.shape)
        rendering = dataclasses.replace(alone, std=std, leads=leads.expand(alone.leads.shape))
        assert trust(rendering).shape == (4, 1, 1)
        torch.testing.assert_close(trust(rendering), torch.full((4, 1, 1), wanted), atol=1e-5, rtol=0)


@torch.no_grad()
def test_nothing_of_the_reference_is_kept_where_the_rendering_is_sure_and_all_where_it_is_not(
    model: ECGGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    ecg, given = make_ecg(), mask("I+II")
    state = model(make_ecg(seed=1), mask("I+II+V1+V2+V3+V4+V5+V6")).state
    alone, held = model(ecg, given), model(ecg, given, state=state)
    placed = model.placed(ecg, given, state)
    shortfall = placed - model(placed, given).leads
    expected = {0.0: alone.leads, 1.0: alone.leads + (held.leads - alone.leads + shortfall) / 2}
    for share, leads in expected.items():
        fixed = torch.full((4, 1, 1), share)
        monkeypatch.setattr("ecggen.models.another_day.trust", lambda _, fixed=fixed: fixed)
        out = another_day(model, ecg, given, state)
        torch.testing.assert_close(out.leads, leads)
        torch.testing.assert_close(out.leads, out.dipole + out.residual)
        torch.testing.assert_close(out.std, held.std if share else alone.std)


@torch.no_grad()
def test_hidden_leads_never_leak_and_the_algebra_holds(model: ECGGen) -> None:
    ecg, given = make_ecg(), mask("I+V2")
    state = model(make_ecg(seed=1), mask("I+II+V1+V2+V3+V4+V5+V6")).state
    out = another_day(model, ecg, given, state).leads
    spoiled = torch.where(given[..., None], ecg, torch.full((), 7.0))
    assert torch.equal(out, another_day(model, spoiled, given, state).leads)
    eight = out[:, [0, 1, 6, 7, 8, 9, 10, 11]]
    torch.testing.assert_close(out, torch.tensor(EXPAND, dtype=torch.float32) @ eight, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_recording_without_a_beat_is_rendered_all_the_same(model: ECGGen) -> None:
    given = mask("I")
    out = another_day(model, torch.zeros(4, 12, 256), given, model.start.expand(4, -1))
    assert torch.isfinite(out.leads).all() and torch.isfinite(out.std).all()
