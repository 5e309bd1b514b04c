"""Raw recordings to windows of a model, and windows back to recordings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecggen.data.quality.flags import flag_words, lasting, usable_leads
from ecggen.data.quality.spans import condition_and_check
from ecggen.data.signal import rate_in_hz, resample
from ecggen.leads import (
    EXPAND,
    INDEPENDENT_INDEX,
    LEADS,
    LeadError,
    complete_limb_leads,
    derivable,
    lead_indices,
    parse_lead_set,
)
from ecggen.utils.config import PreprocessConfig
from ecggen.utils.errors import EcggenError

Array = NDArray[np.float32]
#: Seconds that windows of a rendered recording overlap at least. More does not bring the rendering nearer to
#: the recording and takes as much longer as there are windows more.
OVERLAP_S = 0.2
_MAX_MV = 50.0  # far beyond any ECG: the caller's unit is not mV
_MIN_S, _FS_RANGE = 1.0, (20.0, 100_000.0)  # seconds, Hz
_INDEPENDENT = list(INDEPENDENT_INDEX)
_DEAD = "flat or without numbers for half of the recording or more"
#: Quality flag of a lead -> what a warning says of it.
_DOUBTS = {
    "flat": "flat in part",
    "saturated": "saturated",
    "noise": "noisy",
    "polarity": "perhaps inverted",
    "swap": "perhaps swapped electrodes",
    "algebra": "limb leads that contradict Einthoven's law",
    "amplitude": "amplitudes above {:g} mV",
}


class SignalError(EcggenError):
    """A recording that cannot be rendered."""


class SignalWarning(UserWarning):
    """A recording of which something is not used, or not to be trusted."""


@dataclass(frozen=True)
class Recording:
    """A recording that has been checked, without the leads that cannot be used.

    raw [n_leads, n_samples] mV at fs Hz, as given; rows: the lead of each row, a position in LEADS;
    conditioned [n_leads, m] mV: gaps bridged, filtered, at the model's rate; name: what errors call it.
    """

    raw: NDArray[np.float64]
    rows: list[int]
    fs: float
    conditioned: NDArray[np.float64]
    name: str = ""

    @property
    def observed(self) -> NDArray[np.bool_]:
        """[12], True = recorded."""
        return _marked(self.rows)


def _marked(rows: list[int]) -> NDArray[np.bool_]:
    """[12], True at these rows."""
    out = np.zeros(len(LEADS), dtype=bool)
    out[rows] = True
    return out


def recording(
    signal_mv: ArrayLike,
    fs: Any,
    leads: Iterable[str] | str,
    model_fs: float,
    config: PreprocessConfig,
    name: str = "",
) -> Recording:
    """Check and filter what a caller gave, as the pipeline does (`ecggen.data.quality`).

    A lead that is flat or without numbers for half of the recording or more is left out. A SignalWarning says
    so, and what else is doubtful: noise, inverted leads, swapped electrodes, amplitudes.
    Raises LeadError, SignalError.
    """
    try:
        rate, rows = sampling_rate(fs), lead_rows(leads)
        raw = _checked(signal_mv, rate, rows)
        out, doubts = _conditioned(raw, rows, rate, model_fs, config, name)
    except SignalError as error:
        raise SignalError(f"{name}{error}") from error
    if doubts:
        warnings.warn(f"{name}{' '.join(doubts)}", SignalWarning, stacklevel=4)
    return out


def lead_rows(leads: Iterable[str] | str) -> list[int]:
    """Positions in LEADS of lead names, or of one text ("II", "I+II+V2"). Raises LeadError."""
    if isinstance(leads, str):
        leads = parse_lead_set(leads)
    try:
        names = list(leads)
    except TypeError as error:
        raise LeadError(f'leads is {leads!r}: give lead names, for example ["I", "II"].') from error
    return lead_indices(names)


def sampling_rate(fs: Any) -> float:
    """A number in Hz from whatever holds one: a number, a text, an array or a tensor. Raises SignalError."""
    low, high = _FS_RANGE
    if not low <= (rate := rate_in_hz(fs)) <= high:
        raise SignalError(f"fs is {fs!r}: one sampling rate from {low:g} to {high:g} Hz is needed.")
    return rate


def _checked(signal_mv: ArrayLike, fs: float, rows: list[int]) -> NDArray[np.float64]:
    """[n_leads, n_samples]; infinite and masked samples become NaN."""
    try:
        if isinstance(signal_mv, np.ma.MaskedArray):
            signal_mv = np.ma.filled(signal_mv.astype(np.float64), np.nan)
        if np.iscomplexobj(signal_mv):
            raise TypeError("complex numbers")
        raw = np.atleast_2d(np.asarray(signal_mv, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SignalError(
            f"The signal is no array of numbers ({error}): give [n_leads, n_samples] in mV."
        ) from error
    if raw.ndim != 2 or raw.shape[0] != len(rows):
        turned = raw.ndim == 2 and raw.shape[1] == len(rows)
        raise SignalError(
            f"The signal has shape {raw.shape} but {len(rows)} lead(s) are named: give "
            f"[n_leads, n_samples], one row per name{' (its transpose, signal.T)' if turned else ''}."
        )
    least = math.ceil(_MIN_S * fs)
    if raw.shape[1] < least:
        raise SignalError(
            f"The signal has {raw.shape[1]} samples at {fs:g} Hz: at least {_MIN_S:g} s, {least} samples, "
            "is needed."
        )
    raw = np.where(np.isinf(raw), np.nan, raw)
    largest = float(np.abs(raw, where=~np.isnan(raw), out=np.zeros_like(raw)).max())
    if largest > _MAX_MV:
        raise SignalError(f"The signal reaches {largest:g} mV: no ECG does; give it in mV (1 mV = 1000 uV).")
    return raw


def _conditioned(
    raw: NDArray[np.float64], rows: list[int], fs: float, model_fs: float, config: PreprocessConfig, name: str
) -> tuple[Recording, list[str]]:
    """The recording of the usable leads, and sentences about what is doubtful."""
    seconds = raw.shape[1] / fs
    signal, given = np.zeros((len(LEADS), raw.shape[1])), _marked(rows)
    signal[rows] = raw
    ecg, spans = condition_and_check(signal, given, fs, model_fs, config)
    observed = usable_leads(given, spans, seconds)
    dropped = [LEADS[row] for row in rows if not observed[row]]
    if not observed.any():
        raise SignalError(
            f"No lead can be used ({', '.join(dropped)}: {_DEAD}): give another recording, in mV."
        )
    spans = [span for span in spans if span.lead not in dropped]
    for span in spans:
        if span.flag == "gap":
            raise SignalError(
                f"Lead {span.lead} has {span.stop_s - span.start_s:.2f} s without numbers: up to "
                f"{config.max_gap_s:g} s is bridged; cut the recording or leave the lead out."
            )
    doubts = []
    for word in lasting(flag_words(spans, np.ones(len(LEADS), bool)), spans, seconds):
        flag, _, lead = word.partition(":")
        doubts.append(f"{lead} {_DOUBTS[flag]}".lstrip().format(config.max_abs_mv))
    sentences = [f"{', '.join(dropped)}: {_DEAD}, taken as not recorded."] if dropped else []
    sentences += [f"Doubtful in this recording: {', '.join(doubts)}."] if doubts else []
    use = [row for row in rows if observed[row]]
    return Recording(signal[use], use, fs, ecg[use], name), sentences


@dataclass(frozen=True)
class Windows:
    """A recording cut for a model: windows [n, 12, T] mV, leads that were not recorded 0; their first
    samples; the recording's length at the model's rate."""

    windows: Array
    starts: list[int]
    length: int


def to_windows(one: Recording, time_len: int, stride: int | None, fs: float) -> Windows:
    """Windows of time_len samples at fs Hz; stride: see `window_starts`.

    A recording shorter than a window is continued by its mirror image.
    """
    signal = one.conditioned
    length = signal.shape[1]
    short = time_len - length
    if short > 0:
        signal = np.pad(signal, ((0, 0), (0, short)), mode="reflect" if short < length else "wrap")
    whole = np.zeros((len(LEADS), signal.shape[1]), np.float32)
    whole[one.rows] = signal
    starts = window_starts(length, time_len, stride, fs)
    return Windows(np.stack([whole[:, start : start + time_len] for start in starts]), starts, length)


def window_starts(length: int, time_len: int, stride: int | None, fs: float) -> list[int]:
    """First samples of windows of time_len every `stride` samples; the last one ends with the recording.

    None: as few windows as overlap by OVERLAP_S, evenly spread over the recording.
    """
    last = max(length, time_len) - time_len
    if stride is None:
        most = max(1, time_len - math.ceil(OVERLAP_S * fs))
        stride = max(1, math.ceil(last / max(1, math.ceil(last / most))))
    return sorted({*range(0, last + 1, stride), last})


def neighbours(counts: Sequence[int]) -> tuple[NDArray[np.int64], list[slice]]:
    """Which windows of recordings share a W: two that follow each other, about ten seconds.

    counts: windows of each recording, which lie one after the other. Returns (numbers [n, k] of the windows
    of each group, k = 1 where no recording has two; the places of each recording's windows among all of
    these). The last one of an odd number stands twice.
    """
    each = min(2, max(counts))
    groups, places, first, at = [], [], 0, 0
    for count in counts:
        rows = np.minimum(np.arange(-(-count // each) * each), count - 1)
        groups.append(first + rows.reshape(-1, each))
        places.append(slice(at, at + count))
        first, at = first + count, at + len(rows)
    return np.concatenate(groups), places


@dataclass(frozen=True)
class Rendered:
    """A recording completed to twelve leads, at the caller's rate and length n.

    leads: the 12 names; ecg_mv, rendered_mv [12, n] mV; vcg_mv [3, n] mV, Frank axes; state [n_windows, S];
    std_mv [12, n] mV, the model's own standard deviation of its rendering (1.645 of it either side should
    hold 90 % of the errors; 0 where observed or fixed by observed limb leads); directions_mv
    [n_directions, n] mV, one row for each direction that was asked for.
    ecg_mv holds the observed leads as recorded, limb leads that follow from two observed ones by algebra, and
    the rendering of the rest (band-passed, as training was); rendered_mv is the model's own of all twelve.
    """

    leads: tuple[str, ...]
    ecg_mv: NDArray[np.float64]
    rendered_mv: NDArray[np.float64]
    vcg_mv: NDArray[np.float64]
    state: Array
    std_mv: NDArray[np.float64]
    directions_mv: NDArray[np.float64]


def to_rendered(
    one: Recording, cut: Windows, out: dict[str, Array], fs: float, directions: NDArray[np.float64]
) -> Rendered:
    """What a model made of the windows of a recording, joined, at the recording's rate.

    out: leads, std [n, 12, T], vcg [n, 3, T] mV at fs Hz, state [n, S]; directions [k, 3]. Only what is
    needed is resampled: the eight independent leads give the other four by algebra, and a lead that is
    recorded, or follows from two recorded limb leads, has no deviation.
    """
    free = np.flatnonzero(~(one.observed | derivable(one.observed)))
    parts = [out["leads"][:, _INDEPENDENT], out["vcg"], out["std"][:, free]]
    joined = join(np.concatenate(parts, 1), cut.starts, cut.length)
    back = resample(joined, fs, one.fs, n_out=one.raw.shape[1])
    independent, vcg, deviation = np.split(back, [len(_INDEPENDENT), len(_INDEPENDENT) + 3])
    rendered = EXPAND @ independent
    ecg = rendered.copy()
    ecg[one.rows] = one.raw
    whole, _ = complete_limb_leads(ecg, one.observed)
    std = np.zeros_like(rendered)
    std[free] = np.maximum(deviation, 0.0)
    return Rendered(
        leads=LEADS,
        ecg_mv=np.asarray(whole, dtype=np.float64),
        rendered_mv=rendered,
        vcg_mv=vcg.copy(),
        state=out["state"],
        std_mv=std,
        directions_mv=directions @ vcg,
    )


def join(windows: Array, starts: list[int], length: int) -> NDArray[np.float64]:
    """Overlapping windows [n, C, T] -> [C, length], weighted by a smooth bump, so that no seam shows."""
    size = windows.shape[2]
    bump = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2 + 1e-3
    total = np.zeros((windows.shape[1], max(length, starts[-1] + size)))
    weight = np.zeros(total.shape[1])
    for start, window in zip(starts, windows, strict=True):
        total[:, start : start + size] += window * bump
        weight[start : start + size] += bump
    return (total / weight)[:, :length]


def directions_3d(directions: ArrayLike | None) -> NDArray[np.float64]:
    """[n, 3]. Raises SignalError."""
    if directions is None:
        return np.zeros((0, 3))
    try:
        vectors = np.atleast_2d(np.asarray(directions, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SignalError(f"The directions are no array of numbers ({error}): give [n, 3].") from error
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not np.isfinite(vectors).all():
        raise SignalError(
            f"The directions have shape {vectors.shape}: give [n, 3] finite numbers, a lead vector (x left, "
            "y inferior, z posterior) in each row."
        )
    return vectors
