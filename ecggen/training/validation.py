"""Scores of the validation windows while training: what chooses the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecggen.data.pipeline import ECGDataset
from ecggen.leads import observed_mask, parse_lead_set
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import make_target, mean_hidden_r, training_loss
from ecggen.training.devices import autocast, even_parts
from ecggen.utils.config import TrainConfig

#: As the built-in `map` of one argument, in any order of execution: `Ranks.map`, `SideBySide.map`.
MapParts = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

VALIDATION_SETS = ("I", "I+II", "I+II+V2", "I+II+V1+V4", "I+II+V1+V2+V4+V5+V6")
VALIDATION_WINDOWS = 512


@torch.no_grad()
def validation_scores(
    model: ECGGen, data: ECGDataset, options: TrainConfig, precision: torch.dtype | None, map_parts: MapParts
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
        target = make_target(model, ecg, recorded, observed, options.observed_weight)
        with autocast(device, precision):
            alone = model(ecg, observed)
            loss = training_loss(model, alone, target, options)[0].repeat(len(ecg))
            personal = model(ecg, observed, reference=support, reference_observed=support_observed)
        out = {
            "val_loss": loss.float(),
            "val_r": mean_hidden_r(target, alone.leads).float(),
            "val_r_personal": mean_hidden_r(target, personal.leads).float()[has_support],
        }
        return {name: value.cpu() for name, value in out.items()}

    # Numbers of windows, which are read where they are scored. Two training batches at once need less memory
    # than one with gradients.
    parts = list(map_parts(scores, even_parts(range(len(data)), 2 * options.batch_size, options.shards)))
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: float(x.mean()) if len(x) else float("nan") for name, x in values.items()}
