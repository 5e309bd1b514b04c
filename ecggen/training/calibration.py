"""What is set once training has ended: the scale of the standard deviation, the axes of the VCG.

The model learns how errors differ between samples on training data, where errors are too small. One factor
for each lead, by how many leads were given, makes 90 % of the validation errors lie within 1.645 standard
deviations (split conformal scaling: Lei et al., JASA 113, 2018, section 5.2).

A dipole and its lead field are known up to a 3 x 3 matrix only. Training keeps them near Kors' axes; axis
alignment then applies one matrix, the same for everybody, that is closest to them by least squares. No lead
changes by it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from ecggen.data.pipeline import ECGDataset
from ecggen.leads import KORS, OTHER_PRECORDIAL, observed_mask, parse_lead_set
from ecggen.models.blocks import GAUSSIAN_90
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import make_target, standardised_errors
from ecggen.models.slots import SLOTS
from ecggen.training.devices import even_parts
from ecggen.training.validation import MapParts
from ecggen.utils.display import Progress

#: Every number of given leads, and every independent lead hidden, at least twice.
SETS = (
    *("I", "II", "V2", "V5", "I+II", "V1+V5"),
    *("I+II+V1", "I+II+V2", "I+II+V3", "I+II+V5", "II+V2+V5"),
    *("I+II+V1+V4", "I+II+V2+V5", "I+II+V3+V6", "I+II+V1+V3+V5", "I+II+V2+V4+V6"),
    *("I+II+V1+V2+V4+V5", "I+II+V1+V3+V4+V6", "I+II+V2+V3+V5+V6"),
    *("+".join(("I", "II", *others)) for others in OTHER_PRECORDIAL.values()),
)
WINDOWS = 80  # at most, per lead set
ALIGNMENT_WINDOWS = 256  # training windows, at most, that align the axes
FEWEST = 200  # errors for a factor of a single lead; fewer: that of all leads with as many given


@torch.no_grad()
def calibrate(model: ECGGen, data: ECGDataset, map_parts: MapParts, batch_size: int) -> None:
    """Set `model.calibration` [given - 1, lead] from validation windows. Leaves the model in eval mode."""
    model.eval()
    device = model.calibration.device
    model.calibration.fill_(1.0)

    def errors(part: tuple[Tensor, range]) -> list[tuple[int, int, Tensor]]:
        """(leads given, lead, errors over the raw standard deviation) of windows seen through a lead set."""
        mask, windows = part
        progress.add()
        ecg, recorded = (x.to(device) for x in data.windows(windows))
        keep = (recorded & mask == mask).all(1)
        ecg, recorded = ecg[keep], recorded[keep]
        if not len(ecg):
            return []
        observed = mask.expand(len(ecg), -1)
        out = model(ecg, observed)
        target = make_target(model, ecg, recorded, observed, 0.0)
        ratios, hidden = standardised_errors(out, target).cpu(), target.hidden.cpu()
        return [(int(mask.sum()), lead, ratios[hidden[:, lead], lead].flatten()) for lead in range(SLOTS)]

    def parts() -> Iterator[tuple[Tensor, range]]:
        step = -(-len(data) // WINDOWS)
        for index, name in enumerate(SETS):
            mask = torch.from_numpy(observed_mask(parse_lead_set(name))).to(device)
            chosen = range(index % step, len(data), step)[:WINDOWS]
            for windows in even_parts(chosen, 2 * batch_size):
                yield mask, windows

    groups: dict[tuple[int, int], list[Tensor]] = defaultdict(lambda: [torch.empty(0)])
    places = [*parts()]
    progress = Progress("calibration", len(places))
    measured = map_parts(errors, places)
    progress.close()
    for given, lead, values in (group for part in measured for group in part):
        groups[given, lead].append(values)
    for given in range(1, SLOTS):
        of_leads = [torch.cat(groups[given, lead]) for lead in range(SLOTS)]
        together = torch.cat(of_leads)
        for lead, single in enumerate(of_leads if len(together) else ()):
            model.calibration[given - 1, lead] = _factor(single if len(single) >= FEWEST else together)


@torch.no_grad()
def align_axes(model: ECGGen, data: ECGDataset, map_parts: MapParts, batch_size: int) -> None:
    """Set `model.gauge` [3, 3]: least squares of Kors' VCG (1990) on the model's own, over windows with all
    leads, each over its RMS. The identity where they see too few directions. Leaves the model in eval mode.
    """
    model.eval()
    matrix = model.gauge
    matrix.copy_(torch.eye(3))
    kors = torch.tensor(KORS, dtype=torch.float64)  # sums in double precision, which not every device has

    def moments(windows: range) -> Tensor:
        """[2, 3, 3]: Kors' VCG by the model's, the model's by itself."""
        ecg, recorded = (x.to(matrix.device) for x in data.windows(windows))
        ecg, recorded = ecg[recorded.all(1)], recorded[recorded.all(1)]
        if not len(ecg):
            return torch.zeros(2, 3, 3, dtype=torch.float64)
        out, eight = model(ecg, recorded), model.slots(ecg, recorded).values
        vcg, leads = ((x / out.scale).cpu().double() for x in (out.vcg, eight))
        return torch.stack([(other @ vcg.transpose(1, 2)).sum(0) for other in (kors @ leads, vcg)])

    step = max(1, len(data) // ALIGNMENT_WINDOWS)
    parts = even_parts(range(0, len(data), step), 2 * batch_size)
    cross, square = torch.stack(list(map_parts(moments, parts))).sum(0)
    if _well_conditioned(square, 1e5):
        solution = torch.linalg.solve(square, cross.T).T
        if _well_conditioned(solution, 1e2):
            matrix.copy_(solution)


def _well_conditioned(matrix: Tensor, worst: float) -> bool:
    return bool(torch.isfinite(matrix).all()) and float(torch.linalg.cond(matrix)) < worst


def _factor(errors: Tensor) -> float:
    ordered = errors.float().sort().values
    at = min(len(ordered) - 1, math.ceil(0.9 * (len(ordered) + 1)) - 1)
    return max(1e-3, float(ordered[at]) / GAUSSIAN_90)
