"""Moving averages, maxima and differences of rows x [R, T], along T.

Sums, maxima and products of shifted copies: several times faster on a CPU than pooling, and the same to the
last bit whatever else is in the batch (the order of a reduction may depend on the shape).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def extend(x: Tensor, before: int, after: int) -> Tensor:
    """x with its first and last value repeated."""
    return torch.cat([x[:, :1].expand(-1, before), x, x[:, -1:].expand(-1, after)], dim=1)


def _sliding_sum(x: Tensor, width: int) -> Tensor:
    """Sum over x[t] ... x[t + width - 1], [R, T - width + 1], put together from sums over powers of two."""
    n, have, total = x.shape[1] - width + 1, 1, None
    while True:
        if width & have:
            part = x[:, width % have : width % have + n]
            total = part if total is None else total + part
        if 2 * have > width:
            assert total is not None
            return total
        x = x[:, :-have] + x[:, have:]
        have *= 2


def moving_average(x: Tensor, width: float, *, silent_outside: bool = False) -> Tensor:
    """Centred moving average; width in samples, at least 1, any fraction: the outer two count in part.

    Outside lie the first and the last value repeated, or zeros (silent_outside).
    """
    width = max(width, 1.0)
    half = int((width - 1) // 2)
    part = (width - 1) / 2 - half
    n = x.shape[1]
    reach = (half + 1, half + 1)
    x = functional.pad(x, reach) if silent_outside else extend(x, *reach)
    total = _sliding_sum(x[:, 1:-1], 2 * half + 1)
    if part > 0:
        total = total + part * (x[:, :n] + x[:, 2 * half + 2 :])
    return total / width


def _mirror(x: Tensor, reach: int) -> Tensor:
    """x with reach values on both sides, mirrored about its ends."""
    last = x.shape[1] - 1
    at = torch.arange(-reach, last + reach + 1, device=x.device).abs()
    return x.index_select(1, (last - (last - at).abs()).clamp(min=0))


def curvature(x: Tensor, step: float, *, mirrored: bool = False) -> Tensor:
    """x minus the mean of its values step samples before and after (any fraction, by interpolation).

    Outside lie the first and the last value repeated, which halves a peak there, or a mirror image.
    """
    n, reach, part = x.shape[1], int(step) + 1, step % 1
    wide = _mirror(x, reach) if mirrored else extend(x, reach, reach)
    both = (1 - part) * (wide[:, 1 : n + 1] + wide[:, 2 * reach - 1 : 2 * reach - 1 + n])
    if part > 0:
        both += part * (wide[:, :n] + wide[:, 2 * reach :])
    return x - 0.5 * both


def _sliding_max(x: Tensor, width: int) -> Tensor:
    """Maximum over x[t] ... x[t + width - 1], [R, T - width + 1]; the window doubles."""
    have = 1
    while have < width:
        step = min(have, width - have)
        x = torch.maximum(x[:, :-step], x[:, step:])
        have += step
    return x


def moving_max(x: Tensor, half: int) -> Tensor:
    return _sliding_max(functional.pad(x, (half, half), value=-torch.inf), 2 * half + 1)


def moving_sum(x: Tensor, half: int) -> Tensor:
    """Sum over +-half values, zeros outside; for windows of many values."""
    total = functional.pad(x, (half + 1, half)).cumsum(dim=1)
    return total[:, 2 * half + 1 :] - total[:, : x.shape[1]]


def local_maxima(score: Tensor, half: int) -> Tensor:
    """Where the score is the largest within +-half samples, of equal ones the first: [R, T] bool."""
    n = score.shape[1]
    side = _sliding_max(functional.pad(score, (half, half), value=-torch.inf), half)
    return (score > side[:, :n]) & (score >= side[:, half + 1 :])


def split_blocks(x: Tensor, size: int) -> Tensor:
    """[R, ceil(T / size), size]; the last value fills the last block."""
    count = -(-x.shape[1] // size)
    return extend(x, 0, count * size - x.shape[1]).unflatten(1, (count, size))


def repeat_blocks(coarse: Tensor, size: int, n: int) -> Tensor:
    """A value per block to a value per sample, [R, n]."""
    return coarse[:, :, None].expand(-1, -1, size).flatten(1)[:, :n]


def decimate(x: Tensor, factor: int) -> Tensor:
    """Averages of factor samples each."""
    if factor == 1:
        return x
    parts = split_blocks(x, factor)
    total = parts[:, :, 0].clone()
    for i in range(1, factor):
        total += parts[:, :, i]
    return total / factor
