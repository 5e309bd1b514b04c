"""The closed form against the textbook formula, and as the limit of the inner loop."""

import numpy as np
import torch

from ecggen.leads import DOWER
from ecggen.models.closed_form import ClosedFormLift
from ecggen.models.slots import Observation
from ecggen.models.ttt import TTTUpdater


def _case(seed: int = 0) -> tuple[ClosedFormLift, Observation, torch.Tensor]:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    lift = ClosedFormLift()
    with torch.no_grad():
        for parameter in lift.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    mask = torch.tensor(rng.random((4, 8)) < 0.6)
    mask[0], mask[1] = True, False
    mask[1, 0] = True
    values = torch.tensor(rng.normal(size=(4, 8, 7)), dtype=torch.float32) * mask[..., None]
    rows = torch.eye(8).expand(4, 8, 8)
    return lift, Observation(values, mask, rows), torch.tensor(DOWER, dtype=torch.float32).expand(4, 8, 3)


def test_equals_the_covariance_form() -> None:
    lift, seen, field = _case()
    got = lift(seen, field)
    root, noise = lift.prior_root().detach().numpy(), lift.log_noise.exp().detach().numpy()
    for b in range(4):
        m = seen.mask[b].numpy()
        a, p = field[b].numpy()[m], root @ root.T
        gain = p @ a.T @ np.linalg.inv(a @ p @ a.T + np.diag(noise[m]))
        np.testing.assert_allclose(got[b].detach().numpy(), gain @ seen.values[b].numpy()[m], atol=2e-5)


def test_without_noise_it_inverts_dower() -> None:
    lift, _, field = _case()
    with torch.no_grad():
        lift.log_noise.fill_(-14)
    vcg = torch.randn(4, 3, 7)
    seen = Observation(field @ vcg, torch.ones(4, 8, dtype=torch.bool), torch.eye(8).expand(4, 8, 8))
    torch.testing.assert_close(lift(seen, field), vcg, atol=1e-3, rtol=1e-3)


def test_gradient_descent_on_the_dipole_converges_to_it() -> None:
    """The inner loop with v itself as the state: K to infinity is the closed form."""
    lift, seen, field = _case(3)
    with torch.no_grad():
        lift.log_noise.fill_(-1.0)
        lift.log_diagonal.zero_()
        lift.lower.zero_()
    noise = lift.log_noise.exp().detach()[:, None]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        error = (field @ flat.unflatten(1, (3, 7)) - seen.values) * seen.mask[..., None]
        return (error.square() / noise).sum((1, 2)) + flat.square().sum(1)

    target = lift(seen, field).detach().flatten(1)
    updater = TTTUpdater(21, steps=1, step_size=0.02, prior=0.0, clip=0.0).eval()
    with torch.no_grad():
        states = updater(torch.zeros(4, 21), loss, steps=800)
    error = (states - target).norm(dim=-1)
    assert (error[-1] < 1e-3 * error[0].clamp_min(0.1)).all()
    assert (error[:-1:50] >= error[50::50] - 1e-5).all()  # and gets nearer all the way
