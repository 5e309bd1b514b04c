"""Basis, generator and every regulariser against a case whose answer is known."""

from collections.abc import Callable

import pytest
import torch

from ecggen.models import vcg
from ecggen.models.ttt import FastState


def test_cosine_basis_is_orthonormal_and_smoothest_first() -> None:
    basis = vcg.cosine_basis(12, 64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12), atol=1e-5, rtol=0)
    roughness = basis.diff(n=2, dim=-1).square().sum(-1)
    assert (roughness.diff() > 0).all()


LINE, PARABOLA = (torch.stack([x, x, x])[None] for x in (3 * torch.arange(20.0), torch.arange(20.0) ** 2))
BEATS = torch.zeros(1, 2, 3, 5)
BEATS[0, 0, :, -1] = torch.tensor([1.0, 2.0, 2.0])
BEATS[0, 1, :, -1] = 100.0


@pytest.mark.parametrize(
    ("penalty", "arguments", "wanted"),
    [
        (vcg.smoothness, (LINE,), 0.0),
        (vcg.smoothness, (PARABOLA,), 4.0),
        (vcg.energy, (torch.full((1, 3, 7), 2.0),), 4.0),
        (vcg.closed_loop, (BEATS, torch.tensor([[True, False]])), 9.0),
        (vcg.closed_loop, (BEATS, torch.tensor([[False, False]])), 0.0),
        (vcg.basis_orthogonality, (vcg.cosine_basis(6, 32),), 0.0),
        (vcg.basis_orthogonality, (torch.ones(2, 2),), 2.5),  # Gram [[2, 2], [2, 2]] - I, mean square
        (vcg.quasi_static, (torch.tensor([[1.0, 3.0]]), torch.tensor([0.0, 1.0])), 2.5),
    ],
)
def test_penalties_of_known_cases(penalty: Callable, arguments: tuple, wanted: float) -> None:
    assert float(penalty(*arguments)) == pytest.approx(wanted, abs=1e-9)


def test_beats_are_coefficients_times_basis_shifted_by_the_state() -> None:
    torch.manual_seed(0)
    generator = vcg.VCGGenerator(width=16, channels=8, basis=4, beat_len=32)
    fast = FastState("vector", 5, 8, 4)
    tokens, modulation = torch.randn(2, 3, 16), fast(torch.randn(2, fast.size))
    beats = generator.beats(tokens, modulation)
    assert beats.shape == (2, 3, 3, 32)
    coefficients = generator.coefficients(tokens) + modulation.coefficients[:, None]
    expected = torch.einsum("bnck,kp->bncp", coefficients.unflatten(-1, (3, 4)), generator.basis)
    torch.testing.assert_close(beats, expected)
    assert generator.detail(torch.randn(2, 8, 20), modulation).shape == (2, 3, 20)


@pytest.mark.parametrize("kind", ["vector", "mlp"])
def test_local_detail_reads_the_features_that_the_state_has_changed(kind: str) -> None:
    torch.manual_seed(0)
    fast, generator = FastState(kind, code=5, channels=8, basis=3), vcg.VCGGenerator(4, 8, 3, 6)
    modulation = fast(fast.start + torch.randn(2, fast.size))
    features = torch.randn(2, 8, 11)
    changed = features * (1 + modulation.scale[..., None]) + modulation.shift[..., None]
    if kind == "mlp":
        changed = changed + modulation.fast(features)
    rows = changed.transpose(1, 2)
    plain = generator.detail.dipole(generator.detail.local(rows).relu()).transpose(1, 2)
    torch.testing.assert_close(generator.detail(features, modulation), plain, atol=1e-5, rtol=1e-5)
