"""ECGs on the page: windows of the test split, a real sample, recordings with flags.

The only file that imports pydicom, for the waveform sample that travels inside it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecggen.data.quality.flags import FLAGS, concerned, kinds
from ecggen.leads import (
    INDEPENDENT,
    LEADS,
    LIMB,
    PRECORDIAL,
    canonical_lead,
    complete_limb_leads,
    derivable,
    lead_indices,
    observed_mask,
    parse_lead_set,
)
from ecggen.report import figures
from ecggen.report.sections import Results
from ecggen.utils.config import Config

#: What each flag means, for the captions.
FLAG_WORDS = {
    "flat": "the lead hardly moves",
    "saturated": "the lead sticks at its largest or smallest value",
    "algebra": "the limb leads contradict each other (Einthoven, Goldberger)",
    "amplitude": "beyond what a heart can do",
    "gap": "samples are missing",
    "noise": "noise between the beats, or motion that no other lead shows",
    "swap": "the shape of the beats is likelier with these electrodes interchanged",
    "polarity": "the lead fits the others better upside down",
    "checksum": "the signal is not the one whose sum the header states",
    "uncalibrated": "the header gives no gain",
}
CANDIDATES = 24  # test records, at most, of which the typical one is shown
_UNITS = {"uV": 1e-3, "mV": 1.0}  # of DICOM waveforms (UCUM), in mV
_STRIP_SECONDS = 10.0
Picture = dict[str, Any]  # svg, words


def picture(figure: Any, words: str, keep: Path | None = None) -> Picture:
    """A figure as an element of the page with its caption; a PNG file as well where `keep` says so."""
    if keep is not None:
        figures.save(figure, keep)
    return {"svg": figures.svg(figure, words), "words": words}


def _completed(
    recorded: np.ndarray, rendered: np.ndarray, std: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Rendered leads [12, T] and their standard deviation where the given leads are as recorded and the limb
    leads follow the algebra wherever two of them are given; and r of each lead that is not given."""
    rendered = np.where(mask[:, None], recorded, rendered)
    rendered, _ = complete_limb_leads(rendered, mask)
    std = np.where((mask | derivable(mask))[:, None], 0.0, std)
    scores = figures.hidden_r(recorded, rendered, mask)
    r = {lead: float(scores[i]) for i, lead in enumerate(LEADS) if not mask[i]}
    return rendered, std, r


def _mean_r(r: dict[str, float], mask: np.ndarray) -> float:
    """Mean over the hidden independent leads that no algebra gives."""
    fixed = mask | derivable(mask)
    values = [r[lead] for lead in INDEPENDENT if not fixed[LEADS.index(lead)]]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


# --- windows of the test split --------------------------------------------------------------------------


def _candidates(folder: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of windows of different test records with all leads, of their references (-1: none), and the first
    sample of each that its reference does not hold."""
    from ecggen.eval.personal import half_pairs

    rows = folder.rows("test")
    whole: Any = np.asarray(folder.observed, dtype=bool).all(axis=1)
    pairs = half_pairs(folder, rows)
    keep = whole[pairs.test] & whole[pairs.reference]
    test, reference, start = (each[keep] for each in (pairs.test, pairs.reference, pairs.score_from))
    if not len(test):
        first = {folder.record[row]: int(row) for row in reversed(rows) if whole[row]}
        test = np.array(sorted(first.values()), dtype=np.int64)
        reference, start = np.full(len(test), -1), np.zeros(len(test), dtype=np.int64)
    evenly = np.unique(np.linspace(0, max(len(test) - 1, 0), min(CANDIDATES, len(test))).astype(int))
    return test[evenly], reference[evenly], start[evenly]


def test_ecgs(renderer: Any, windows: Path, config: Config, keep: Path) -> dict[str, Any]:
    """ECGs of the test split rendered from `report.lead_set`; empty where there is none.

    alone, personal: Pictures of the record whose r is the median one, without and with a reference of the
    person; record, n, views, loop: its beat as a vectorcardiogram; examples: Pictures from the lowest to the
    highest r. keep: folder of PNG files.
    """
    if renderer is None or not any(windows.glob("windows*.npy")):
        return {}
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.lead_sets import given_only

    folder = read_window_folder(windows)
    rows, references, starts = _candidates(folder)
    if not len(rows):
        return {}
    fs, given = float(folder.meta["fs"]), "+".join(parse_lead_set(config.report.lead_set))
    mask = observed_mask(parse_lead_set(given))
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(given_only(ecg, mask), mask)

    def completed(at: int, one: Any, place: int = 0) -> tuple[Any, ...]:
        """Recorded leads, and those of `one` at `place`, where the reference does not hold them."""
        new = slice(int(starts[at]), None)
        recorded = ecg[at][:, new].astype(float)
        rest = _completed(recorded, one["leads"][place][:, new], one["std"][place][:, new], mask)
        return (recorded, *rest, _mean_r(rest[-1], mask))

    def sheet(at: int, parts: tuple[Any, ...], words: str, file: Path | None = None) -> Picture:
        recorded, rendered, std, _, mean = parts
        words = f"From {given}, person {words}: r {mean:.3f}"
        figure = figures.ecg_sheet(recorded, rendered, mask, fs, words, std)
        return picture(figure, f"Record {folder.record[rows[at]]}. {words}", file)

    unknown = [completed(at, out, at) for at in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda at: unknown[at][-1])
    typical = order[len(order) // 2]
    shown = np.unique(np.linspace(0, len(order) - 1, min(config.report.examples, len(order))).astype(int))
    others = [order[at] for at in shown if order[at] != typical]
    found = {
        "record": str(folder.record[rows[typical]]),
        "n": len(rows),
        "alone": sheet(typical, unknown[typical], "unknown", keep / "ecg.png"),
        "examples": [sheet(at, unknown[at], "unknown") for at in others],
    }
    if references[typical] >= 0:
        reference = np.asarray(folder.windows[references[typical]], dtype=np.float32)
        state = renderer.shared_state(reference[None], np.ones(len(LEADS), dtype=bool))
        known = renderer.render_windows(given_only(ecg[[typical]], mask), mask, state=state[None])
        found["personal"] = sheet(typical, completed(typical, known), "known", keep / "ecg_personal.png")
    frank = None if folder.frank is None else np.asarray(folder.frank[rows[typical]], dtype=float)
    return found | _loop(ecg[typical], out["vcg"][typical], frank, fs)


def _loop(ecg: np.ndarray, vcg: np.ndarray, frank: np.ndarray | None, fs: float) -> dict[str, Any]:
    """views: a Picture of one beat from each side; loop: the same for the page's script, as JSON."""
    from ecggen.data.rpeaks import detect_r_peaks
    from ecggen.data.signal import resample

    rate = 500.0  # a loop at 100 Hz has corners
    lines = [resample(line, fs, rate) for line in (vcg, frank) if line is not None]
    beat = figures.one_beat(lines[0].shape[1], rate, np.asarray(detect_r_peaks(ecg, fs)) * rate / fs)
    reference = lines[1] if len(lines) > 1 else None
    span = slice(beat[0][1].start, beat[-1][1].stop)
    parts = [{"part": name, "points": lines[0][:, part].T.round(3).tolist()} for name, part in beat]
    measured = (
        [] if reference is None else [{"part": "measured", "points": reference[:, span].T.round(3).tolist()}]
    )
    views = [
        picture(figures.loop_view(lines[0], beat, view, reference), f"Vectorcardiogram, {view} view")
        for view in figures.VIEWS
    ]
    return {"views": views, "loop": json.dumps(measured + parts), "measured": bool(measured)}


# --- recordings with flags ------------------------------------------------------------------------------


def flagged_pictures(results: Results, records: Path) -> list[Picture]:
    """One recording of data/records for each flag that has a stretch of time, dropped ones first."""
    described, rejected = results.quality["records"], results.quality["rejected_windows"]
    spans = results.quality["spans"]
    if spans.empty or described.empty or not (records / "signals.npy").is_file():
        return []
    spans = spans.merge(described[["record", "offset", "n_samples"]].drop_duplicates("record"), on="record")
    flags = [(row["record"], kinds(row["reason"].split(";"))) for row in rejected.to_dict("records")]
    dropped = {(record, flag) for record, reasons in flags for flag in reasons}
    spans["dropped"] = [pair in dropped for pair in zip(spans["record"], spans["flag"], strict=True)]
    signals, fs = np.load(records / "signals.npy", mmap_mode="r"), float(results.meta.get("fs", 100.0))
    pictures = []
    for flag in FLAGS:
        of_flag = spans[spans["flag"] == flag].sort_values("dropped", ascending=False, kind="stable")
        same = of_flag[of_flag["record"] == of_flag["record"].iloc[0]] if len(of_flag) else of_flag
        if same.empty or same["offset"].iloc[0] + same["n_samples"].iloc[0] > len(signals):
            continue  # no such flag, or tables and signals of different runs
        named = f"{flag}:{same['lead'].iloc[0]}" if FLAGS[flag] else flag
        title = f"{named}: {FLAG_WORDS.get(flag, flag)}"
        fate = "dropped" if same["dropped"].iloc[0] else "kept with the flag"
        words = f"{title}. Record {same['record'].iloc[0]}, {fate}."
        pictures.append(picture(_strip(signals, same, fs, named), words))
    return pictures


def _strip(signals: np.ndarray, spans: pd.DataFrame, fs: float, title: str) -> Any:
    """The six limb or precordial leads around the first of a record's spans of one flag; all are marked."""
    leads = [
        frozenset(LIMB) if flag == "algebra" else concerned(f"{flag}:{lead}")  # none: all leads
        for flag, lead in zip(spans["flag"], spans["lead"], strict=True)
    ]
    first = spans.iloc[0]
    shown = PRECORDIAL if leads[0] and not leads[0] & set(LIMB) else LIMB
    count, length = int(first["n_samples"]), int(_STRIP_SECONDS * fs)
    start = int(min(max(0.0, first["start_s"] - 2.0), max(0.0, count / fs - _STRIP_SECONDS)) * fs)
    part = slice(int(first["offset"]) + start, int(first["offset"]) + min(count, start + length))
    marks = [
        (each, float(begin), float(end))
        for each, begin, end in zip(leads, spans["start_s"], spans["stop_s"], strict=True)
    ]
    ecg = np.asarray(signals[part]).T[[LEADS.index(name) for name in shown]]
    return figures.flagged_strip(ecg, shown, marks, fs, title, start / fs)


# --- the real ECG ---------------------------------------------------------------------------------------


def dicom_sample() -> Path | None:
    """The 12-lead waveform file that travels inside pydicom, or None where it does not."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("waveform_ecg.dcm", download=False)
    return Path(str(path)) if path else None


def read_dicom_sample(path: Path) -> tuple[np.ndarray, float]:
    """The twelve leads of the sample, [12, T] mV in standard order, and Hz.

    Units come from each channel's own sensitivity units, names from its source.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on old encodings concern no number here
        data = pydicom.dcmread(path)
        raw = np.asarray(data.waveform_array(0), dtype=np.float64)  # sensitivity and baseline applied
    group = data.WaveformSequence[0]
    lines = {}
    for channel, line in zip(group.ChannelDefinitionSequence, raw.T, strict=True):
        lead = canonical_lead(str(channel.ChannelSourceSequence[0].CodeMeaning))  # "Lead I (Einthoven)"
        lines[lead] = line * _UNITS[str(channel.ChannelSensitivityUnitsSequence[0].CodeValue)]
    return np.stack([lines[lead] for lead in LEADS]), float(group.SamplingFrequency)


def real_ecg(renderer: Any, config: Config, keep: Path) -> dict[str, Any]:
    """The DICOM sample rendered from `report.lead_set`: a Picture with numbers, or the reason for none."""
    from ecggen.data.signal import bandpass

    path = dicom_sample()
    if renderer is None or path is None:
        missing = "There is no trained model" if renderer is None else "The DICOM sample is not installed"
        return {"reason": missing}
    recorded, fs = read_dicom_sample(path)
    given = parse_lead_set(config.report.lead_set)
    mask = observed_mask(given)
    out = renderer.render(recorded[lead_indices(given)], fs=fs, leads=list(given))
    # The recorded leads through the checkpoint's own band-pass: what the rendering can be compared with.
    used = getattr(renderer, "preprocessing", None) or {}
    low, high, order = (used.get(k, getattr(config.preprocess, k)) for k in ("low_hz", "high_hz", "order"))
    compared = np.asarray(bandpass(recorded, fs, float(low), float(high), int(order)), dtype=np.float64)
    rendered, std, r = _completed(compared, np.asarray(out.rendered_mv), np.asarray(out.std_mv), mask)
    title = f"DICOM sample, rendered from {'+'.join(given)}"
    figure = figures.ecg_sheet(compared, rendered, mask, fs, title, std)
    return {
        **picture(figure, f"{title}: recorded and rendered leads.", keep / "sample.png"),
        "file": path.name,
        "samples": recorded.shape[1],
        "fs": f"{fs:g}",
        "numbers": {
            "lead_set": "+".join(given),
            "r_mean": round(_mean_r(r, mask), 5),
            "r": {lead: round(value, 5) for lead, value in r.items()},
        },
    }
