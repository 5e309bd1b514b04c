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
    """Views of B windows of some people, as the n rows of one batch.

    keep [n, 8] bool: slots that a row holds; window [n]: its recording; person [n]: whose it is; share [n]:
    its weight in the mean over that person's views. Where these are None every window stands there as often,
    one block after the other, and every row counts the same.
    """

    keep: Tensor
    people: int
    window: Tensor | None = None
    person: Tensor | None = None
    share: Tensor | None = None

    @staticmethod
    def every(views: Tensor, people: int) -> Views:
        """All of views [V, B, 8]: the first windows of all people, then the second ones, and so on."""
        return Views(views.flatten(0, 1), people)

    @staticmethod
    def distinct(views: Tensor, people: int) -> Views:
        """Those of views [V, B, 8] that differ, each counting as often as it occurs: the same mean of less.

        One lead has one view, two have two.
        """
        count, windows = views.shape[:2]
        code = (views * (1 << torch.arange(views.shape[2], device=views.device))).sum(-1)
        same = code[:, None] == code
        first = same.int().argmax(0) == torch.arange(count, device=views.device)[:, None]
        view, window = first.nonzero(as_tuple=True)
        share = same.sum(1)[view, window] * (people / (count * windows))
        return Views(views[view, window], people, window, window % people, share.to(torch.float32))

    def of(self, support: Observation) -> Observation:
        """The recording behind each row, from those of the windows."""
        if self.window is None:
            return support.repeated(len(self.keep) // len(support.mask))
        return support.chosen(self.window)

    def per_window(self, values: Tensor) -> Tensor:
        """A row for each view, from one of values [B] for each window."""
        return values.repeat(len(self.keep) // len(values)) if self.window is None else values[self.window]

    def spread(self, state: Tensor) -> Tensor:
        """A row for each view, from one for each person."""
        if self.person is None:
            return state.repeat(len(self.keep) // len(state), *[1] * (state.ndim - 1))
        return state[self.person]

    def mean(self, values: Tensor) -> Tensor:
        """[people, ...]: over the views of each, of values [n, ...]."""
        if self.share is None or self.person is None:
            return values.unflatten(0, (-1, self.people)).mean(0)
        weighted = values * self.share.view(-1, *[1] * (values.ndim - 1))
        return weighted.new_zeros(self.people, *values.shape[1:]).index_add(0, self.person, weighted)
