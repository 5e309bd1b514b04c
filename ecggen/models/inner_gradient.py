"""The gradient of the inner loss, written out.

Automatic differentiation is what training needs, because it goes through the steps. Where nothing is learned
the same gradient by hand takes less than half of the operations, and the operations are what a few windows
cost. `ECGGen` states the loss; a test holds the two together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
        self.support, self.view = support, view
        #: By which errors are multiplied to give the slope of the loss.
        self.slope = 2 / support.values.shape[-1] * weight[..., None] * view.scale
        self.mask = view.seen.mask.to(support.values.dtype)[..., None]

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        """[B, S] at state [B, S]."""
        with torch.autocast(state.device.type, enabled=False):
            meaning = self.fast(state)
            raw = self.projection.field + meaning.field
            field = self.projection.own(meaning.field, meaning.omega, meaning.log_gain)
            root = self.lift.prior_root(meaning.prior)
            rows, seen = self.support.rows, self.view.seen
            # As ClosedFormLift has it: the dipole is root solved values.
            sighted = rows @ field * self.mask
            whitened = sighted @ root
            noise = self.lift.log_noise.exp()[:, None]
            weighted = whitened / noise
            normal = whitened.mT @ weighted + torch.eye(3, dtype=root.dtype, device=root.device)
            solved = torch.linalg.solve(normal, weighted.mT)
            hidden = F.relu(self.detail.hidden(self.view.features, meaning))
            vcg = root @ (solved @ seen.values) + self.detail.read(hidden)
            error = rows @ (field @ vcg) * self.view.scale - self.support.values

            to_leads = rows.mT @ (error * self.slope)
            to_field, to_vcg = to_leads @ vcg.mT, field.mT @ to_leads
            to_scale, to_shift = self._detail(to_vcg, hidden)
            to_gain = to_vcg @ seen.values.mT
            back = torch.linalg.solve(normal, root.mT @ to_gain)
            to_normal = -back @ solved.mT
            to_whitened = weighted @ to_normal.mT + (back.mT + whitened @ to_normal) / noise
            to_root = to_gain @ solved.mT + sighted.mT @ to_whitened
            to_field = to_field + rows.mT @ (to_whitened @ root.mT * self.mask)
            diagonal = (to_root * root).diagonal(dim1=1, dim2=2)
            to_prior = torch.cat([diagonal, to_root[:, 1:, 0], to_root[:, 2:, 1]], -1)
            deviation, omega, log_gain = self._field(to_field, raw, field, meaning)
            unused = torch.zeros_like(meaning.coefficients)  # beats of the recording, not the median beat
            parts = [deviation.flatten(1), to_prior, omega, log_gain, to_scale, to_shift, unused]
            return torch.cat(parts, -1) @ self.fast.read.weight

    def _detail(self, to_vcg: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of scale and shift [B, C], from that of the dipole [B, 3, P]."""
        to_hidden = (self.detail.dipole.weight.T @ to_vcg) * (hidden > 0)
        weight = self.detail.local.weight
        return (weight * (to_hidden @ self.view.features.mT)).sum(1), to_hidden.sum(-1) @ weight

    def _field(
        self, to_field: Tensor, raw: Tensor, field: Tensor, meaning: Modulation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the deviation [B, 8, 3], the rotation [B, 3] and the gains [B, 8], from that of the field."""
        calib = self.projection.calib
        if calib is None:
            return to_field, torch.zeros_like(meaning.omega), torch.zeros_like(meaning.log_gain)
        angle, log_gain = calib.bounded(meaning.omega, meaning.log_gain)
        rotation = so3.exp(angle)
        to_turned = log_gain.exp()[..., None] * to_field
        to_omega = so3.exp_gradient(angle, rotation, raw.mT @ to_turned)
        to_log_gain = (to_field * field).sum(-1)
        return (
            to_turned @ rotation.mT,
            to_omega * (1 - (angle / calib.max_angle).square()),
            to_log_gain * (1 - (log_gain / calib.max_log_gain).square()),
        )
