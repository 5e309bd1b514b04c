"""The gradient of the inner loss, written out.

By hand it takes less than half of the operations that automatic differentiation takes, and the operations are
what a few windows cost. Training goes through it once more, automatically. `ECGGen` states the loss; tests
hold the two together, and the gradients through the steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, baddbmm, bmm

from ecggen.models import so3
from ecggen.models.beat_net import BeatView
from ecggen.models.blocks import LeadProjection
from ecggen.models.closed_form import ClosedFormLift
from ecggen.models.slots import Observation
from ecggen.models.ttt import FastState, Modulation
from ecggen.models.vcg import LocalDipole


class InnerGradient:
    """Of a state of kind "vector", for each row of a batch of beats.

    support: slots of the beats as recorded, values [B, 8, P]; view: the same as read with some left out;
    weight [B, 8] of the slots in the loss sum(weight * mean over P of (rendered - recorded)^2).
    """

    def __init__(
        self,
        modules: tuple[FastState, LeadProjection, ClosedFormLift, LocalDipole],
        support: Observation,
        view: BeatView,
        weight: Tensor,
    ) -> None:
        self.fast, self.projection, self.lift, self.detail = modules
        self.values, self.recorded = view.seen.values, support.values
        #: By which errors are multiplied to give the slope of the loss.
        self.slope = 2 / support.values.shape[-1] * weight[..., None]
        #: From the field of the leads to that of the slots: in the unit of the recording; as the view has it.
        self.rows = support.rows * view.scale
        self.sight = support.rows * view.seen.mask[..., None]
        self.precision = (-self.lift.log_noise).exp()[:, None]
        #: [B, P, C]: one product of matrices for all rows.
        self.features = view.features.transpose(1, 2).contiguous()
        self.eye = torch.eye(3, dtype=self.values.dtype, device=self.values.device)
        self.hat = so3.hat_basis(self.values)

    def __call__(self, state: Tensor) -> Tensor:
        """[B, S] at state [B, S]."""
        with torch.autocast(state.device.type, enabled=False):
            meaning = self.fast(state)
            field, back_to_field = self._field(meaning)
            root = self.lift.prior_root(meaning.prior)
            # As ClosedFormLift has it: the dipole is root solved values.
            sighted = bmm(self.sight, field)
            whitened = bmm(sighted, root)
            weighted = whitened * self.precision
            inverse = torch.linalg.inv_ex(baddbmm(self.eye, whitened.mT, weighted)).inverse
            solved = bmm(inverse, weighted.mT)
            detail, back_to_detail = self._detail(meaning)
            vcg = baddbmm(detail.mT, bmm(root, solved), self.values)
            seen = bmm(self.rows, field)
            error = baddbmm(self.recorded, seen, vcg, beta=-1) * self.slope

            to_vcg = bmm(seen.mT, error)
            to_scale, to_shift = back_to_detail(to_vcg.mT)
            to_gain = bmm(to_vcg, self.values.mT)
            back = bmm(inverse, bmm(root.mT, to_gain))
            to_normal = -bmm(back, solved.mT)
            to_whitened = baddbmm(back.mT, whitened, to_normal) * self.precision
            to_whitened = baddbmm(to_whitened, weighted, to_normal.mT)
            to_root = baddbmm(bmm(to_gain, solved.mT), sighted.mT, to_whitened)
            to_field = bmm(self.rows.mT, bmm(error, vcg.mT))
            to_field = baddbmm(to_field, self.sight.mT, bmm(to_whitened, root.mT))
            deviation, omega, log_gain = back_to_field(to_field)
            diagonal = (to_root * root).diagonal(dim1=1, dim2=2)
            to_prior = [diagonal, to_root[:, 1:, 0], to_root[:, 2:, 1]]
            unused = torch.zeros_like(meaning.coefficients)  # beats of the recording, not the median beat
            parts = [deviation.flatten(1), *to_prior, omega, log_gain, to_scale, to_shift, unused]
            return torch.mm(torch.cat(parts, -1), self.fast.read.weight)

    def _detail(self, meaning: Modulation) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """The local dipole [B, P, 3], and from its gradient those of scale and shift, both [B, C]."""
        local, dipole = self.detail.local, self.detail.dipole
        modulated = torch.addcmul(meaning.shift.unsqueeze(1), self.features, 1 + meaning.scale.unsqueeze(1))
        hidden = F.relu(F.linear(modulated, local.weight, local.bias))

        def back(to_dipole: Tensor) -> tuple[Tensor, Tensor]:
            to_modulated = ((to_dipole @ dipole.weight) * hidden.sign()) @ local.weight
            return (to_modulated * self.features).sum(1), to_modulated.sum(1)

        return F.linear(hidden, dipole.weight, dipole.bias), back

    def _field(self, meaning: Modulation) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
        """The patient's lead field [B, 8, 3], and from its gradient those of the deviation [B, 8, 3], the
        rotation [B, 3] and the gains [B, 8]."""
        raw, calib = self.projection.field + meaning.field, self.projection.calib
        if calib is None:
            nothing = torch.zeros_like(meaning.omega), torch.zeros_like(meaning.log_gain)
            return raw, lambda to_field: (to_field, *nothing)
        angle, log_gain = calib.bounded(meaning.omega, meaning.log_gain)
        rotation, back_to_angle = so3.exp_with_gradient(angle, self.hat)
        gain = log_gain.exp().unsqueeze(2)
        field = gain * bmm(raw, rotation)

        def back(to_field: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            to_turned = gain * to_field
            to_omega = back_to_angle(bmm(raw.mT, to_turned))
            to_log_gain = (to_field * field).sum(-1)
            return (
                bmm(to_turned, rotation.mT),
                to_omega * (1 - (angle / calib.max_angle).square()),
                to_log_gain * (1 - (log_gain / calib.max_log_gain).square()),
            )

        return field, back
