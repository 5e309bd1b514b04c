"""The physics, stated a second time: numbers from the papers as text, and identities."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen import leads
from ecggen.leads import DOWER, EXPAND, INVERSE_DOWER, KORS, LEADS, LeadError

DOWER_TEXT = """
I .632 -.235 .059 | II .235 1.066 -.132 | V1 -.515 .157 -.917 | V2 .044 .164 -1.387
V3 .882 .098 -1.277 | V4 1.213 .127 -.601 | V5 1.125 .127 -.086 | V6 .831 .076 .230
"""
INVERSE_TEXT = """
x .156 -.010 -.172 -.074 .122 .231 .239 .194
y -.227 .887 .057 -.019 -.106 -.022 .041 .048
z .022 .102 -.229 -.310 -.246 -.063 .055 .108
"""
KORS_TEXT = """
x .38 -.07 -.13 .05 -.01 .14 .06 .54
y -.07 .93 .06 -.02 -.05 .06 -.17 .13
z .11 -.23 -.43 -.06 -.14 -.20 -.11 .31
"""


def table(text: str) -> tuple[list[str], np.ndarray]:
    rows = [row.split() for row in text.replace("|", "\n").strip().splitlines()]
    return [row[0] for row in rows], np.array([[float(v) for v in row[1:]] for row in rows])


def test_published_numbers():
    names, dower = table(DOWER_TEXT)
    assert tuple(names) == leads.INDEPENDENT
    np.testing.assert_array_equal(DOWER, dower)
    np.testing.assert_array_equal(INVERSE_DOWER, table(INVERSE_TEXT)[1])
    np.testing.assert_array_equal(KORS, table(KORS_TEXT)[1])


def test_dower_and_its_inverse_belong_together():
    """Kors's matrix is a regression, not an inverse."""
    assert np.abs(np.linalg.pinv(DOWER) - INVERSE_DOWER).max() == pytest.approx(4.9e-4, abs=2e-5)
    assert np.linalg.cond(DOWER) == pytest.approx(2.37, abs=0.005)
    assert np.abs(INVERSE_DOWER @ DOWER - np.eye(3)).max() < 5e-3
    assert np.abs(KORS @ DOWER - np.eye(3)).max() > 0.1


def test_limb_leads_obey_einthoven_and_goldberger():
    ecg = EXPAND @ np.random.default_rng(0).normal(size=(8, 50))
    at = {name: ecg[i] for i, name in enumerate(LEADS)}
    np.testing.assert_allclose(at["III"], at["II"] - at["I"], atol=1e-15)
    np.testing.assert_allclose(at["aVR"], -(at["I"] + at["II"]) / 2, atol=1e-15)
    np.testing.assert_allclose(at["aVL"], at["I"] - at["II"] / 2, atol=1e-15)
    np.testing.assert_allclose(at["aVF"], at["II"] - at["I"] / 2, atol=1e-15)
    np.testing.assert_allclose(at["aVR"] + at["aVL"] + at["aVF"], 0, atol=1e-15)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (3, 4), (2, 5), (1, 3)])
def test_any_two_limb_leads_give_the_other_four(pair):
    ecg = EXPAND @ np.random.default_rng(1).normal(size=(8, 20))
    mask = np.isin(np.arange(12), pair)
    full, filled = leads.complete_limb_leads(np.where(mask[:, None], ecg, np.nan), mask)
    np.testing.assert_allclose(full[:6], ecg[:6], atol=1e-12)
    assert filled[:6].all() and not filled[6:].any()


def test_one_limb_lead_gives_nothing():
    assert not leads.derivable(leads.observed_mask(["I", "V2"])).any()


@pytest.mark.parametrize(
    ("names", "rank", "condition"),
    [
        ("I", 1, np.inf),
        ("I+II", 2, np.inf),
        ("I+II+III+aVR+aVL+aVF", 2, np.inf),
        ("I+II+V2", 3, 2.2),
        ("I+II+V5", 3, 22.0),
    ],
)
def test_what_leads_can_see(names, rank, condition):
    mask = leads.observed_mask(leads.parse_lead_set(names))
    assert leads.geometry_condition(mask) == (rank, pytest.approx(condition, rel=0.05))


SPELLINGS = {
    "I": "I|DI|D1|Lead I|ECG I|EKG I|ECGI|MDC_ECG_LEAD_I|I (mV)|I [uV]|I_mV|Ⅰ|Ｉ|Lead I (Einthoven)",  # noqa: RUF001
    "II": "\"II\"|'ii'|“II”|Ⅱ|DII|D2|ecg_lead_ii|ECG-II|EKG Lead: II|MDC_ECG_ELEC_POTL_II",
    "III": "DIII|d3|Ⅲ|lead iii|III (µV)",
    "aVR": "AVR|avr| aVR |a-VR|aV R|a_vr|lead aVR|ECG Lead AVR|MDC_ECG_LEAD_AVR|aVR (Goldberger)",
    "V1": "v1|C1|V 1|V_1|ECG V1|Lead V1 (Wilson)|MDC_ECG_LEAD_V1",
    "vx": "x|VX|Frank X|vcg_x|MDC_ECG_LEAD_X",
}


@pytest.mark.parametrize("lead", SPELLINGS)
def test_names_in_any_spelling(lead):
    names = SPELLINGS[lead].split("|")
    assert {name: leads.canonical_lead(name) for name in names} == dict.fromkeys(names, lead)


@pytest.mark.parametrize(
    "names",
    [
        "-aVR|ECG -aVR|Lead -aVR|ECG-aVR|aVR-|-I|ECG -I|aVR (inverted)|Inv aVR|I+II|V1-V2",  # another signal
        "MLII|RESP|V7|V3R|V10|VR|lead 1|1|ECG1|ECG||lead|mV|II V|LI",
    ],
)
def test_names_that_are_no_lead(names):
    assert {leads.canonical_lead(name) for name in names.split("|")} == {None}


def test_names_that_are_not_understood_are_told_from_known_channels():
    known = ["MLII", "V7", "RESP", "ABP", "PLETH II", "SpO2", "acc_x", "EEG C3-A2", "CO2 (mmHg)", "note 1"]
    channels, unknown = leads.lead_channels(["II", *known, "-aVR", "ch1", "ECG", "ch1", "lead i"])
    assert (channels, unknown) == ({"II": [0], "I": [15]}, ["-aVR", "ch1", "ECG"])


def test_c3_and_c4_alone_are_an_eeg():
    assert leads.lead_channels(["C3", "C4", "II"]) == ({"II": [2]}, ["C3", "C4"])
    chest = [f"C{i}" for i in range(1, 7)]
    assert leads.lead_channels(["I", *chest]) == ({"I": [0], **{f"V{i}": [i] for i in range(1, 7)}}, [])


@pytest.mark.parametrize(
    ("text", "words"), [("I+V9", "Unknown lead 'V9'.*V6"), ("I+i", "named twice"), ("", "at least one")]
)
def test_bad_lead_sets_are_refused_in_words(text, words):
    with pytest.raises(LeadError, match=words):
        leads.parse_lead_set(text)
