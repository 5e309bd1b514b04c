"""Which leads are given, which are scored, what the given ones can see, and a window for the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecggen.eval.result import Array, WindowFolder
from ecggen.leads import (
    INDEPENDENT_INDEX,
    LEADS,
    LIMB,
    OTHER_PRECORDIAL,
    derivable,
    geometry_condition,
    observed_mask,
    parse_lead_set,
)


@dataclass(frozen=True)
class LeadSet:
    """A named set of given leads."""

    name: str
    mask: Array  # [12] bool, True = given

    @property
    def hidden(self) -> Array:
        """[12] bool, every lead that is not given."""
        return ~self.mask

    @property
    def derivable(self) -> Array:
        """[12] bool, hidden leads that two given limb leads fix by algebra."""
        return derivable(self.mask)

    @property
    def headline(self) -> Array:
        """[12] bool, hidden independent leads (I, II, V1..V6) that no algebra gives."""
        return self.hidden & independent() & ~self.derivable

    @property
    def geometry(self) -> tuple[int, float]:
        """Rank and condition number of the Dower rows of the given leads."""
        return geometry_condition(self.mask)

    @property
    def leaves_one_out(self) -> bool:
        """Whether all leads but one precordial lead are given."""
        return self.name.startswith("-")

    def usable(self, observed: Array) -> Array:
        """[n] bool, windows in which every given lead was truly recorded; observed [n, 12]."""
        return np.asarray(np.asarray(observed, dtype=bool)[:, self.mask].all(axis=1))


def independent() -> Array:
    """[12] bool, the leads that the others follow from: I, II, V1..V6."""
    return np.isin(np.arange(len(LEADS)), INDEPENDENT_INDEX)


def named_sets(names: Sequence[str]) -> list[LeadSet]:
    """Lead sets such as "I+II+V2", in standard order, each once. Raises LeadError for an unknown lead."""
    sets: dict[str, LeadSet] = {}
    for text in names:
        mask = observed_mask(parse_lead_set(text))
        name = "+".join(LEADS[i] for i in np.flatnonzero(mask))
        sets.setdefault(name, LeadSet(name, mask))
    return list(sets.values())


def leave_one_out() -> list[LeadSet]:
    """Limb leads and all precordial leads but one; "-V3" hides V3."""
    return [LeadSet(f"-{out}", observed_mask([*LIMB, *others])) for out, others in OTHER_PRECORDIAL.items()]


def all_sets(names: Sequence[str], with_leave_one_out: bool) -> list[LeadSet]:
    """The named sets, then leave-one-out."""
    return named_sets(names) + (leave_one_out() if with_leave_one_out else [])


def recorded_windows(folder: WindowFolder, rows: Array) -> tuple[Array, Array]:
    """(ecg [k, 12, T] float32 mV, zero where nothing was recorded; observed [k, 12] bool) of rows [k]."""
    observed = np.asarray(folder.observed[rows], dtype=bool)
    return given_only(np.asarray(folder.windows[rows]), observed), observed


def given_only(ecg: Array, given: Array) -> Array:
    """A float32 copy of ecg [n, 12, T] with zeros wherever given [12] or [n, 12] is False."""
    keep = np.broadcast_to(np.asarray(given, dtype=bool), ecg.shape[:2])
    return np.where(keep[:, :, None], ecg, np.float32(0)).astype(np.float32, copy=False)
