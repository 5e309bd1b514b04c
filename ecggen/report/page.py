"""The results of a run as one self-contained HTML page: words, tables, figures, one real ECG.

Files in, one page out; no network, no clock, no absolute path, so the same results give the same page. The
only file that imports pydicom, for the waveform sample that travels inside it.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.leads import (
    INDEPENDENT,
    LEADS,
    canonical_lead,
    complete_limb_leads,
    derivable,
    lead_indices,
    observed_mask,
    parse_lead_set,
)
from ecggen.report import figures, sections
from ecggen.report import html as h
from ecggen.report.quality import dropped_and_why
from ecggen.report.sections import ReportError, Results
from ecggen.utils.config import Config
from ecggen.utils.files import write_text

#: Units of DICOM waveforms (UCUM) in mV.
_UNITS = {"nV": 1e-6, "uV": 1e-3, "mV": 1.0, "V": 1e3}


def build_report(
    results: Path, windows: Path, out: Path, config: Config, renderer: Any | None = None
) -> dict[str, Any]:
    """Write out/report.html (and out/rendered_ecg.png, its real ECG). Returns what is on the page, counted.

    results: folder of the stages' results; windows: the window folder; renderer: as `ecggen.load` returns it
    (None = results/train is loaded if there is a checkpoint). Raises ReportError without any results.
    """
    found = Results.read(results, windows)
    if renderer is None and (results / "train" / "checkpoint.pt").is_file():
        from ecggen.inference.renderer import load  # torch, only where a model is there to be run

        renderer = load(results / "train")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pictures = _pictures(found, results, scratch)
        examples, n_examples = _examples(renderer, windows, config, scratch)
        real, sample = _real_ecg(renderer, config, found, out / "rendered_ecg.png")
        dropped = dropped_and_why(found, config, windows.parent / "records", scratch)
    parts = [
        ("headline", "In short", sections.headline(found, config, sample)),
        ("data", "What the model was trained on", sections.data(found, config)),
        ("training", "Training", sections.training(found) + pictures.pop("training_curves", "")),
        ("missing", "Hidden leads rendered", sections.missing(found) + pictures.pop("missing_lead", "")),
        ("examples", "Examples from the test split", examples),
        ("real", "One real ECG", real),
        ("personal", "With a personal reference", sections.personal(found) + pictures.pop("personal", "")),
        ("ttt", "Test-time training, step by step", sections.ttt(found) + pictures.pop("ttt", "")),
        ("reconstruction", "All leads given", sections.reconstruction(found) + pictures.pop("energy", "")),
        ("vcg", "The vectorcardiogram", sections.vcg(found)),
        ("state", "How steady the state is", sections.state(found)),
        ("probe", "Linear probe", sections.probe(found) + pictures.pop("probe", "")),
        ("transfer", "Other databases", sections.transfer(found) + pictures.pop("transfer", "")),
        ("rejected", "What was dropped, and why", dropped),
    ]
    write_text(out / "report.html", h.page("ecggen report", parts))
    return {"sections": len(parts), "examples": n_examples, "real_ecg": sample}


def _pictures(found: Results, results: Path, scratch: Path) -> dict[str, str]:
    """Figure name -> HTML: as the stage drew it, else drawn from its tables."""
    words = {
        "training_curves": "Loss, validation r and learning rate by epoch.",
        "missing_lead": "Mean r of hidden independent leads by leads given, with 95 % bootstrap intervals.",
        "personal": "Mean r of hidden leads when a recording of the same person is known.",
        "ttt": "Hidden leads against inner steps; dashed: the closed form; diamond: the start W0; star: one "
        "W for the record.",
        "energy": "Energy of the parts and energy that they explain, median over windows.",
        "probe": "AUROC per class with 95 % bootstrap intervals; dashed: chance.",
        "transfer": "Mean r of hidden leads by leads given: the own test split and other databases.",
    }
    out = {}
    for stage, tables in found.tables.items():
        for name, draw in figures.table_figures(stage, tables).items():
            path = results / stage / "figures" / f"{name}.png"
            if not path.is_file():
                path = scratch / f"{name}.png"
                figures.save(draw(), path)
            out[name] = h.picture(path, words.get(name, name))
    return out


def _examples(renderer: Any, windows: Path, config: Config, scratch: Path) -> tuple[str, int]:
    """Windows of different test records, recorded and rendered; (HTML, how many)."""
    if renderer is None or not any(windows.glob("windows*.npy")):
        return h.paragraph("No trained model or no windows: nothing was rendered."), 0
    from ecggen.data.pipeline import read_window_folder

    folder = read_window_folder(windows)
    mask = observed_mask(parse_lead_set(config.report.lead_set))
    first = {
        folder.record[row]: int(row) for row in reversed(folder.rows("test")) if folder.observed[row].all()
    }
    rows = sorted(first.values())
    if not rows:
        return h.paragraph("No test record has all twelve leads: nothing can be compared."), 0
    places = np.linspace(0, len(rows) - 1, min(config.report.examples, len(rows))).astype(int)
    rows = [rows[i] for i in dict.fromkeys(places.tolist())]
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(np.where(mask[None, :, None], ecg, np.float32(0)), mask)
    frank = None if folder.frank is None else np.asarray(folder.frank[rows])
    fs = float(folder.meta["fs"])
    words = h.paragraph(
        "Chosen evenly over the test records, not by score. The r of a lead is that of its whole "
        "window; drawn are the first 2.5 s. The loop is the model's; dark, where the record has Frank leads, "
        "the measured one.",
        "soft",
    )
    parts = [words]
    for at, row in enumerate(rows):
        title = f"Record {folder.record[row]} from {config.report.lead_set}"
        known = None if frank is None else frank[at]
        figure = figures.rendered_ecg(
            ecg[at], out["leads"][at], mask, out["vcg"][at], fs, title, reference=known
        )
        figures.save(figure, scratch / f"example_{at}.png")
        parts.append(
            h.picture(scratch / f"example_{at}.png", f"{title}: recorded and rendered leads, VCG loop.")
        )
    return "\n".join(parts), len(rows)


# --- the real ECG ---------------------------------------------------------------------------------------


def dicom_sample() -> Path | None:
    """The 12-lead waveform file that travels inside pydicom, or None where it does not."""
    try:
        from pydicom.data import get_testdata_file
    except ImportError:
        return None
    try:
        path = get_testdata_file("waveform_ecg.dcm", download=False)
    except (OSError, ValueError):
        return None
    return Path(str(path)) if path else None


def read_dicom_ecg(path: Path) -> tuple[np.ndarray, float, list[str]]:
    """The first waveform group of a DICOM file: (signal [n_leads, n_samples] mV, Hz, standard lead names).

    Units come from each channel's own sensitivity units, names from its source; channels that are no ECG lead
    are left out. Raises ReportError for a file without a usable waveform.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on old encodings concern no number here
        try:
            data = pydicom.dcmread(path)
            group = data.WaveformSequence[0]
            raw = np.asarray(data.waveform_array(0), dtype=np.float64)  # sensitivity and baseline applied
        except (OSError, AttributeError, IndexError, pydicom.errors.InvalidDicomError) as error:
            raise ReportError(f"{path.name} holds no DICOM waveform that can be read: {error}.") from error
    rows, names = [], []
    for channel, line in zip(group.ChannelDefinitionSequence, raw.T, strict=True):
        meaning = str(channel.ChannelSourceSequence[0].CodeMeaning)
        lead = canonical_lead(re.sub(r"\(.*?\)", "", meaning))  # "Lead I (Einthoven)"
        if lead not in LEADS:
            continue
        unit = str(channel.ChannelSensitivityUnitsSequence[0].CodeValue)
        if unit not in _UNITS:
            allowed = ", ".join(_UNITS)
            raise ReportError(f"Channel {meaning!r} of {path.name} is in {unit!r}: allowed are {allowed}.")
        rows.append(line * _UNITS[unit])
        names.append(lead)
    if not rows:
        raise ReportError(
            f"{path.name} has no channel that is named like an ECG lead: nothing can be rendered."
        )
    return np.stack(rows), float(group.SamplingFrequency), names


def _filtered(renderer: Any, ecg: np.ndarray, fs: float, config: Config) -> np.ndarray:
    """The recorded leads through the checkpoint's own band-pass: what the rendering can be compared with."""
    from ecggen.data.filters import bandpass

    rules = getattr(renderer, "preprocessing", None) or {}
    low, high = (float(rules.get(k, getattr(config.preprocess, k))) for k in ("low_hz", "high_hz"))
    order = int(rules.get("order", config.preprocess.order))
    return np.asarray(bandpass(ecg, fs, low, high, order), dtype=np.float64)


def _real_ecg(renderer: Any, config: Config, found: Results, keep: Path) -> tuple[str, dict[str, Any] | None]:
    """(HTML, numbers) of the DICOM sample rendered from `report.lead_set`; the picture goes to `keep`."""
    path = dicom_sample()
    if renderer is None or path is None:
        what = (
            "There is no trained model"
            if renderer is None
            else "The DICOM sample of pydicom is not installed"
        )
        return h.paragraph(f"{what}: no real ECG was rendered."), None
    signal, fs, names = read_dicom_ecg(path)
    given = parse_lead_set(config.report.lead_set)
    if sorted(names) != sorted(LEADS):
        return h.paragraph("The DICOM sample lacks some of the twelve leads: it was not rendered."), None
    recorded = signal[[names.index(lead) for lead in LEADS]]
    out = renderer.render(recorded[lead_indices(given)], fs=fs, leads=list(given))
    compared, rendered = _filtered(renderer, recorded, fs, config), np.asarray(out.rendered_mv)
    mask = observed_mask(given)
    rendered = np.where(mask[:, None], compared, rendered)
    rendered, _ = complete_limb_leads(
        rendered, mask
    )  # what two given limb leads fix is not left to the model
    scores = {lead: figures.pearson(compared[i], rendered[i]) for i, lead in enumerate(LEADS) if not mask[i]}
    title = f"DICOM sample, rendered from {'+'.join(given)}"
    figure = figures.rendered_ecg(compared, rendered, mask, np.asarray(out.vcg_mv), fs, title)
    figures.save(figure, keep)
    judged = _judged(mask)
    mean = float(np.mean([scores[lead] for lead in judged])) if judged else float("nan")
    per_lead = ", ".join(f"{lead} {h.format_number(r)}" for lead, r in scores.items())
    words = [
        f"The twelve-lead recording inside pydicom ({path.name}, {signal.shape[1]} samples at {fs:g} Hz), "
        f"rendered from {'+'.join(given)}, beside its recorded leads after the model's own band-pass.",
        f"r per hidden lead: {per_lead}. Limb leads that two given ones fix follow from them by algebra.",
        f"The model was trained on {sections.source(found, config)} and has never seen this recording. "
        "One record proves nothing: it shows that the whole way works on a real file.",
    ]
    picture = h.picture(keep, f"{title}: recorded and rendered leads, and the rendered VCG loop.")
    numbers = {
        "lead_set": "+".join(given),
        "r_mean": round(mean, 5),
        "r": {k: round(v, 5) for k, v in scores.items()},
    }
    return "".join(h.paragraph(text) for text in words) + picture, numbers


def _judged(mask: np.ndarray) -> list[str]:
    """Hidden independent leads that no algebra gives."""
    fixed = derivable(mask)
    return [lead for lead in INDEPENDENT if not mask[LEADS.index(lead)] and not fixed[LEADS.index(lead)]]
