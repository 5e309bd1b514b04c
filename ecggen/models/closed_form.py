"""Closed forms: the lift of the observed leads to the dipole, and their completion by second moments.

With slots y = A v + e, v ~ N(0, P), e ~ N(0, R), the estimate is v = P A' (A P A' + R)^-1 y
(Tarantola, Inverse Problem Theory, eq. 3.37). It is also what gradient descent on v itself reaches when the
inner loop runs for ever. P, R and A are learned; P and A follow the state W.

`LeadCompletion` does the same one level higher: with x ~ N(0, C) over the eight leads, hidden leads are
E[x | y] = C H' (H C H' + R)^-1 y. C is the population's, or a person's own from a reference recording.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ecggen.leads import DOWER
from ecggen.models.slots import SLOTS, Observation


class ClosedFormLift(nn.Module):
    """Learned prior covariance P [3, 3] and noise variances R [8], both relative to the recording's power."""

    def __init__(self) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.tensor([-0.3, -0.3, -0.5]))
        self.lower = nn.Parameter(torch.zeros(3))
        self.log_noise = nn.Parameter(torch.full((SLOTS,), -3.0))

    def prior_root(self, deviation: Tensor | None = None) -> Tensor:
        """Cholesky factor [3, 3] of P, or [B, 3, 3] with a deviation [B, 6] from the state."""
        params = torch.cat([self.log_diagonal, self.lower])
        if deviation is not None:
            params = params + deviation
        x, y, z, a, b, c = params.unbind(-1)
        zero = torch.zeros_like(x)
        factor = [x.exp(), zero, zero, a, y.exp(), zero, b, c, z.exp()]
        return torch.stack(factor, -1).reshape(*x.shape, 3, 3)

    def gain(self, field: Tensor, mask: Tensor, deviation: Tensor | None = None) -> Tensor:
        """The matrix [B, 3, 8] that takes slots to the dipole.

        field [B, 8, 3]: the slots' lead field, rows @ A; mask [B, 8] bool, True = filled.
        """
        assert field.shape[1:] == (SLOTS, 3) and mask.shape == field.shape[:2], (field.shape, mask.shape)
        # Half precision has no solver and too few digits for one.
        with torch.autocast(field.device.type, enabled=False):
            return self._gain(field.float(), mask, None if deviation is None else deviation.float())

    def _gain(self, field: Tensor, mask: Tensor, deviation: Tensor | None) -> Tensor:
        seen = mask.to(field.dtype)[..., None]
        root = self.prior_root(deviation)
        # In the whitened dipole u (v = root u) the system is 3 x 3 and never singular.
        whitened = field * seen @ root
        weighted = whitened / self.log_noise.exp()[:, None]
        normal = whitened.transpose(1, 2) @ weighted + torch.eye(3, dtype=field.dtype, device=field.device)
        return root @ torch.linalg.solve(normal, weighted.transpose(1, 2))

    def forward(self, seen: Observation, field: Tensor, deviation: Tensor | None = None) -> Tensor:
        """Dipole [B, 3, T] in the unit of seen.values, from the lead field [B, 8, 3] of the eight leads."""
        return self.gain(seen.rows @ field, seen.mask, deviation) @ seen.values


class LeadCompletion(nn.Module):
    """Second moments of the eight independent leads, and what they say about hidden ones.

    The part of the state that belongs here is the lower triangle [36] of a root of C, relative to the
    population's root, which is learned. C has mean diagonal 1: only its shape matters.
    """

    triangle: Tensor
    size = SLOTS * (SLOTS + 1) // 2

    def __init__(self) -> None:
        super().__init__()
        dower = torch.tensor(DOWER, dtype=torch.float32)
        moments = dower @ dower.T
        moments = moments / moments.diagonal().mean() + 0.05 * torch.eye(SLOTS)
        rows, columns = torch.tril_indices(SLOTS, SLOTS)
        self.register_buffer("triangle", rows * SLOTS + columns, persistent=False)
        self.root = nn.Parameter(torch.linalg.cholesky(moments).flatten()[self.triangle])
        self.log_noise = nn.Parameter(torch.full((SLOTS,), -4.0))
        self.shrink = nn.Parameter(torch.tensor(-3.0))

    def moments(self, deviation: Tensor | None = None) -> Tensor:
        """C [8, 8] of the population, or [B, 8, 8] with a deviation [B, 36] from the state."""
        values = self.root if deviation is None else self.root + deviation
        root = values.new_zeros(*values.shape[:-1], SLOTS * SLOTS)
        root = root.index_copy(-1, self.triangle, values).unflatten(-1, (SLOTS, SLOTS))
        return root @ root.transpose(-1, -2)

    def _gain(self, moments: Tensor, seen: Observation) -> Tensor:
        view = seen.rows * seen.mask[..., None]
        noise = torch.where(seen.mask, self.log_noise.exp(), torch.ones_like(self.log_noise))
        cross = view @ moments
        inside = cross @ view.transpose(1, 2) + torch.diag_embed(noise)
        return torch.linalg.solve(inside, cross).transpose(1, 2)

    def estimate(self, seen: Observation) -> Tensor:
        """Deviation [B, 36] from a support recording: its own second moments, missing leads completed.

        With K the gain of the population's moments C0 (scaled to the recording's power) and S the observed
        moments, C = K S K' + C0 - K H C0: what one step of expectation-maximisation gives (Little & Rubin,
        Statistical Analysis with Missing Data, ch. 11). With all leads observed C is S but for the noise.
        """
        with torch.autocast(seen.values.device.type, enabled=False):
            values, rows = seen.values.float(), seen.rows.float()
            second = values @ values.transpose(1, 2) / values.shape[-1]
            view = rows * seen.mask[..., None]
            population = self.moments()
            inside = view @ population @ view.transpose(1, 2)
            spare = torch.diag_embed((~seen.mask).float() + 1e-3)
            ratio = torch.linalg.solve(inside + spare, second).diagonal(dim1=1, dim2=2).sum(-1)
            scale = (ratio / seen.mask.sum(-1).clamp_min(1)).clamp(1e-2, 1e2)[:, None, None]
            gain = self._gain(population, Observation(values, seen.mask, rows))
            rest = scale * (population - gain @ view @ population)
            completed = gain @ second @ gain.transpose(1, 2) + 0.5 * (rest + rest.transpose(1, 2))
            mean = completed.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None].clamp_min(1e-6)
            share = torch.sigmoid(self.shrink)
            mixed = (1 - share) * completed / mean + share * population
            eye = torch.eye(SLOTS, dtype=mixed.dtype, device=mixed.device)
            root = torch.linalg.cholesky(mixed + 1e-3 * eye)
            return root.flatten(1)[:, self.triangle] - self.root

    def forward(self, seen: Observation, deviation: Tensor) -> Tensor:
        """All eight leads [B, 8, T] in the unit of seen.values, from the observed ones."""
        with torch.autocast(seen.values.device.type, enabled=False):
            values, rows = seen.values.float(), seen.rows.float()
            gain = self._gain(self.moments(deviation.float()), Observation(values, seen.mask, rows))
            return gain @ values
