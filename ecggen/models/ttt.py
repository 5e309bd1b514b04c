"""The fast state W and the inner loop that estimates it from the observed leads.

W is one flat vector per sample. `FastState` says what W means for the rest of the model; `TTTUpdater` takes
gradient steps on it. The loss of a sample depends on that sample alone, so one gradient of the sum over the
batch holds every sample's own gradient.

Sources: Sun et al., Test-Time Training (ICML 2020); Finn et al., MAML (ICML 2017); Li et al., Meta-SGD
(arXiv 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.models.blocks import small_start
from ecggen.models.slots import SLOTS, Observation


@dataclass
class Modulation:
    """What a state means. field [B, 8, 3], prior [B, 6], omega [B, 3] in radians, log_gain [B, 8];

    scale and shift [B, C] modulate local features; coefficients [B, 3 K] shift the beat's basis coefficients;
    first [B, C, H], bias [B, H], second [B, H, C] are fast weights (kind "mlp" only).
    """

    field: Tensor
    prior: Tensor
    omega: Tensor
    log_gain: Tensor
    scale: Tensor
    shift: Tensor
    coefficients: Tensor
    first: Tensor | None = None
    bias: Tensor | None = None
    second: Tensor | None = None

    def fast(self, features: Tensor) -> Tensor | None:
        """What the fast weights add to local features [B, C, T], pointwise in time; None without any."""
        if self.first is None:
            return None
        assert self.bias is not None and self.second is not None
        hidden = F.gelu(self.first.transpose(1, 2) @ features + self.bias[..., None])
        return self.second.transpose(1, 2) @ hidden


class FastState(nn.Module):
    """W and its meaning.

    kind "vector": W is a code of `code` numbers, read by linear maps. kind "mlp": behind it stand the weights
    of a pointwise residual MLP of `hidden` units.
    """

    def __init__(self, kind: str, code: int, channels: int, basis: int, hidden: int = 8) -> None:
        super().__init__()
        if kind not in ("vector", "mlp"):
            raise ValueError(f"model.state_kind is {kind!r}: use vector or mlp.")
        self.kind, self.code, self.channels, self.hidden = kind, code, channels, hidden
        self.sizes = {
            "field": SLOTS * 3,
            "prior": 6,
            "omega": 3,
            "log_gain": SLOTS,
            "scale": channels,
            "shift": channels,
            "coefficients": 3 * basis,
        }
        self.read = nn.Linear(code, sum(self.sizes.values()), bias=False)
        nn.init.normal_(self.read.weight, std=0.1 / math.sqrt(code) * 4)
        fast = (2 * channels + 1) * hidden if kind == "mlp" else 0
        self.size = code + fast
        start = torch.zeros(self.size)
        if fast:
            # A zero second layer leaves the model as it is; a random first layer lets gradients in.
            start[code : code + channels * hidden] = torch.randn(channels * hidden) / math.sqrt(channels)
        self.start = nn.Parameter(start)

    def forward(self, state: Tensor) -> Modulation:
        assert state.ndim == 2 and state.shape[1] == self.size, (state.shape, self.size)
        parts = dict(
            zip(
                self.sizes, self.read(state[:, : self.code]).split(list(self.sizes.values()), -1), strict=True
            )
        )
        modulation = Modulation(field=parts.pop("field").reshape(-1, SLOTS, 3), **parts)
        if self.kind == "mlp":
            c, h = self.channels, self.hidden
            first, bias, second = state[:, self.code :].split([c * h, h, h * c], -1)
            modulation.first, modulation.bias = first.reshape(-1, c, h), bias
            modulation.second = second.reshape(-1, h, c)
        return modulation


class StateGuess(nn.Module):
    """An amortised first guess of W from the support recording, added to the learned start.

    Reads second moments of the observed slots (amplitude geometry), the least-squares lead field where all
    eight leads are there, and strided convolutions over the signal (beat shape), pooled over time.
    """

    upper: Tensor

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(2 * SLOTS, 32, 9, stride=4, padding=4),
            nn.GELU(),
            nn.Conv1d(32, width, 9, stride=4, padding=4),
            nn.GELU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
            nn.GELU(),
        )
        rows, columns = torch.triu_indices(SLOTS, SLOTS)
        self.register_buffer("upper", rows * SLOTS + columns, persistent=False)
        moments = len(rows) + SLOTS + 3 * SLOTS
        self.mix = nn.Sequential(nn.Linear(moments + 2 * width, 128), nn.GELU(), nn.Linear(128, size))
        self.direct = nn.Linear(moments, size, bias=False)
        small_start(self.mix[2], 0.02)
        small_start(self.direct, 0.02)

    def forward(self, seen: Observation, field: Tensor) -> Tensor:
        """seen: values divided by their RMS; field [8, 3] the population's lead field -> [B, size]."""
        values, mask = seen.values, seen.mask.to(seen.values.dtype)
        moments = self._moments(values, mask, field.detach())
        wave = self.convolutions(torch.cat([values, mask[..., None].expand_as(values)], 1))
        pooled = torch.cat([wave.mean(-1), wave.amax(-1)], -1)
        return self.mix(torch.cat([moments, pooled], -1)) + self.direct(moments)

    @torch.no_grad()
    def _moments(self, values: Tensor, mask: Tensor, field: Tensor) -> Tensor:
        second = values @ values.transpose(1, 2) / values.shape[-1]
        full = mask.prod(-1)[:, None, None]
        with torch.autocast(values.device.type, enabled=False):
            second, field = second.float(), field.float()
            lift = torch.linalg.pinv(field)
            dipole = lift @ second @ lift.T + 1e-3 * torch.eye(3, dtype=second.dtype, device=second.device)
            # Least squares of the leads on the lifted dipole: the lead field this recording has itself.
            personal = torch.linalg.solve(dipole, lift @ second).transpose(1, 2) - field
        return torch.cat([second.flatten(1)[:, self.upper], mask, (personal * full).flatten(1)], -1)


class TTTUpdater(nn.Module):
    """`steps` gradient steps of a per-sample loss plus a prior, with learned per-dimension step sizes.

    The gradient of each sample is shortened to norm `clip`, so that steps beyond the trained number stay
    finite.
    """

    def __init__(
        self,
        size: int,
        *,
        steps: int,
        step_size: float,
        prior: float,
        order: str = "second",
        clip: float = 1.0,
    ) -> None:
        super().__init__()
        if order not in ("second", "first"):
            raise ValueError(f"model.ttt.order is {order!r}: use second or first.")
        self.steps, self.prior, self.order, self.clip = steps, prior, order, clip
        self.log_step = nn.Parameter(torch.full((size,), math.log(step_size)))

    def forward(
        self,
        start: Tensor,
        loss: Callable[[Tensor], Tensor],
        steps: int | None = None,
        gradient: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """States [K + 1, B, S] from start [B, S] on, also the W0 of the prior; loss maps [B, S] to [B].

        gradient: that of each sample's loss, [B, S] to [B, S], where it is known; automatic differentiation
        otherwise. Second order builds a graph through the gradients while training; otherwise, and under
        `torch.no_grad()`, the result carries no inner graph.
        """
        steps = self.steps if steps is None else steps
        assert start.ndim == 2 and start.shape[1] == len(self.log_step), start.shape
        second = self.training and torch.is_grad_enabled() and self.order == "second"
        states, step = [start], self.log_step.exp()
        for _ in range(steps):
            state = states[-1]
            if gradient is None:
                slope = self._gradient(state, loss, start, second)
            else:
                with torch.set_grad_enabled(second):
                    slope = gradient(state) + 2 * self.prior * (state - start)
            states.append(state - step * self._clipped(slope))
        return torch.stack(states)

    def _gradient(
        self, state: Tensor, loss: Callable[[Tensor], Tensor], anchor: Tensor, second: bool
    ) -> Tensor:
        with torch.enable_grad():
            # A node of its own: what else was computed from the state (features) is a constant here.
            at = state.clone() if second and state.requires_grad else state.detach().requires_grad_()
            if not second:
                anchor = anchor.detach()
            value = loss(at) + self.prior * (at - anchor).square().sum(-1)
            assert value.shape == at.shape[:1], value.shape
            (gradient,) = torch.autograd.grad(value.sum(), at, create_graph=second)
        return gradient if second else gradient.detach()

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.clip <= 0:
            return gradient
        norm = gradient.square().sum(-1, keepdim=True).add(1e-12).sqrt()
        return gradient * (self.clip / norm).clamp(max=1.0)
