"""Basis, generator and every regulariser against a case whose answer is known."""

import pytest
import torch

from ecggen.models import vcg
from ecggen.models.ttt import FastState


def test_cosine_basis_is_orthonormal_and_smoothest_first() -> None:
    basis = vcg.cosine_basis(12, 64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12), atol=1e-5, rtol=0)
    roughness = basis.diff(n=2, dim=-1).square().sum(-1)
    assert (roughness.diff() > 0).all()


def test_smoothness_is_zero_on_a_line_and_known_on_a_parabola() -> None:
    t = torch.arange(20.0)
    line = (3 * t + 1).expand(2, 3, 20)
    torch.testing.assert_close(vcg.smoothness(line), torch.zeros(2), atol=1e-9, rtol=0)
    torch.testing.assert_close(vcg.smoothness((t**2).expand(1, 3, 20)), torch.tensor([4.0]))


def test_energy_is_the_mean_square() -> None:
    torch.testing.assert_close(vcg.energy(torch.full((2, 3, 7), 2.0)), torch.full((2,), 4.0))


def test_closed_loop_measures_the_gap_of_valid_beats_only() -> None:
    beats = torch.zeros(1, 2, 3, 5)
    beats[0, 0, :, -1] = torch.tensor([1.0, 2.0, 2.0])
    beats[0, 1, :, -1] = 100.0
    assert vcg.closed_loop(beats, torch.tensor([[True, False]])).item() == 9.0
    assert vcg.closed_loop(beats, torch.tensor([[False, False]])).item() == 0.0


def test_orthogonality_and_quasi_static_vanish_where_they_should() -> None:
    assert vcg.basis_orthogonality(vcg.cosine_basis(6, 32)).item() < 1e-10
    assert vcg.basis_orthogonality(torch.ones(2, 2)).item() == 2.5  # Gram [[2,2],[2,2]] - I, mean square
    state = torch.tensor([[1.0, 3.0]])
    assert vcg.quasi_static(state, torch.tensor([0.0, 1.0])).item() == 2.5


def test_beats_are_coefficients_times_basis_shifted_by_the_state() -> None:
    from ecggen.models.ttt import FastState

    torch.manual_seed(0)
    generator = vcg.VCGGenerator(width=16, channels=8, basis=4, beat_len=32)
    fast = FastState("vector", 5, 8, 4)
    tokens, made = torch.randn(2, 3, 16), fast(torch.randn(2, fast.size))
    beats = generator.beats(tokens, made)
    assert beats.shape == (2, 3, 3, 32)
    coefficients = generator.coefficients(tokens) + made.coefficients[:, None]
    expected = torch.einsum("bnck,kp->bncp", coefficients.unflatten(-1, (3, 4)), generator.basis)
    torch.testing.assert_close(beats, expected)
    assert generator.detail(torch.randn(2, 8, 20), made).shape == (2, 3, 20)


@pytest.mark.parametrize("kind", ["vector", "mlp"])
def test_local_detail_reads_the_features_that_the_state_has_changed(kind: str) -> None:
    torch.manual_seed(0)
    fast, generator = FastState(kind, code=5, channels=8, basis=3), vcg.VCGGenerator(4, 8, 3, 6)
    made = fast(fast.start + torch.randn(2, fast.size))
    features = torch.randn(2, 8, 11)
    changed = features * (1 + made.scale[..., None]) + made.shift[..., None]
    if kind == "mlp":
        changed = changed + made.fast(features)
    rows = changed.transpose(1, 2)
    plain = generator.detail.dipole(generator.detail.local(rows).relu()).transpose(1, 2)
    torch.testing.assert_close(generator.detail(features, made), plain, atol=1e-5, rtol=1e-5)
