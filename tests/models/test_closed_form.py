"""The closed form against the textbook formula, and as the limit of the inner loop."""

import numpy as np
import torch

from ecggen.leads import DOWER
from ecggen.models.closed_form import ClosedFormLift, LeadCompletion
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


def _mixed(seed: int, mask: torch.Tensor) -> tuple[LeadCompletion, Observation, torch.Tensor]:
    """A completion and recordings [3, 8, 4000] whose covariance is not the population's."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(3, 8, 8)) * np.array([1, 1, 0.7, 0.3, 0.1, 0.1, 0.1, 0.1])
    eight = torch.tensor(mixing @ rng.normal(size=(3, 8, 4000)), dtype=torch.float32)
    eight = eight / eight.square().mean((1, 2), keepdim=True).sqrt()
    completion = LeadCompletion()
    with torch.no_grad():
        completion.log_noise.fill_(-12)
        completion.shrink.fill_(-12)
    return completion, Observation(eight * mask[..., None], mask, torch.eye(8).expand(3, 8, 8)), eight


def test_a_full_reference_gives_its_own_regression() -> None:
    full = torch.ones(3, 8, dtype=torch.bool)
    completion, reference, eight = _mixed(0, full)
    deviation = completion.estimate(reference)
    second = (eight @ eight.transpose(1, 2) / 4000).numpy()
    moments = completion.moments(deviation).detach().numpy()
    np.testing.assert_allclose(moments, second, atol=3e-3)  # 1e-3 keeps the root regular
    given = full.clone()
    given[:, [2, 4, 5]] = False
    seen = Observation(eight * given[..., None], given, reference.rows)
    rendered = completion(seen, deviation).detach().numpy()
    for b in range(3):
        m = given[b].numpy()
        ridge = moments[b][np.ix_(m, m)] + np.exp(-12) * np.eye(m.sum())
        weights = np.linalg.solve(ridge, moments[b][np.ix_(m, ~m)]).T
        np.testing.assert_allclose(rendered[b][~m], weights @ eight[b].numpy()[m], atol=5e-3)


def test_a_partial_reference_changes_nothing_for_the_same_leads() -> None:
    """Moments completed from y by the population predict from y as the population does."""
    given = torch.zeros(3, 8, dtype=torch.bool)
    given[:, [0, 1, 3]] = True
    completion, seen, _ = _mixed(1, given)
    own = completion(seen, completion.estimate(seen))
    population = completion(seen, torch.zeros(3, 36))
    hidden = ~given[0]
    error = (own - population)[:, hidden].square().mean() / population[:, hidden].square().mean()
    assert error < 1e-3


def test_completion_does_not_depend_on_scale() -> None:
    given = torch.zeros(3, 8, dtype=torch.bool)
    given[:, [1, 4]] = True
    completion, seen, _ = _mixed(2, given)
    larger = Observation(seen.values * 7, seen.mask, seen.rows)
    torch.testing.assert_close(completion.estimate(larger), completion.estimate(seen), atol=2e-3, rtol=1e-3)
