"""What trainings of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ecggen.training import calibration


@pytest.fixture(scope="module")
def few_lead_sets() -> Iterator[None]:
    """Calibration on three lead sets: as good as all where no interval is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "SETS", calibration.SETS[:3])
        yield
