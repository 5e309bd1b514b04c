"""The results of a run as one self-contained HTML page: words, tables, figures, one real ECG.

Files in, one page out; no network, no clock, no absolute path, so the same results give the same page. The
words stand in page.html.j2. The only file that imports pydicom, for the waveform sample that travels inside
it.
"""

from __future__ import annotations

import base64
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

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
from ecggen.report import figures, sections, tables
from ecggen.report.sections import Results
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder, write_text

#: Units of DICOM waveforms (UCUM) in mV.
_UNITS = {"uV": 1e-3, "mV": 1.0}
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
_STRIP_SECONDS = 10.0
Picture = dict[str, str]  # src, words


def build_report(
    results: Path, windows: Path, out: Path, config: Config, renderer: Any | None = None
) -> dict[str, Any]:
    """Write out/report.html and out/figures. Returns what is on the page, counted.

    results: folder of the stages' results; windows: the window folder; renderer: as `ecggen.load` returns it
    (None = results/train is loaded if there is a checkpoint). Raises ReportError without any results.
    """
    read = Results.read(results, windows)
    if renderer is None and (results / "train" / "checkpoint.pt").is_file():
        from ecggen.inference.renderer import load  # torch, only where a model is there to be run

        renderer = load(results / "train")
    with tempfile.TemporaryDirectory() as scratch, fresh_folder(out / "figures") as pictures:
        shown: dict[str, Any] = {
            "pictures": _table_pictures(read, pictures),
            "examples": _examples(renderer, windows, config, Path(scratch)),
            "real": _real_ecg(renderer, config, pictures / "sample.png"),
            "flagged": flagged_pictures(read, windows.parent / "records", Path(scratch)),
        }
    page = render_page(read, config, **shown)
    write_text(out / "report.html", page)
    counts = {"sections": page.count("<section "), "examples": len(shown["examples"])}
    return counts | {"real_ecg": shown["real"].get("numbers")}


def render_page(results: Results, config: Config, **shown: Any) -> str:
    """The page as HTML; shown: pictures (name -> src), examples, flagged (lists of Picture) and real."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = ("listing", "pivot", "only", "of_model", "of_lead_sets", "column", "distinct", "label")
    environment.globals |= {name: getattr(tables, name) for name in (*functions, "number_text")}
    environment.globals |= {"protocol_words": tables.protocol_words, "ttt_steps": sections.ttt_steps}
    return environment.get_template("page.html.j2").render(
        results=results,
        config=config,
        source=sections.source(results, config),
        headline=sections.headline(results, config),
        data_facts=sections.data_facts(results, config),
        patient_notes=sections.patient_notes(results),
        training=sections.plain_facts(results.metrics.get("train", {})),
        reason_tables=sections.reason_tables(results),
        **({"pictures": {}, "examples": [], "flagged": [], "real": {"reason": "No model was given"}} | shown),
    )


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _saved(figure: Any, path: Path, words: str) -> Picture:
    figures.save(figure, path)
    return {"src": _data_uri(path), "words": words}


def _table_pictures(read: Results, folder: Path) -> dict[str, str]:
    """Figure name -> its source, of every table that has one; drawn to PNG files in the folder."""
    out = {}
    for stage, of_stage in read.tables.items():
        for name, draw in figures.table_figures(stage, of_stage).items():
            path = folder / f"{name}.png"
            figures.save(draw(), path)
            out[name] = _data_uri(path)
    return out


def _examples(renderer: Any, windows: Path, config: Config, scratch: Path) -> list[Picture]:
    """Windows of different test records with all leads, recorded and rendered."""
    if renderer is None or not any(windows.glob("windows*.npy")):
        return []
    from ecggen.data.pipeline import read_window_folder

    folder = read_window_folder(windows)
    mask = observed_mask(parse_lead_set(config.report.lead_set))
    first = {
        folder.record[row]: int(row) for row in reversed(folder.rows("test")) if folder.observed[row].all()
    }
    rows = np.array(sorted(first.values()), dtype=np.int64)
    if not len(rows):
        return []
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(config.report.examples, len(rows))).astype(int))]
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(np.where(mask[None, :, None], ecg, np.float32(0)), mask)
    frank = [None] * len(rows) if folder.frank is None else np.asarray(folder.frank[rows])
    pictures = []
    for at, row in enumerate(rows):
        title = f"Record {folder.record[row]} from {config.report.lead_set}"
        sheet = (ecg[at], out["leads"][at], mask, float(folder.meta["fs"]), title, out["vcg"][at], frank[at])
        words = f"{title}: recorded and rendered leads, VCG loop."
        pictures.append(_saved(figures.ecg_sheet(*sheet), scratch / f"example_{at}.png", words))
    return pictures


# --- recordings with flags ------------------------------------------------------------------------------


def flagged_pictures(results: Results, records: Path, scratch: Path) -> list[Picture]:
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
        pictures.append(_saved(_strip(signals, same, fs, title), scratch / f"flag_{flag}.png", words))
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


def _real_ecg(renderer: Any, config: Config, keep: Path) -> dict[str, Any]:
    """The DICOM sample rendered from `report.lead_set`: a Picture with numbers, or the reason for none.

    The picture is written to `keep`.
    """
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
    rendered = np.where(mask[:, None], compared, np.asarray(out.rendered_mv))
    rendered, _ = complete_limb_leads(rendered, mask)  # not left to the model: what two given limb leads fix
    r = {lead: figures.pearson(compared[i], rendered[i]) for i, lead in enumerate(LEADS) if not mask[i]}
    fixed = mask | derivable(mask)
    hidden = [r[lead] for lead in INDEPENDENT if not fixed[LEADS.index(lead)]]
    title = f"DICOM sample, rendered from {'+'.join(given)}"
    figure = figures.ecg_sheet(compared, rendered, mask, fs, title, np.asarray(out.vcg_mv))
    words = f"{title}: recorded and rendered leads, and the rendered VCG loop."
    return {
        **_saved(figure, keep, words),
        "file": path.name,
        "samples": recorded.shape[1],
        "fs": f"{fs:g}",
        "numbers": {
            "lead_set": "+".join(given),
            "r_mean": round(float(np.mean(hidden)), 5),
            "r": {lead: round(value, 5) for lead, value in r.items()},
        },
    }
