"""The looks at a support recording that the inner loss averages over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecggen.models.slots import Observation


def evaluation_views(mask: Tensor, count: int) -> Tensor:
    """Which slots each view keeps, [V, B, 8] bool, from mask [B, 8]: fixed, a function of the sample alone.

    Up to four filled slots: each is left out in turn (a single one is kept). More: the first; the first two;
    the first two and the middle one; every second; then each left out in turn. Views shrink a rich recording
    to what later recordings of the same person may hold.
    """
    rank = mask.cumsum(-1) - 1
    filled = mask.sum(-1, keepdim=True)
    left_out = rank != torch.arange(count, device=mask.device)[:, None, None] % filled.clamp_min(1)
    first = [rank < 1, rank < 2, (rank < 2) | (rank == filled // 2), rank % 2 == 0][:count]
    rich = torch.cat([torch.stack(first), left_out[len(first) :]])
    return torch.where(filled > 4, rich, left_out | (filled <= 1)) & mask


@dataclass
class Views:
    """Views of B recordings, as the n rows of one batch.

    keep [n, 8] bool: slots that a row holds; whose [n]: its recording; share [n]: its weight in the mean over
    that recording's views. Where these are None every recording stands there as often, one block after the
    other, and every row counts the same.
    """

    keep: Tensor
    recordings: int
    whose: Tensor | None = None
    share: Tensor | None = None

    @staticmethod
    def every(views: Tensor) -> Views:
        """All of views [V, B, 8]."""
        return Views(views.flatten(0, 1), views.shape[1])

    @staticmethod
    def distinct(views: Tensor) -> Views:
        """Those of views [V, B, 8] that differ, each counting as often as it occurs: the same mean of less.

        One lead has one view, two have two.
        """
        count, recordings = views.shape[:2]
        code = (views * (1 << torch.arange(views.shape[2], device=views.device))).sum(-1)
        same = code[:, None] == code
        first = same.int().argmax(0) == torch.arange(count, device=views.device)[:, None]
        view, whose = first.nonzero(as_tuple=True)
        share = same.sum(1)[view, whose] / count
        return Views(views[view, whose], recordings, whose, share.to(torch.float32))

    def of(self, support: Observation) -> Observation:
        """The recording behind each row."""
        if self.whose is None:
            return support.repeated(len(self.keep) // self.recordings)
        return support.chosen(self.whose)

    def spread(self, values: Tensor) -> Tensor:
        """A row for each view, from one of values [B, ...] for each recording."""
        if self.whose is None:
            return values.repeat(len(self.keep) // self.recordings, *[1] * (values.ndim - 1))
        return values[self.whose]

    def mean(self, values: Tensor) -> Tensor:
        """[B, ...]: over the views of each recording, of values [n, ...]."""
        if self.share is None or self.whose is None:
            return values.unflatten(0, (-1, self.recordings)).mean(0)
        weighted = values * self.share.view(-1, *[1] * (values.ndim - 1))
        return weighted.new_zeros(self.recordings, *values.shape[1:]).index_add(0, self.whose, weighted)
