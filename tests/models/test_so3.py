"""Rotations against scipy's and against their own definitions."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ecggen.models import so3


def _vectors(count: int = 64, seed: int = 0, longest: float = 3.1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return torch.tensor(directions * rng.uniform(0, longest, (count, 1)))


def test_hat_is_the_cross_product_and_vee_its_inverse() -> None:
    a, b = _vectors(seed=1), _vectors(seed=2)
    torch.testing.assert_close(torch.einsum("nij,nj->ni", so3.hat(a), b), torch.linalg.cross(a, b))
    torch.testing.assert_close(so3.vee(so3.hat(a)), a)


def test_exp_and_log_agree_with_scipy() -> None:
    omega = _vectors()
    expected = torch.tensor(Rotation.from_rotvec(omega.numpy()).as_matrix())
    torch.testing.assert_close(so3.exp(omega), expected)
    vectors = Rotation.from_matrix(expected.numpy()).as_rotvec()
    torch.testing.assert_close(so3.log(expected), torch.tensor(vectors))


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-5, 1e-3, 3.13, np.pi - 1e-6])
def test_log_inverts_exp_near_zero_and_near_pi(length: float) -> None:
    directions = _vectors(32, seed=3)
    omega = directions / directions.norm(dim=1, keepdim=True) * length
    torch.testing.assert_close(so3.log(so3.exp(omega)), omega, atol=1e-6, rtol=1e-6)


def test_log_at_exactly_pi_gives_the_axis_up_to_sign() -> None:
    rotation = so3.exp(torch.tensor([[torch.pi, 0, 0], [0, torch.pi, 0]], dtype=torch.float64))
    torch.testing.assert_close(so3.log(rotation).abs(), torch.eye(3, dtype=torch.float64)[:2] * torch.pi)


def test_gradients_are_finite_at_the_identity() -> None:
    omega = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(so3.exp, (omega,))
    (gradient,) = torch.autograd.grad(so3.exp(omega).sum(), omega)
    assert torch.isfinite(gradient).all()


def test_project_finds_the_rotation_under_noise_and_never_a_reflection() -> None:
    rotation = so3.exp(_vectors())
    torch.testing.assert_close(so3.project(rotation * 1.7), rotation)
    mirrored = rotation @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    nearest = so3.project(mirrored)
    torch.testing.assert_close(torch.linalg.det(nearest), torch.ones(64, dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64).expand(64, 3, 3)
    torch.testing.assert_close(nearest @ nearest.transpose(1, 2), eye)


def test_geodesic_angle_is_the_length_of_the_relative_rotation_vector() -> None:
    first, second = so3.exp(_vectors(seed=4)), so3.exp(_vectors(seed=5))
    relative = Rotation.from_matrix(first.numpy()).inv() * Rotation.from_matrix(second.numpy())
    torch.testing.assert_close(so3.geodesic(first, second), torch.tensor(relative.magnitude()))
    assert so3.geodesic(first, first).abs().max() < 1e-7
