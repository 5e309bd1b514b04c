"""The views of the inner loss, each once."""

import pytest
import torch

from ecggen.models.slots import Observation
from ecggen.models.views import Views, evaluation_views

FILLED = [1, 2, 3, 4, 5, 8]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_distinct_views_have_the_same_mean(count: int) -> None:
    mask = torch.arange(8) < torch.tensor(FILLED)[:, None]
    views = evaluation_views(mask, count)
    every, distinct = Views.every(views), Views.distinct(views)
    if count >= 4:  # a single lead has one view, two leads have two, three three
        assert [int((distinct.whose == i).sum()) for i in range(3)] == [1, 2, 3]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(FILLED), 8, 6, generator=generator)
    support = Observation(values, mask, torch.eye(8).expand(len(FILLED), -1, -1))
    states = torch.randn(len(FILLED), 6, generator=generator)
    means = []
    for rows in (every, distinct):
        values = rows.of(support).reduced(rows.keep).values
        each = (values.mean(1) * rows.spread(states)).cos() * rows.spread(mask.sum(1))[:, None]
        means.append(rows.mean(each))
    assert means[0].shape == (len(FILLED), 6)
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-5)


def test_evaluation_views_leave_out_but_never_everything() -> None:
    filled = torch.zeros(3, 8, dtype=torch.bool)
    filled[0, 0] = True
    filled[1, [0, 1, 3]] = True
    filled[2] = True
    views = evaluation_views(filled, 5)
    assert (views & ~filled).sum() == 0 and views.any(-1).all()
    assert views[:, 0].sum() == 5  # a single lead stays
    assert (views[:3, 1].sum(-1) == 2).all() and views[:3, 1].sum(0).tolist()[:4] == [2, 2, 0, 2]
    assert views[0, 2].nonzero().flatten().tolist() == [0] and views[4, 2].sum() == 7
