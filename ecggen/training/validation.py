"""Scores of the validation windows while training: what chooses the best epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ecggen.data.pipeline import ECGDataset
from ecggen.leads import observed_mask, parse_lead_set
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import make_target, mean_hidden_r, training_loss
from ecggen.training.devices import autocast
from ecggen.training.parallel import SideBySide, even_parts
from ecggen.utils.config import TrainConfig

VALIDATION_SETS = ("I", "I+II", "I+II+V2", "I+II+V1+V4", "I+II+V1+V2+V4+V5+V6")
VALIDATION_WINDOWS = 512


@torch.no_grad()
def validation_scores(
    model: ECGGen, data: ECGDataset, rules: TrainConfig, precision: torch.dtype | None, parallel: SideBySide
) -> dict[str, float]:
    """Mean r over hidden leads and the loss, from observed leads alone and with a personal reference.

    Each window is seen through one of the VALIDATION_SETS. Leaves the model in eval mode.
    """
    model.eval()
    masks = torch.from_numpy(np.stack([observed_mask(parse_lead_set(s)) for s in VALIDATION_SETS]))

    def scores(windows: range) -> dict[str, Tensor]:
        """Per window, on the CPU."""
        batch = data.__getitems__(windows)
        chosen = masks[batch["row"] % len(masks)] & batch["observed"]
        chosen = torch.where(chosen.any(-1, keepdim=True), chosen, batch["observed"])
        device = model.calibration.device
        keys = ("ecg", "observed", "support", "support_observed", "has_support")
        ecg, recorded, support, support_observed, has_support = (batch[key].to(device) for key in keys)
        observed = chosen.to(device)
        target = make_target(model, ecg, recorded, observed, rules.observed_weight)
        with autocast(device, precision):
            own = model(ecg, observed)
            loss = training_loss(model, own, target, rules)[0].repeat(len(ecg))
            held = model(ecg, observed, reference=support, reference_observed=support_observed)
        found = {
            "val_loss": loss.float(),
            "val_r": mean_hidden_r(target, own.leads).float(),
            "val_r_personal": mean_hidden_r(target, held.leads).float()[has_support],
        }
        return {name: value.cpu() for name, value in found.items()}

    # Numbers of windows, not windows: what is mapped side by side is listed first. Two batches of training at
    # once, in less memory than one with gradients takes.
    parts = parallel.map(scores, even_parts(range(len(data)), 2 * rules.batch_size, rules.shards))
    means = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: float(value.mean()) if len(value) else float("nan") for name, value in means.items()}
