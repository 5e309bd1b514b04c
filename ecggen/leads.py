"""Lead names, their order, and the exact physics between leads and the dipole.

Everything is in mV. Leads are found by name, never by column. Frank axes: +x left, +y inferior,
+z posterior.

Sources: Dower et al., J Electrocardiol 13 (1980) 109; Edenbrandt & Pahlm, J Electrocardiol 21 (1988)
361 (inverse Dower); Kors et al., Eur Heart J 11 (1990) 1083; Goldberger, Am Heart J 23 (1942) 483.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.errors import EcggenError

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LIMB: tuple[str, ...] = LEADS[:6]
PRECORDIAL: tuple[str, ...] = LEADS[6:]
INDEPENDENT: tuple[str, ...] = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
#: Every precordial lead -> the five others.
OTHER_PRECORDIAL: dict[str, tuple[str, ...]] = {
    out: tuple(name for name in PRECORDIAL if name != out) for out in PRECORDIAL
}
FRANK: tuple[str, ...] = ("vx", "vy", "vz")
INDEPENDENT_INDEX: tuple[int, ...] = tuple(LEADS.index(name) for name in INDEPENDENT)

# The six limb leads as combinations of (I, II): Einthoven's triangle and Goldberger's augmented leads.
_LIMB_FROM_I_II = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]], dtype=np.float64)

#: [12, 8]: twelve leads from the eight independent ones.
EXPAND: NDArray[np.float64] = np.zeros((12, 8))
EXPAND[:6, :2] = _LIMB_FROM_I_II
EXPAND[6:, 2:] = np.eye(6)

#: [8, 3]: independent leads = DOWER @ (x, y, z).
DOWER: NDArray[np.float64] = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

#: [3, 8]: (x, y, z) = INVERSE_DOWER @ independent leads.
INVERSE_DOWER: NDArray[np.float64] = np.array(
    [
        [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
        [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
        [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
    ]
)

#: [3, 8]: (x, y, z) = KORS @ independent leads (a regression, not an inverse of DOWER).
KORS: NDArray[np.float64] = np.array(
    [
        [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
        [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
        [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
    ]
)


class LeadError(EcggenError):
    """A lead name or a set of leads that cannot be used."""


_AUGMENTED = re.compile(r"a[ ._-]?v[ ._-]?([rlf])")
_CHEST = re.compile(r"[vc][ ._]?([1-6])")
_PREFIX = re.compile(
    r"(?:mdc[ _]ecg[ _](?:lead|elec[ _]potl)|(?:ecg|ekg)?[ _:.-]*lead|ecg|ekg|vcg|frank)"
    r"(-| - |[ _:.]+)?(?=\S)"
)
_UNIT = re.compile(r"[ ,/_]*[(\[] *([munμ]?v) *[)\]]$|[ ,/_]+([munμ]v)$")
_AUTHOR = re.compile(r" *[(\[] *(?:einthoven|goldberger|wilson|frank) *[)\]]$")
_ALIASES = {name.lower(): name for name in (*LEADS, *FRANK)} | {"x": "vx", "y": "vy", "z": "vz"}
#: Derivation in Portuguese, Spanish, French and German.
_ALIASES |= {"d1": "I", "d2": "II", "d3": "III", "di": "I", "dii": "II", "diii": "III"}
#: Channels that recorders name besides the twelve leads: other ECG leads, and signals that are no ECG.
_OTHER = re.compile(
    r"ml(i|ii|iii)|m?cl[1-6]|cm[1-6]|cc5|v([7-9]|[1-9]r)|e-?s|a-?s|a-?i|e?nasa|"
    r"(resp|abp|art|pleth|plth|ppg|spo2|sao2|co2|etco2|cvp|pap|icp|n?i?bp|pa|eeg|emg|eog|pcg|scg|bcg|gsr|eda|"
    r"temp|flow|airflow|nasal|thor|chest|abdo|snore|acc|gyro|mag|hr|rr|pulse|marker|event|status|trigger|note|"
    r"battery|position|phono|sound|stim|annotation|time|index|sample)([ _.:/(\[-].*|[0-9xyz]*)"
)


def _plain(name: str) -> str:
    """Lower case, roman numeral and wide characters as letters, without quotes and blanks around."""
    text = unicodedata.normalize("NFKC", name).lower()
    return " ".join(text.strip(" \t\r\n\"'`\u2018\u2019\u201c\u201d").split())


def canonical_lead(name: str) -> str | None:
    """The standard spelling of a lead name, or None for a channel that is neither ECG lead nor Frank lead.

    Known are, in any case: the standard names, DI and D1 (also II, III), C1 to C6, roman numeral characters;
    with "ECG", "EKG", "Lead", "MDC_ECG_LEAD_" in front; with a unit in brackets or after a separator, or the
    name of Einthoven, Goldberger, Wilson or Frank in brackets behind; in quotes. An inverted lead (-aVR) is
    not that lead.
    """
    key = _AUTHOR.sub("", _UNIT.sub("", _plain(name)))
    prefix = _PREFIX.match(key)
    if prefix:
        key = key[prefix.end() :]
        if prefix[1] == "-" and key.startswith("a"):  # ECG-aVR: inverted, or a separator?
            return None
    if augmented := _AUGMENTED.fullmatch(key):
        return f"aV{augmented[1].upper()}"
    if chest := _CHEST.fullmatch(key):
        return f"V{chest[1]}"
    return _ALIASES.get(key)


def unit_in_name(name: str) -> str:
    """The unit that a channel is called by besides its lead, as in "I (mV)"; "" = none."""
    unit = _UNIT.search(_plain(name))
    return (unit[1] or unit[2]) if unit else ""


def lead_channels(names: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """(lead, standard or Frank -> its channels, names that are not understood) of the channels of one record.

    C1 to C6 are chest leads only where all six are there: C3 and C4 alone are electrodes of an EEG.
    """
    plain = {_plain(name) for name in names}
    eeg = not plain >= {f"c{i}" for i in range(1, 7)}
    channels: dict[str, list[int]] = {}
    unknown: list[str] = []
    for channel, name in enumerate(names):
        key, lead = _plain(name), canonical_lead(name)
        if eeg and re.fullmatch(r"c[1-6]", key):
            unknown.append(name)
        elif lead is not None:
            channels.setdefault(lead, []).append(channel)
        elif not _OTHER.fullmatch(key):
            unknown.append(name)
    return channels, list(dict.fromkeys(unknown))


def lead_indices(names: Iterable[str]) -> list[int]:
    """Positions in LEADS of the named leads.

    Raises LeadError for an unknown, repeated or missing name.
    """
    out: list[int] = []
    for name in names:
        lead = canonical_lead(str(name))
        if lead is None or lead not in LEADS:
            near = difflib.get_close_matches(str(name), LEADS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LeadError(f"Unknown lead {name!r}: use one of {', '.join(LEADS)}.{hint}")
        index = LEADS.index(lead)
        if index in out:
            raise LeadError(f"Lead {lead} is named twice: name each lead once.")
        out.append(index)
    if not out:
        raise LeadError(f"No lead was named: name at least one of {', '.join(LEADS)}.")
    return out


def observed_mask(names: Iterable[str]) -> NDArray[np.bool_]:
    """[12] bool, True = the lead is recorded."""
    mask = np.zeros(len(LEADS), dtype=bool)
    mask[lead_indices(names)] = True
    return mask


def parse_lead_set(text: str) -> tuple[str, ...]:
    """ "I+II+V2" as standard names. Raises LeadError as `lead_indices` does."""
    return tuple(LEADS[i] for i in lead_indices(part for part in text.split("+") if part.strip()))


def derivable(mask: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[12] bool, True = not observed, yet fixed by two observed limb leads through the limb-lead algebra."""
    observed = np.asarray(mask, dtype=bool)
    out = np.zeros(len(LEADS), dtype=bool)
    if int(observed[:6].sum()) >= 2:
        out[:6] = ~observed[:6]
    return out


def complete_limb_leads(
    ecg: NDArray[np.floating], mask: Sequence[bool] | NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Fill the limb leads that two or more observed limb leads determine.

    ecg [12, T] in mV, mask [12] True = observed. Returns (ecg [12, T], mask [12]) where derived leads are
    filled and marked; least squares over (I, II) when more than two limb leads are observed.
    """
    observed = np.asarray(mask, dtype=bool)
    fill = derivable(observed)
    if not fill.any():
        return ecg, observed
    seen = tuple(np.flatnonzero(observed[:6]).tolist())
    out = np.array(ecg, copy=True)
    out[fill] = _limb_from(seen)[fill[:6]] @ ecg[list(seen)]
    return out, observed | fill


@functools.cache
def _limb_from(seen: tuple[int, ...]) -> NDArray[np.float64]:
    """[6, n] all limb leads from those seen, of which two or more fix I and II."""
    limb: NDArray[np.float64] = _LIMB_FROM_I_II @ np.linalg.pinv(_LIMB_FROM_I_II[list(seen)])
    return limb


def geometry_condition(mask: Sequence[bool] | NDArray[np.bool_]) -> tuple[int, float]:
    """What the observed leads can see of the dipole: (rank, condition number of the Dower rows).

    mask [12]. The condition number is infinite where the rank is below three.
    """
    rows = (EXPAND @ DOWER)[np.asarray(mask, dtype=bool)]
    singular = np.linalg.svd(rows, compute_uv=False) if len(rows) else np.zeros(0)
    # Published coefficients have three decimals: limb leads agree with the algebra only to that.
    rank = int((singular > 5e-3).sum())
    condition = float(singular[0] / singular[2]) if rank == 3 else float("inf")
    return rank, condition
