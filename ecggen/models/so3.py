"""Rotations of three-dimensional space: hat, exponential, logarithm, projection, angle.

All functions take any leading batch shape and stay differentiable at the identity. Formulas: Rodrigues;
Sola, Deray & Atchuthan, "A micro Lie theory" (2018), eq. 132-136.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SMALL = 1e-4


def hat(omega: Tensor) -> Tensor:
    """[..., 3] -> [..., 3, 3] skew-symmetric, hat(a) @ b = a x b."""
    assert omega.shape[-1] == 3, omega.shape
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*omega.shape[:-1], 3, 3)


def vee(skew: Tensor) -> Tensor:
    """[..., 3, 3] -> [..., 3], the inverse of `hat` (of the skew-symmetric part)."""
    assert skew.shape[-2:] == (3, 3), skew.shape
    part = 0.5 * (skew - skew.transpose(-1, -2))
    return torch.stack([part[..., 2, 1], part[..., 0, 2], part[..., 1, 0]], -1)


def exp(omega: Tensor) -> Tensor:
    """Rotation vector [..., 3] in radians -> rotation matrix [..., 3, 3]."""
    square = (omega * omega).sum(-1)[..., None, None]
    small = square < _SMALL**2
    # Both branches of `where` are differentiated: keep the unused one finite.
    safe = torch.where(small, 1.0, square)
    theta = safe.sqrt()
    a = torch.where(small, 1 - square / 6, theta.sin() / theta)
    b = torch.where(small, 0.5 - square / 24, (1 - theta.cos()) / safe)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    # hat(w) hat(w) = w w' - |w|^2
    outer = omega[..., :, None] * omega[..., None, :]
    return (1 - b * square) * eye + a * hat(omega) + b * outer


def exp_with_gradient(omega: Tensor, basis: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """exp(omega) [B, 3, 3] of omega [B, 3], and what takes the gradient [B, 3, 3] of a function at it to the
    gradient [B, 3] at omega, through the right Jacobian (Sola et al., eq. 143).

    basis [3, 9]: `hat_basis`. Both can be differentiated, at the identity as well.
    """
    square = (omega * omega).sum(-1, keepdim=True)
    small = square < _SMALL**2
    safe = torch.where(small, 1.0, square)  # both branches of `where` are differentiated
    theta = safe.sqrt()
    a = torch.where(small, 1.0, theta.sin() / theta)
    b = torch.where(small, 0.5, (1 - theta.cos()) / safe)
    skew = torch.mm(omega, basis).view(-1, 3, 3)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    rotation = torch.addcmul(torch.addcmul(eye, a.unsqueeze(2), skew), b.unsqueeze(2), torch.bmm(skew, skew))

    def back(gradient: Tensor) -> Tensor:
        xi = torch.mm(torch.bmm(rotation.mT, gradient).flatten(1), basis.T)
        once = torch.linalg.cross(omega, xi)
        # (theta - sin(theta)) / theta^3; what it multiplies vanishes as theta^2.
        c = torch.where(small, 1 / 6, (1 - a) / safe)
        return torch.addcmul(torch.addcmul(xi, b, once), c, torch.linalg.cross(omega, once))

    return rotation, back


def hat_basis(like: Tensor) -> Tensor:
    """[3, 9], `hat` as a matrix, hat(omega).flatten() = omega @ it; of the type and device of `like`."""
    return hat(torch.eye(3, dtype=like.dtype, device=like.device)).flatten(1)


def angle(rotation: Tensor) -> Tensor:
    """Geodesic angle [...] in radians of rotations [..., 3, 3]; accurate at 0 and at pi."""
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    sine = vee(rotation).norm(dim=-1)  # |vee| = sin(theta)
    return torch.atan2(sine, (trace - 1) / 2)


def log(rotation: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] -> rotation vector [..., 3] of length at most pi."""
    axis_sine = vee(rotation)
    theta = angle(rotation)
    sine = theta.sin()
    near_zero = theta < _SMALL
    near_pi = torch.pi - theta < 1e-2
    safe = torch.where(near_zero | near_pi, torch.ones_like(sine), sine)
    factor = torch.where(near_zero, 1 + theta**2 / 6, theta / safe)
    plain = factor[..., None] * axis_sine
    return torch.where(near_pi[..., None], _log_near_pi(rotation, theta, axis_sine), plain)


def _log_near_pi(rotation: Tensor, theta: Tensor, axis_sine: Tensor) -> Tensor:
    # R + R^T = 2 cos I + 2 (1 - cos) n n^T: read the axis from the column with the largest diagonal.
    eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    cosine = theta.cos()[..., None, None]
    outer = (0.5 * (rotation + rotation.transpose(-1, -2)) - cosine * eye) / (1 - cosine).clamp_min(1e-6)
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    column = outer.gather(-1, best[..., None, None].expand(*best.shape, 3, 1)).squeeze(-1)
    axis = column / column.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    sign = torch.where((axis * axis_sine).sum(-1, keepdim=True) < 0, -1.0, 1.0).to(axis)
    return theta[..., None] * axis * sign


def project(matrix: Tensor) -> Tensor:
    """The rotation nearest to a matrix [..., 3, 3] in the Frobenius norm (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd(matrix)
    flip = torch.linalg.det(u @ vh)
    diagonal = torch.stack([torch.ones_like(flip), torch.ones_like(flip), flip], -1)
    return u * diagonal[..., None, :] @ vh


def geodesic(first: Tensor, second: Tensor) -> Tensor:
    """Angle [...] in radians between two rotations [..., 3, 3]."""
    return angle(first.transpose(-1, -2) @ second)
