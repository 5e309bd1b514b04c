"""The words: how flags are written, what they concern, and which may be asked for."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.data.quality.flags import (
    FLAGS,
    SWAPS,
    Span,
    check_words,
    concerned,
    kinds,
    lasting,
    usable_share,
)
from ecggen.leads import LEADS, LIMB

ALL = np.ones(12, dtype=bool)


def test_words():
    assert Span("noise", "V3", 0, 1).word == "noise:V3"
    assert Span("swap", "RA-LA", 0, 1).word == "swap:RA-LA"
    assert Span("gap", "V3", 0, 1).word == "gap" and Span("algebra", "", 0, 1).word == "algebra"
    assert kinds(["noise:V3", "noise:V4", "gap", ""]) == {"noise", "gap"}


@pytest.mark.parametrize(
    ("word", "leads"),
    [
        ("noise:V3", {"V3"}),
        ("polarity:aVR", {"aVR"}),
        ("swap:RA-LA", set(LIMB)),
        ("swap:RA-RL+LA-LL", set(LIMB)),
        ("swap:V1-V3", {"V1", "V3"}),
        ("algebra", set()),
        ("gap", set()),
    ],
)
def test_leads_that_a_flag_concerns(word, leads):
    assert concerned(word) == leads
    assert usable_share(ALL, [word]) == pytest.approx(1 - len(leads) / 12)


def test_share_counts_a_lead_once():
    observed = np.array([name != "V3" for name in LEADS])
    assert usable_share(observed, ["noise:V3", "noise:V4", "saturated:V4"]) == pytest.approx(10 / 12)
    assert usable_share(ALL, ["amplitude"]) == 0.0


def test_a_noisy_stretch_does_not_condemn_a_long_record():
    spans = [Span("noise", "I", 0, 60), Span("noise", "II", 0, 40), Span("noise", "II", 50, 80)]
    words = ["gap", "noise:I", "noise:II", "swap:RA-LA"]
    assert lasting(words, spans, 86_400) == ["gap", "swap:RA-LA"]
    assert lasting(words, spans, 125) == ["gap", "noise:II", "swap:RA-LA"]
    assert lasting(words, spans, 100) == words


def test_words_that_may_be_asked_for():
    good = [*FLAGS, "noise:V1", "flat:aVL", "polarity:II", *(f"swap:{name}" for name in SWAPS)]
    assert check_words(good) == ""
    assert check_words(["noise", "noisy"]).startswith("'noisy': use any of flat, saturated")
    assert "V1-V3" in check_words(["swap:V1-V6"])
    assert "I, II, III" in check_words(["noise:v1"])
    assert "nothing" in check_words(["algebra:I"])
