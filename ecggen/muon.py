"""Muon: momentum whose update of a weight matrix is orthogonalised, so that all its directions move alike.

Jordan et al., Muon (2024), with the scale of Liu et al., Muon is Scalable for LLM Training (arXiv 2025), by
which the learning rate is that of Adam. PyTorch's own takes plain matrices alone; most weights here are
convolutions, whose kernels are matrices [out, in * kernel].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# A quintic whose iteration takes singular values from (0, 1] to about 1 (Jordan et al.).
_A, _B, _C = 3.4445, -4.7750, 2.0315
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


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to [m, n], roughly: singular values between about .7 and 1.2."""
    x = matrix / matrix.norm().clamp_min(1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. Parameters [m, ...] count as [m, n]."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients; parameters without one stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                gradient, mean = parameter.grad, state["momentum"]
                mean.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(mean, group["momentum"]).flatten(1)
                size = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalised(update).view_as(parameter), alpha=-group["lr"] * size)
