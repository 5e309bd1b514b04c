"""The bands in which the raw signal is judged, all from one spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecggen.data.signal import Spectrum, transform
from ecggen.leads import LEADS

Array = NDArray[np.float64]

#: Hz: the rate at which signals are judged, whatever they were recorded at, so that limits mean the same.
JUDGED_FS = 100.0
#: Hz: where noise is looked for, where leads explain each other, a beat without wander, and its QRS.
LEVEL_BAND, EXCESS_BAND, BEAT_BAND, QRS_BAND = (20.0, 45.0), (0.67, 10.0), (0.67, 40.0), (5.0, 25.0)
#: Hz: the lowest corner of them.
LOWEST = min(band[0] for band in (LEVEL_BAND, EXCESS_BAND, BEAT_BAND, QRS_BAND))


@dataclass(frozen=True)
class Bands:
    """mV, [12, n] each at JUDGED_FS, zero where a lead is not usable; qrs is beat in QRS_BAND."""

    level: Array
    excess: Array
    beat: Array
    qrs: Array


def bands_of(spectrum: Spectrum, usable: NDArray[np.bool_]) -> Bands:
    """The bands of the usable [12] leads from their spectrum, which can be resampled to JUDGED_FS."""
    spectrum = spectrum.resampled(JUDGED_FS)
    beat = spectrum.filtered(*BEAT_BAND)
    bands = (spectrum.filtered(*LEVEL_BAND), spectrum.filtered(*EXCESS_BAND), beat, beat.filtered(*QRS_BAND))
    if usable.all():
        return Bands(*(band.signal() for band in bands))
    out = np.zeros((len(bands), len(LEADS), spectrum.n))
    for place, band in zip(out, bands, strict=True):
        place[usable] = band.signal()
    return Bands(*out)


def bands_at_100(slow: Array, usable: NDArray[np.bool_] | None = None) -> Bands:
    """The bands of slow [12, n] mV at JUDGED_FS."""
    usable = np.ones(len(LEADS), dtype=bool) if usable is None else usable
    spectrum = transform(slow[usable], JUDGED_FS, LOWEST)
    assert spectrum is not None  # nothing is resampled
    return bands_of(spectrum, usable)
