"""Layers on feature maps [B, C, T] that compute the same in two layouts in memory.

Ordinary maps have the samples of a channel side by side. On a CPU a convolution takes less time where the
channels of a sample are (`innermost`), and so maps are laid out where nothing is learned from them; norms and
the change of layout take some of it back (2 to 4 % of a batch's rendering remain, measured on an AMD EPYC).
Training keeps the ordinary layout, and with it every bit of its sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Numbers in a map up to which the next layer finds it in the cache.
_PIECE = 400_000


def innermost(x: Tensor) -> Tensor:
    """x [B, C, T], its channels side by side in memory where no gradient is taken on a CPU."""
    if _learning(x) or x.stride(1) == 1:
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]], row: int, *arguments: Tensor
) -> tuple[Tensor, ...]:
    """function(*arguments), a few rows of the batch at a time where no gradient is taken on a CPU.

    Arguments [B, ...], results [B, C, T]; row: numbers that a row takes in the largest map in between. What
    one layer hands to the next then stays in the cache.
    """
    rows = max(1, _PIECE // row)
    if _learning(arguments[0]) or len(arguments[0]) <= rows:
        return function(*arguments)
    pieces = zip(*(x.split(rows) for x in arguments), strict=True)
    results = zip(*(function(*piece) for piece in pieces), strict=True)
    return tuple(torch.cat([x.transpose(1, 2) for x in parts]).transpose(1, 2) for parts in results)


def _learning(x: Tensor) -> bool:
    return torch.is_grad_enabled() or x.device.type != "cpu"


def _is_innermost(x: Tensor) -> bool:
    # Training may meet this layout as well (beat tokens leave it behind), and treats it as any other.
    return x.stride(1) == 1 and x.shape[2] > 1 and not _learning(x)


class Conv1d(nn.Conv1d):
    """nn.Conv1d, stride 1, of either layout."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_innermost(x):
            return super().forward(x)
        # As an image of height 1: one-dimensional convolutions know one layout only.
        image = F.conv2d(x.unsqueeze(2), self._image_weight(), self.bias, padding=(0, int(self.padding[0])))
        return image.squeeze(2)

    def _image_weight(self) -> Tensor:
        """[out, in, 1, kernel], channels innermost."""
        return self.weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)


def lay_out(model: nn.Module) -> None:
    """Lay the weights of a model that learns no more out as innermost maps meet them, once for all calls.

    Their values stay, and so does what any caller computes with them.
    """
    for part in model.modules():
        if isinstance(part, Conv1d) and part.weight.device.type == "cpu":
            part.weight.data = part._image_weight().squeeze(2)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm of either layout."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_innermost(x):
            return super().forward(x)
        # Of bf16 in this layout torch's takes eight times as long as of float32.
        return super().forward(x.unsqueeze(2).float()).squeeze(2).to(x.dtype)


def added(y: Tensor, x: Tensor) -> Tensor:
    """x + y; where nothing is learned y is overwritten: fresh memory costs more than the sum."""
    return x + y if _learning(y) or x.dtype != y.dtype else y.add_(x)


def doubled(x: Tensor) -> Tensor:
    """[B, C, T] -> [B, C, 2 T], linear between samples."""
    if x.is_cuda:
        return _interleaved(x)
    if _is_innermost(x):
        return F.interpolate(x.unsqueeze(2), scale_factor=(1.0, 2.0), mode="bilinear").squeeze(2)
    return F.interpolate(x, scale_factor=2.0, mode="linear")


def _interleaved(x: Tensor) -> Tensor:
    """`doubled` in products and sums alone: on a GPU the gradient of interpolate has no fixed order."""
    before = torch.cat([x[..., :1], x[..., :-1]], -1)
    after = torch.cat([x[..., 1:], x[..., -1:]], -1)
    return torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], -1).flatten(-2)


def lengthened(x: Tensor, count: int) -> Tensor:
    """[B, C, T] -> [B, C, T + count], the last sample held."""
    if x.is_cuda:  # on a GPU the gradient of pad has no fixed order
        return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], count)], -1)
    return F.pad(x, (0, count), mode="replicate")


def halved(x: Tensor) -> Tensor:
    """[B, C, T] -> [B, C, T / 2], means of neighbours; avg_pool1d is several times slower on a CPU."""
    return (x[..., ::2] + x[..., 1::2]) / 2
