"""Muon: momentum whose update of a weight matrix is orthogonalised, so that all its directions move alike.

Jordan et al., Muon (2024), with the scale of Liu et al., Muon is Scalable for LLM Training (arXiv 2025), by
which the learning rate is that of Adam. PyTorch's own takes plain matrices alone; most weights here are
convolutions, whose kernels are matrices [out, in * kernel].
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecggen.training.devices import SideBySide
from ecggen.utils.config import TrainConfig

# A quintic whose iteration takes singular values from (0, 1] to about 1 (Jordan et al.).
_A, _B, _C = 3.4445, -4.7750, 2.0315
#: Maps of the state, the basis and the readouts belong to AdamW, whatever their shape.
NOT_HIDDEN = ("guess", "fast", "spread", "generator.basis", "projection")
_SMALLEST = 16  # a side shorter than this is a readout, not a hidden matrix


def hidden_matrices(model: nn.Module, without: tuple[str, ...]) -> list[nn.Parameter]:
    """Weights that Muon takes: matrices and kernels whose sides are long; names beginning with `without`
    are left out."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and min(parameter.flatten(1).shape) >= _SMALLEST
        and not name.startswith(without)
    ]


def make_optimisers(
    model: nn.Module, options: TrainConfig, parallel: SideBySide
) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, where asked for; AdamW for the rest, biases and scales without decay."""
    hidden = hidden_matrices(model, NOT_HIDDEN) if options.optimiser == "muon" else []
    apart = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1 and id(p) not in apart]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay, fused=True
    )
    if not hidden:
        return [adam]
    return [adam, Muon(hidden, options.lr, weight_decay=options.weight_decay, parallel=parallel)]


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to [m, n], roughly: singular values between about .7 and 1.2.

    Every step multiplies by a polynomial of the Gram matrix; all these commute, so for long matrices they are
    multiplied among themselves first, on the short side.
    """
    x = matrix / matrix.norm().clamp_min(1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    gram = x @ x.T
    factor: Tensor | None = None
    for step in range(steps):
        square = gram @ gram
        once = _B * gram + _C * square
        once.diagonal().add_(_A)
        factor = once if factor is None else once @ factor
        if step + 1 < steps:
            gram = once @ (once @ gram)
    x = x if factor is None else factor @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. Parameters [m, ...] count as [m, n]."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parallel: SideBySide | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.parallel = parallel or SideBySide(torch.device("cpu"), 1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients; parameters without one stay."""
        for group in self.param_groups:
            # The largest first, so that no thread is left with one at the end.
            largest_first = sorted(group["params"], key=torch.Tensor.numel, reverse=True)
            self.parallel.map(partial(self._move, group), [p for p in largest_first if p.grad is not None])

    def _move(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, mean = parameter.grad, state["momentum"]
        assert gradient is not None
        mean.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"]).flatten(1)
        size = 0.2 * max(update.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalised(update).view_as(parameter), alpha=-group["lr"] * size)
