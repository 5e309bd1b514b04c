"""The heart's beat: what W is estimated on.

The beat of a person hardly changes in a recording, so W is looked for in the median beat of the support:
a fifth of the samples of a window of five seconds, and less noise. A network without state reads the beat
of the given leads once; W then decides how its features become a dipole and how the leads see it. The
inner loop of `ttt` takes its gradient steps on this rendering, and the beat it ends with completes the
leads that the support lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ecggen.models.blocks import ConvStem, LocalDecoder, small_start
from ecggen.models.layout import Conv1d, in_pieces, lengthened
from ecggen.models.slots import SLOTS, Observation
from ecggen.models.ttt import Modulation
from ecggen.models.vcg import LocalDipole

#: What is known beside the waves: filled slots, what slot 0 measures, the heart rate.
KNOWN = SLOTS + 2 + 1


class Look(NamedTuple):
    """A beat to be read. seen: slots [B, 8, P] over their RMS, which is scale [B, 1, 1]; linear [B, 8, P]:
    its leads by the population's filter, likewise; rate [B], beats a second."""

    seen: Observation
    scale: Tensor
    linear: Tensor
    rate: Tensor


@dataclass
class BeatView:
    """One look at a beat, read by the network once. B samples, P samples of a beat, C channels.

    seen: slots of the beat over their RMS, which is scale [B, 1, 1]; linear [B, 8, P]: its leads by the
    population's filter; features [B, C, P]; offset [B, 8, P]: what the network adds to the dipole's leads;
    share [B, 8]: of what `linear` holds beyond the lifted dipole.
    """

    seen: Observation
    scale: Tensor
    linear: Tensor
    features: Tensor
    offset: Tensor
    share: Tensor

    def repeated(self, count: int) -> BeatView:
        """The same `count` times, one block after the other."""
        if count == 1:
            return self
        rest = (self.scale, self.linear, self.features, self.offset, self.share)
        return BeatView(self.seen.repeated(count), *(x.repeat(count, *[1] * (x.ndim - 1)) for x in rest))

    def split(self, sizes: list[int]) -> list[BeatView]:
        """Parts of the batch, of these sizes."""
        rest = (self.scale, self.linear, self.features, self.offset, self.share)
        parts = (self.seen.split(sizes), *(x.split(sizes) for x in rest))
        return [BeatView(*each) for each in zip(*parts, strict=True)]


class BeatNet(nn.Module):
    """Reads a beat (`forward`) and renders it with a state (`dipole`, `leads`).

    channels: one number per halving of the beat; inside: channels of the features that a state modulates.
    """

    def __init__(self, channels: list[int], inside: int, residual: bool) -> None:
        super().__init__()
        self.multiple = 1 << (len(channels) - 1)
        self.stem = ConvStem(2 * SLOTS, channels, KNOWN)
        self.decoder = LocalDecoder(channels, KNOWN)
        self.narrow = Conv1d(channels[0], inside, 1)
        self.detail = LocalDipole(inside)
        self.offset = Conv1d(channels[0], SLOTS, 1) if residual else None
        self.gate = nn.Linear(KNOWN, SLOTS) if residual else None
        for layer in (self.offset, self.gate):
            if layer is not None:
                small_start(layer, 1e-3)

    def forward(self, seen: Observation, scale: Tensor, linear: Tensor, rate: Tensor) -> BeatView:
        """The arguments are the fields of a Look."""
        filled = seen.mask.to(seen.values.dtype)
        known = torch.cat([filled, seen.rows[:, 0, :2], rate[:, None]], 1)
        waves = torch.cat([seen.values, linear], 1)
        features, offset = in_pieces(self._read, self.stem.width * waves.shape[2], waves, known)
        share = torch.zeros_like(filled) if self.gate is None else torch.sigmoid(self.gate(known))
        return BeatView(seen, scale, linear, features.float(), offset.float(), share.float())

    def _read(self, waves: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, inside, P] and what the network adds to the dipole's leads [B, 8, P]."""
        length = waves.shape[-1]
        x = lengthened(waves, -length % self.multiple)
        maps = self.stem.maps(x, known)
        (features,) = self.decoder.features(maps[-1], known, *maps)
        features = features[..., :length]
        offset = torch.zeros_like(waves[:, :SLOTS]) if self.offset is None else self.offset(features)
        return self.narrow(features), offset

    def views(self, looks: list[Look]) -> list[BeatView]:
        """Several batches of beats, read in one pass."""
        seen, scale, linear, rate = zip(*looks, strict=True)
        one = self(Observation.joined(list(seen)), torch.cat(scale), torch.cat(linear), torch.cat(rate))
        return one.split([len(each) for each in rate])

    def dipole(self, view: BeatView, lifted: Tensor, field: Tensor, modulation: Modulation) -> Tensor:
        """Leads [B, 8, P] of the dipole alone, in the unit of the support: closed-form lift [B, 3, P] and
        what a state reads in the features, through its lead field [B, 8, 3]."""
        with torch.autocast(field.device.type, enabled=False):
            return field @ (lifted + self.detail(view.features, modulation)) * view.scale

    def leads(self, view: BeatView, lifted: Tensor, field: Tensor, modulation: Modulation) -> Tensor:
        """Leads [B, 8, P], dipole and the rest."""
        with torch.autocast(field.device.type, enabled=False):
            rest = view.offset + view.share[..., None] * (view.linear - field @ lifted)
            return self.dipole(view, lifted, field, modulation) + rest * view.scale
