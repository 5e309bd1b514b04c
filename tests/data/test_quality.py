"""Flags: on signals with faults of a known kind, and how they are written."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.data.quality import flags
from ecggen.data.quality import spans as quality
from ecggen.data.quality.flags import Span
from ecggen.leads import EXPAND, LEADS, LIMB
from ecggen.utils.config import PreprocessConfig

CONFIG = PreprocessConfig()
ALL = np.ones(12, dtype=bool)
FS = 500.0


def heart(seconds: float = 10.0, fs: float = FS) -> np.ndarray:
    """[12, n] mV, limb algebra exact."""
    t = np.arange(int(seconds * fs)) / fs
    sources = np.stack([np.sin(2 * np.pi * (1.1 + 0.2 * k) * t + k) for k in range(8)])
    return EXPAND @ (sources + 0.01 * np.random.default_rng(0).normal(size=sources.shape))


def spans_of(ecg: np.ndarray, observed: np.ndarray = ALL, gaps: tuple[Span, ...] = ()) -> list[Span]:
    return quality.raw_spans(ecg, observed, FS, CONFIG, gaps)


def words(ecg: np.ndarray, observed: np.ndarray = ALL) -> list[str]:
    return flags.flag_words(spans_of(ecg, observed), observed)


def test_a_good_record_has_no_flag():
    assert words(heart()) == []
    assert words(heart() + np.arange(12)[:, None] * 3.0) == [], "offsets do not break the algebra"


def test_flat_lead_and_where():
    ecg = heart()
    ecg[7, 1500:3200] = 0.4
    (span,) = [s for s in spans_of(ecg) if s.flag == "flat"]
    assert span.lead == "V2" and span.word == "flat:V2"
    assert 3.0 <= span.start_s <= 3.5 and 5.9 <= span.stop_s <= 6.4
    assert not flags.mostly_unusable([span], "V2", 10.0)
    assert flags.mostly_unusable([span], "V2", 5.0)
    assert not flags.mostly_unusable([span], "V3", 5.0)
    short = heart()
    short[7, 1500:2400] = 0.4  # 1.8 s
    assert words(short) == []


@pytest.mark.parametrize("n", [1, 3, 7, 40, 999])
def test_flat_at_any_length(n):
    spans = spans_of(np.zeros((12, n)))
    assert [(s.word, s.start_s, s.stop_s) for s in spans] == [(f"flat:{lead}", 0, n / FS) for lead in LEADS]
    assert not flags.usable_leads(ALL, spans, n / FS).any()


def test_saturated_lead():
    ecg = heart()
    ecg[8] = np.clip(ecg[8], -0.7, 0.7)
    assert words(ecg) == ["saturated:V3"]
    ecg[8] = heart()[8]
    ecg[8, 100:130] = 5.0  # 0.6 % of the record: below the share, but no other lead explains it
    assert words(ecg) == ["noise:V3"]


def test_broken_algebra_and_where():
    ecg = heart()
    ecg[4, 2000:2003] += 2.5  # as in PTB-XL 00162 at 500 Hz: a few samples, gone after filtering
    (span,) = spans_of(ecg)
    assert span.word == "algebra" and span.start_s == pytest.approx(4.0) and span.stop_s < 4.1


def test_a_flat_limb_lead_is_flat_not_algebra():
    ecg = heart()
    ecg[2] = 0.0
    assert words(ecg) == ["flat:III"]
    ecg = heart()
    ecg[2, 1000:1500] = 0.0
    assert spans_of(ecg, gaps=(Span("gap", "III", 2.0, 3.0),)) == []


def test_amplitude():
    ecg = heart(fs=100)
    ecg[9, 500:520] = -25.0
    (span,) = quality.conditioned_spans(ecg, ALL, 100.0, CONFIG)
    assert (span.word, span.lead, span.start_s) == ("amplitude", "V4", 5.0)
    assert flags.usable_share(ALL, ["amplitude"]) == 0.0


def test_missing_leads_and_share():
    observed = np.array([name in ("I", "II", "V5") for name in LEADS])
    missing = flags.flag_words([], observed)
    assert len(missing) == 9 and "missing:aVR" in missing
    assert flags.usable_share(observed, ["saturated:V5", *missing]) == pytest.approx(2 / 12)
    # A lead counts once.
    doubtful = ["noise:V3", "noise:V4", "saturated:V4"]
    assert flags.usable_share(np.arange(12) != 8, doubtful) == pytest.approx(10 / 12)


def test_words():
    assert Span("noise", "V3", 0, 1).word == "noise:V3"
    assert Span("swap", "RA-LA", 0, 1).word == "swap:RA-LA"
    assert Span("gap", "V3", 0, 1).word == "gap" and Span("algebra", "", 0, 1).word == "algebra"
    assert flags.kinds(["noise:V3", "noise:V4", "gap", ""]) == {"noise", "gap"}


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
    assert flags.concerned(word) == leads
    assert flags.usable_share(ALL, [word]) == pytest.approx(1 - len(leads) / 12)


def test_a_noisy_stretch_does_not_condemn_a_long_record():
    spans = [Span("noise", "I", 0, 60), Span("noise", "II", 0, 40), Span("noise", "II", 50, 80)]
    words = ["gap", "noise:I", "noise:II", "swap:RA-LA"]
    assert flags.lasting(words, spans, 86_400) == ["gap", "swap:RA-LA"]
    assert flags.lasting(words, spans, 125) == ["gap", "noise:II", "swap:RA-LA"]
    assert flags.lasting(words, spans, 100) == words


def test_words_that_may_be_asked_for():
    good = [*flags.FLAGS, "noise:V1", "flat:aVL", "polarity:II", *(f"swap:{name}" for name in flags.SWAPS)]
    assert flags.check_words(good) == ""
    assert flags.check_words(["noise", "noisy"]).startswith("'noisy': use any of flat, saturated")
    assert "V1-V3" in flags.check_words(["swap:V1-V6"])
    assert "I, II, III" in flags.check_words(["noise:v1"])
    assert "nothing" in flags.check_words(["algebra:I"])
