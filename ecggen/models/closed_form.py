"""The closed-form lift of the observed leads to the dipole.

With slots y = A v + e, v ~ N(0, P), e ~ N(0, R), the estimate is v = P A' (A P A' + R)^-1 y
(Tarantola, Inverse Problem Theory, eq. 3.37). It is also what gradient descent on v itself reaches when the
inner loop runs for ever. P, R and A are learned; P and A follow the state W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
