"""The vectorcardiogram generator and its regularisers.

VCG = closed-form lift + beat basis + local detail. The beat basis gives, per token, coefficients [3, K] from
(token, W) times K smooth temporal functions over P samples; the local part reads convolutional features
through W at every sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.models.blocks import small_start
from ecggen.models.ttt import Modulation


def cosine_basis(count: int, length: int) -> Tensor:
    """[K, P] orthonormal DCT-II rows, the smoothest first (Ahmed et al., 1974)."""
    position = (torch.arange(length) + 0.5) * math.pi / length
    rows = torch.cos(torch.arange(count)[:, None] * position) * math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows


class LocalDipole(nn.Module):
    """Local features [B, C, T] to a dipole [B, 3, T], read through W; pointwise in time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = nn.Linear(channels, channels)
        self.dipole = nn.Linear(channels, 3)
        small_start(self.dipole, 0.02)

    def forward(self, features: Tensor, modulation: Modulation) -> Tensor:
        """The inner loop comes here at every step, twice differentiated: the kink of a ReLU costs nothing the
        second time."""
        return self.read(F.relu(self.hidden(features, modulation)))

    def hidden(self, features: Tensor, modulation: Modulation) -> Tensor:
        """[B, C, T] before the kink; the modulation is folded into the weights."""
        weight = self.local.weight * (1 + modulation.scale[:, None])
        bias = modulation.shift @ self.local.weight.T + self.local.bias
        hidden = torch.baddbmm(bias[..., None], weight, features)
        extra = modulation.fast(features)
        return hidden if extra is None else hidden + self.local.weight @ extra

    def read(self, hidden: Tensor) -> Tensor:
        """[B, 3, T] after it."""
        return self.dipole.weight @ hidden + self.dipole.bias[:, None]


class VCGGenerator(nn.Module):
    """Tokens, local features and the state to a dipole.

    width D, channels C, basis K, beat_len P.
    """

    def __init__(self, width: int, channels: int, basis: int, beat_len: int) -> None:
        super().__init__()
        self.basis_count = basis
        self.basis = nn.Parameter(cosine_basis(basis, beat_len))
        self.coefficients = nn.Linear(width, 3 * basis)
        small_start(self.coefficients, 0.02)
        self.detail = LocalDipole(channels)

    def beats(self, tokens: Tensor, modulation: Modulation) -> Tensor:
        """Dipole per beat [B, N, 3, P] from tokens [B, N, D]."""
        shift = modulation.coefficients
        values = self.coefficients(tokens) + shift[:, None]
        return values.unflatten(-1, (3, self.basis_count)) @ self.basis


def smoothness(vcg: Tensor) -> Tensor:
    """Mean square of second differences over time, per sample: [B, 3, T] -> [B]."""
    return vcg.diff(n=2, dim=-1).square().mean((1, 2))


def energy(vcg: Tensor) -> Tensor:
    """Mean square, per sample: [B, 3, T] -> [B]."""
    return vcg.square().mean((1, 2))


def closed_loop(beats: Tensor, valid: Tensor) -> Tensor:
    """Squared distance between a beat's first and last point, mean over valid beats.

    beats [B, N, 3, P], valid [B, N] bool -> [B].
    """
    gap = (beats[..., 0] - beats[..., -1]).square().sum(-1)
    return (gap * valid).sum(-1) / valid.sum(-1).clamp_min(1)


def basis_orthogonality(basis: Tensor) -> Tensor:
    """Mean squared departure of the Gram matrix of basis [K, P] from the identity: a scalar."""
    gram = basis @ basis.T
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().mean()


def quasi_static(state: Tensor, start: Tensor) -> Tensor:
    """Drift of W: mean square of state - start over its dimensions, [B, S] -> [B]."""
    return (state - start).square().mean(-1)
