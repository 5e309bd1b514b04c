"""L2 logistic regression, one-against-rest, in float64: Newton's method, or L-BFGS for many features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ecggen.eval.metrics import auroc
from ecggen.eval.result import Array

#: Penalties tried, strongest first, of: mean log loss + l2 / 2 * |w|^2 (scikit-learn: l2 = 1 / (C n)).
GRID: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
#: Features up to which Newton's method is used: a small Hessian is cheaper than many steps without one.
NEWTON = 400


@dataclass(frozen=True)
class Logistic:
    """scores = x @ weight + bias; weight [F, C], bias [C]."""

    weight: Array
    bias: Array

    def scores(self, features: Array) -> Array:
        """[n, C] logits."""
        return features @ self.weight + self.bias


def fit_logistic(
    features: Array, labels: Array, l2: float, start: Logistic | None = None, iterations: int = 200
) -> Logistic:
    """features [n, F] standardised, labels [n, C] 0/1; the bias is not penalised.

    The problem is convex: `start` saves time and changes nothing else. iterations: of L-BFGS, at most.
    """
    x = torch.as_tensor(np.ascontiguousarray(features), dtype=torch.float64)
    y = torch.as_tensor(np.ascontiguousarray(labels), dtype=torch.float64)
    shape = (x.shape[1], y.shape[1])
    weight = (
        torch.zeros(shape, dtype=torch.float64) if start is None else torch.as_tensor(start.weight).clone()
    )
    rate = y.mean(0).clamp(1e-4, 1 - 1e-4)
    bias = (rate / (1 - rate)).log() if start is None else torch.as_tensor(start.bias).clone()
    solve = _newton if shape[0] <= NEWTON else functools.partial(_lbfgs, iterations=iterations)
    weight, bias = solve(x, y, l2, weight, bias)
    return Logistic(weight.numpy(), bias.numpy())


def _newton(
    x: torch.Tensor, y: torch.Tensor, l2: float, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Newton's method with halved steps, all classes in one batch (Boyd & Vandenberghe 2004, section 9.5)."""
    wide = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    theta = torch.cat([weight, bias[None]])
    penalty = torch.full_like(theta[:, :1], l2)
    penalty[-1] = 0.0

    def losses(at: torch.Tensor) -> torch.Tensor:
        logits = wide @ at
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(0)
        return each + 0.5 * (penalty * at.square()).sum(0)

    value = losses(theta)
    for _ in range(100):
        chance = torch.sigmoid(wide @ theta)
        gradient = wide.T @ (chance - y) / len(x) + penalty * theta
        if gradient.abs().max() < 1e-9:
            break
        spread = (chance * (1 - chance)).T[:, None] / len(x)  # [C, 1, n]
        # A class without a positive drives its bias to infinity: the floor keeps its Hessian invertible.
        hessian = (wide.T * spread) @ wide + torch.diag(penalty[:, 0].clamp_min(1e-9))
        # NumPy's solver: torch's batched one, with several threads, fails in some builds of MKL.
        found = np.linalg.solve(hessian.numpy(), gradient.T[..., None].numpy())
        step = torch.from_numpy(found[..., 0].T.copy())
        fall = (gradient * step).sum(0)
        size = torch.ones_like(value)
        for _ in range(40):
            made = losses(theta - size * step)
            worse = made > value - 1e-4 * size * fall + 1e-15
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        better = made < value
        if not better.any():
            break
        theta, value = torch.where(better, theta - size * step, theta), torch.where(better, made, value)
    return theta[:-1].contiguous(), theta[-1].clone()


def _lbfgs(
    x: torch.Tensor, y: torch.Tensor, l2: float, weight: torch.Tensor, bias: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        logits = x @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(0).sum()
        loss = loss + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()


@dataclass(frozen=True)
class Probe:
    """A standardiser and a logistic regression per class, each class with its own penalty."""

    mean: Array
    sd: Array
    logistic: Logistic
    l2: Array  # [C]

    def scores(self, features: Array) -> Array:
        """[n, C] logits of raw features [n, F]."""
        return self.logistic.scores(np.clip((features - self.mean) / self.sd, -10, 10))


def fit_probe(
    train: tuple[Array, Array], validation: tuple[Array, Array], grid: Sequence[float] = GRID
) -> Probe:
    """(features, labels) of both splits. The penalty of each class has the best validation AUROC.

    With fewer records than features the weights lie in the span of the records (the penalty does not see a
    rotation): the regression is solved there, and turned back.
    """
    features, labels = train[0].astype(np.float64), train[1]
    mean, sd = features.mean(axis=0), features.std(axis=0)
    sd = np.where(sd > 1e-9, sd, 1.0)
    x, held = (np.clip((z - mean) / sd, -10, 10) for z in (features, validation[0].astype(np.float64)))
    turn = None
    if len(x) < min(x.shape[1], NEWTON):
        turn = np.linalg.svd(x, full_matrices=False)[2].T
        x, held = x @ turn, held @ turn
    classes = labels.shape[1]
    best = np.full(classes, -np.inf)
    weight, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    chosen = np.full(classes, float(max(grid)))
    fitted = None
    for l2 in sorted(grid, reverse=True):
        fitted = fit_logistic(x, labels, l2, start=fitted)
        areas = [auroc(validation[1][:, c] > 0, s)[0] for c, s in enumerate(fitted.scores(held).T)]
        # A class that validation lacks keeps the strongest penalty.
        better = np.where(np.isfinite(areas), areas, -1.0) > best
        best = np.where(better, np.where(np.isfinite(areas), areas, -1.0), best)
        weight[:, better], bias[better] = fitted.weight[:, better], fitted.bias[better]
        chosen[better] = l2
    return Probe(mean, sd, Logistic(weight if turn is None else turn @ weight, bias), chosen)
