"""The linear probe: scikit-learn's L2 logistic regression, one class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecggen.eval.metrics import auroc
from ecggen.eval.result import Array
from ecggen.utils.display import track

#: Penalties tried, strongest first, of: mean log loss + l2 / 2 * |w|^2 (scikit-learn: C = 1 / (l2 n)).
GRID: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
#: Features up to which Newton's method is used: a small Hessian is cheaper than many steps of L-BFGS.
NEWTON = 400
CLIP = 10.0  # standard deviations


@dataclass(frozen=True)
class Probe:
    """A standardiser and a logistic regression per class, each class with its own penalty."""

    mean: Array  # [F]
    sd: Array  # [F]
    weight: Array  # [F, C]
    bias: Array  # [C]
    l2: Array  # [C]

    def scores(self, features: Array) -> Array:
        """[n, C] logits of raw features [n, F]."""
        return standardised(features, self.mean, self.sd) @ self.weight + self.bias


def standardised(features: Array, mean: Array, sd: Array) -> Array:
    """[n, F] float64 in standard deviations, at most CLIP."""
    return np.clip((features.astype(np.float64) - mean) / sd, -CLIP, CLIP)


def fit_probe(
    train: tuple[Array, Array], validation: tuple[Array, Array], grid: Sequence[float] = GRID
) -> Probe:
    """(features [n, F], labels [n, C] 0/1) of both splits. The penalty of each class has the best validation
    AUROC; a class that validation lacks keeps the strongest one, and one that training lacks scores 0.

    With fewer records than features the weights lie in the span of the records (the penalty does not see a
    rotation): the regression is solved there, and rotated back.
    """
    from sklearn.linear_model import LogisticRegression

    labels = train[1] > 0
    mean, sd = train[0].mean(axis=0, dtype=np.float64), train[0].std(axis=0, dtype=np.float64)
    sd = np.where(sd > 1e-9, sd, 1.0)
    x, held_out = (standardised(features, mean, sd) for features in (train[0], validation[0]))
    basis = np.linalg.svd(x, full_matrices=False)[2].T if len(x) < x.shape[1] else None
    if basis is not None:
        x, held_out = x @ basis, held_out @ basis
    solver = "newton-cholesky" if x.shape[1] <= NEWTON else "lbfgs"
    classes = labels.shape[1]
    weight, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    chosen = np.full(classes, float(max(grid)))
    fitted = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
    for c in track("probed classes", fitted, len(fitted)):
        model = LogisticRegression(solver=solver, tol=1e-6, max_iter=1000, warm_start=True)
        best = -np.inf
        for l2 in sorted(grid, reverse=True):
            model.set_params(C=1 / (l2 * len(x))).fit(x, labels[:, c])
            area = auroc(validation[1][:, c] > 0, model.decision_function(held_out))[0]
            area = area if np.isfinite(area) else -1.0
            if area > best:
                best, chosen[c] = area, l2
                weight[:, c], bias[c] = model.coef_[0], model.intercept_[0]
    return Probe(mean, sd, weight if basis is None else basis @ weight, bias, chosen)
