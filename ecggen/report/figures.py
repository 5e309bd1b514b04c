"""Arrays and tables in, figures out. The only file of the report that imports matplotlib; it keeps no state.

Legend: ECG in mV [12, T], rows in the order of `ecggen.leads.LEADS`; VCG in mV [3, T] on the Frank axes
(+x left, +y inferior, +z posterior); observed [12] bool, True = given to the model. Tables are rows of text
or of numbers, or data frames.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ecggen.eval.metrics import score_leads
from ecggen.leads import LEADS, derivable
from ecggen.models.blocks import GAUSSIAN_90
from ecggen.report import charts
from ecggen.report.tables import (
    distinct,
    frame,
    of_lead_sets,
    of_model,
    of_split,
    only,
    protocol_words,
)
from ecggen.utils.files import atomic_path

MM_PER_S, MM_PER_MV = 25.0, 10.0  # the usual paper speed and gain
WIDTH = 5.3  # inches, of every figure: its text stays readable on a phone
SECONDS = 2.5  # of each lead that are drawn
INK, RENDERED, RECORDED, GRID_MAJOR, GRID_MINOR = "#1f2933", "#c1121f", "#a3abb2", "#efb9b3", "#f8dfdc"
#: Parts of a beat by seconds from its R peak, where each ends, and their colours.
PARTS = {"P": (-0.06, "#0072b2"), "QRS": (0.07, RENDERED), "T": (0.5, "#009e73")}
BEAT_START_S = -0.26
#: Views of the loop: what points right and what points up on the page, on the Frank axes.
VIEWS = {
    "turned": ((0.82, 0, 0.57), (0.2, -0.94, -0.29)),
    "frontal": ((1, 0, 0), (0, -1, 0)),  # the foot is at the bottom of the page
    "transverse": ((1, 0, 0), (0, 0, 1)),  # the chest wall is
    "left sagittal": ((0, 0, 1), (0, -1, 0)),
}
AXIS_WORDS = ("left", "foot", "back")
#: Colours of figures that follow the page's own, dark or light.
_PAGE_COLOURS = {
    INK: "--ink",
    charts.GREY: "--soft",
    charts.LINE: "--line",
    RENDERED: "--rendered",
    RECORDED: "--recorded",
    GRID_MAJOR: "--grid",
    GRID_MINOR: "--grid-fine",
    "#0072b2": "--blue",
    "#ffffff": "--paper",
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "path.simplify": True,
    "svg.fonttype": "none",
}
Rows = Sequence[Mapping[str, Any]]  # or a data frame


def hidden_r(recorded: np.ndarray, rendered: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """[12], r of hidden leads as the evaluations score it; NaN of given and of constant leads."""
    return score_leads(recorded[None], rendered[None], ~np.asarray(observed, dtype=bool)).r[0]


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """A figure in inches with its own canvas: pyplot and its list of open figures stay out."""
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _style(**more: Any) -> Iterator[None]:
    """Our style, whatever matplotlibrc says, and matplotlib as it was afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | _STYLE | more):
            yield


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all.

    Without time stamp and software name: the same figure gives the same bytes on one installation.
    """
    with _style(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None, "Creation Time": None})


def svg(figure: Figure, words: str) -> str:
    """The figure as an element of a page whose colours and fonts it takes; words: what it shows.

    At most as wide as it was made, in inches; clears the figure.
    """
    out = io.StringIO()
    with _style(**{"svg.hashsalt": words}):  # names of its parts, different from figure to figure
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()[out.getvalue().index("<svg") :]
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.S)
    numbers = re.compile(r"\d+\.\d+")
    text = re.sub(
        r"<[^>]+>", lambda tag: numbers.sub(lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), tag[0]), text
    )
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, f"var({name})")
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    width = f'style="width:{figure.get_figwidth():.2f}in"'
    figure.clear()
    body = text[text.index(">") + 1 :].replace("\n", " ")
    return f'<svg {box[0]} {width} role="img" aria-label="{html.escape(words)}">{body}'


# --- ECG and VCG ----------------------------------------------------------------------------------------

#: Rows of the sheet as positions in LEADS: I V1 | II V2 | III V3 | aVR V4 | aVL V5 | aVF V6.
_CELLS = [(row, row + 6) for row in range(6)]


@_style()
def ecg_sheet(
    recorded: np.ndarray,
    rendered: np.ndarray,
    observed: np.ndarray,
    fs: float,
    title: str,
    std: np.ndarray | None = None,
) -> Figure:
    """Twelve leads on ECG paper (25 mm/s, 10 mm/mV), true to scale: given leads black, hidden ones rendered
    (red) over recorded (grey).

    recorded, rendered, std [12, T] in mV, observed [12] bool. Drawn are the first SECONDS; the r beside a
    hidden lead is that of all T samples. std: the model's own, drawn as its 90 % band.
    """
    lines = [np.asarray(each, dtype=float) for each in (recorded, rendered)]
    length = min(lines[0].shape[1], max(2, round(SECONDS * fs)))
    drawn = slice(0, length, max(1, int(fs / 250)))  # more samples than that cannot be told apart
    x, cell = np.arange(length)[drawn] / fs * MM_PER_S, SECONDS * MM_PER_S
    width, heights = 2 * cell + 10, _row_heights(lines[0][:, :length], lines[1][:, :length])
    height, above, below = sum(map(sum, heights)), 7.0, 10.0  # mm
    figure = _figure(width / 25.4, (height + above + below) / 25.4, None)
    whole = height + above + below
    axes = figure.add_axes((0, below / whole, 1, height / whole), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    figure.text(0.5, 1 - 1 / whole, title, ha="center", va="top", fontsize=10, weight="bold")
    _draw_paper(axes, width, height)
    scores = hidden_r(lines[0], lines[1], observed)
    edge, fixed = float(height), derivable(np.asarray(observed, dtype=bool))
    for cells, (top, bottom) in zip(_CELLS, heights, strict=True):
        zero = edge - top
        axes.plot([1, 3, 3, 7, 7, 9], zero + np.array([0, 0, 10, 10, 0, 0]), color=INK, lw=0.7)  # 1 mV, 0.2 s
        for lead, left in zip(cells, (10, 10 + cell), strict=True):
            draw = [zero + each[lead, drawn] * MM_PER_MV for each in lines]
            words = f"{LEADS[lead]}  given"
            if observed[lead]:
                axes.plot(left + x, draw[0], color=INK, lw=1.0, label="given")
            else:
                if std is not None:
                    band = GAUSSIAN_90 * np.asarray(std, dtype=float)[lead, drawn] * MM_PER_MV
                    low, high = np.clip((draw[1] - band, draw[1] + band), edge - top - bottom, edge)
                    axes.fill_between(left + x, low, high, color=RENDERED, alpha=0.2, lw=0, label="90 % band")
                # Recorded wide under rendered narrow: where they agree, both stay visible.
                axes.plot(left + x, draw[0], color=RECORDED, lw=1.9, label="hidden, as recorded")
                axes.plot(left + x, draw[1], color=RENDERED, lw=0.8, label="rendered")
                r = scores[lead]
                words = f"{LEADS[lead]}  r {r:.3f}" if math.isfinite(r) else f"{LEADS[lead]}  r not defined"
                words = f"{LEADS[lead]}  by algebra" if fixed[lead] and r > 0.9995 else words
            axes.text(left + 1, edge - 0.5, words, va="top", weight="bold", fontsize=8.5)
        edge -= top + bottom
    handles = {words: line for line, words in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, columnspacing=1.2)
    figure.text(0.01, 1 - (above + height + 0.6) / whole, "25 mm/s   10 mm/mV", va="top", fontsize=7.5)
    return figure


def _row_heights(recorded: np.ndarray, rendered: np.ndarray) -> list[tuple[int, int]]:
    """What each row of the sheet needs above and below zero, in mm; recorded and rendered [12, T] in mV."""
    heights = []
    for cells in _CELLS:
        both = np.concatenate([recorded[list(cells)], rendered[list(cells)]]) * MM_PER_MV
        both = np.append(both[np.isfinite(both)], 0.0)
        # Steps of 5 mm keep the zero lines on the grid; the cap keeps an artefact from filling the page.
        top = 5 * math.ceil((min(max(float(both.max()), 6), 30) + 4) / 5)
        heights.append((top, 5 * math.ceil(min(max(-float(both.min()), 5), 30) / 5)))
    return heights


def _draw_paper(axes: Any, width: float, height: float) -> None:
    """Lines every 1 and every 5 mm."""
    for step, colour, line in ((1, GRID_MINOR, 0.3), (5, GRID_MAJOR, 0.5)):
        across, down = np.arange(0, width + 0.5, step), np.arange(0, height + 0.5, step)
        gap = np.full(len(across), np.nan), np.full(len(down), np.nan)
        xs = [np.stack([across, across, gap[0]], 1), np.tile([0, width, np.nan], (len(down), 1))]
        ys = [np.tile([0, height, np.nan], (len(across), 1)), np.stack([down, down, gap[1]], 1)]
        for x, y in zip(xs, ys, strict=True):
            axes.plot(x.ravel(), y.ravel(), color=colour, lw=line, zorder=0)


def one_beat(length: int, fs: float, peaks: np.ndarray) -> list[tuple[str, slice]]:
    """The parts of the beat whose R peak is the middle one of `peaks`, by time from it; where no beat lies
    within the window, the whole window as one part."""
    ends = [BEAT_START_S, *(end for end, _ in PARTS.values())]
    if len(peaks) > 1:
        ends[-1] = min(ends[-1], 0.62 * float(np.median(np.diff(peaks))) / fs)
    inside = [peak for peak in peaks if peak + ends[0] * fs >= 0 and peak + ends[-1] * fs < length]
    if not inside:
        return [("QRS", slice(0, length))]
    cuts = [round(inside[(len(inside) - 1) // 2] + end * fs) for end in ends]
    return [(name, slice(cuts[at], cuts[at + 1] + 1)) for at, name in enumerate(PARTS)]


@_style()
def loop_view(
    vcg: np.ndarray, beat: Sequence[tuple[str, slice]], view: str, reference: np.ndarray | None = None
) -> Figure:
    """One beat of the vectorcardiogram [3, T] in mV from one of VIEWS; reference [3, T]: measured Frank
    leads, drawn beneath. See `one_beat`."""
    span = slice(beat[0][1].start, beat[-1][1].stop)
    both = [vcg] if reference is None else [vcg, reference]
    half = 1.25 * max(float(max(np.abs(each[:, span]).max() for each in both)), 1e-3)
    figure = _figure(2.1, 2.25, None)
    axes = figure.add_axes((0, 0, 1, 2.1 / 2.25), xlim=(-half, half), ylim=(-half, half))
    axes.axis("off")
    figure.text(0.5, 1, view, ha="center", va="top", fontsize=9, weight="bold")
    page = np.array(VIEWS[view], dtype=float)
    for at, word in enumerate(AXIS_WORDS):
        tip = page[:, at] * half * 0.78
        if np.hypot(*tip) > 0.1 * half:
            axes.plot([-tip[0], tip[0]], [-tip[1], tip[1]], color=charts.LINE, lw=0.8, zorder=0)
            axes.text(
                1.12 * tip[0], 1.12 * tip[1], word, ha="center", va="center", fontsize=8, color=charts.GREY
            )
    if reference is not None:
        axes.plot(*(page @ reference[:, span]), color=RECORDED, lw=1.6)
    for name, part in beat:
        axes.plot(*(page @ vcg[:, part]), color=PARTS[name][1], lw=1.2)
    return figure


@_style()
def flagged_strip(
    ecg: np.ndarray,
    names: Sequence[str],
    marks: Sequence[tuple[frozenset[str], float, float]],
    fs: float,
    title: str,
    start_s: float = 0.0,
) -> Figure:
    """Leads of one recording, one below the other, with what a flag marks shaded.

    ecg [L, T] mV in the order of names; marks: (leads, from, to) in seconds, without leads for all of them;
    start_s: the time of the first sample.
    """
    figure = _figure(WIDTH, 0.5 * len(names) + 0.7)
    time, end = start_s + np.arange(ecg.shape[1]) / fs, start_s + ecg.shape[1] / fs
    # One scale for all; an artefact of many mV must not make the beats disappear.
    limit = min(max(1.0, 1.05 * float(np.nanmax(np.abs(ecg), initial=0))), 5.0)
    panels = np.ravel(figure.subplots(len(names), 1, sharex=True, sharey=True))
    for axes, name, line in zip(panels, names, ecg, strict=True):
        marked = [(start, stop) for leads, start, stop in marks if not leads or name in leads]
        for start, stop in marked:
            axes.axvspan(max(start, start_s), min(stop, end), color=charts.COLOURS[0], alpha=0.16, lw=0)
        axes.plot(time, line, color=charts.COLOURS[0] if marked else INK, lw=0.8)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", weight="bold" if marked else "normal")
        axes.set(xlim=(start_s, end), ylim=(-limit, limit))
        axes.grid(True, color=charts.LINE, lw=0.5)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("seconds; amplitude in mV")
    figure.suptitle(title, fontsize=11, weight="bold")
    return figure


# --- tables ---------------------------------------------------------------------------------------------


@_style()
def table_figure(name: str, rows: Rows) -> Figure:
    """One of TABLE_FIGURES from the rows of its table."""
    data = frame(rows)
    if name == "training":
        return charts.training(_figure(WIDTH, 2.4), data)
    data = of_model(data) if name == "transfer" else of_split(data)
    if name == "ttt":
        return charts.ttt(_figure(WIDTH, 3.6), data)
    names, panels = ("lead_set", "method"), {"": data}
    values, words = ("r", "r_low", "r_high"), "mean r, hidden leads"
    if name == "probe":
        names, values, words = ("class", "method"), ("auroc", "low", "high"), "AUROC"
    elif name == "personal":
        protocols = {protocol_words(each): each for each in distinct(data, "protocol")}
        panels = {f"reference: {text}": only(data, "protocol", each) for text, each in protocols.items()}
    else:
        parts = {
            "leads given": of_lead_sets(data, False),
            "one precordial lead hidden": of_lead_sets(data, True),
        }
        panels = {title: part for title, part in parts.items() if len(part)}
        names = ("lead_set", "database" if name == "transfer" else "method")
    panels = panels or {"": data}
    lines = sum(len(distinct(part, names[0])) for part in panels.values())
    figure = _figure(WIDTH, 0.36 * lines + 0.5 * len(panels) + 1.0)
    return charts.dots(figure, panels, names, values, words)


#: Stage -> figures of its tables: figure, table.
TABLE_FIGURES = {
    "train": {"training": "history"},
    "missing_lead": {"missing_lead": "lead_sets", "ttt": "ttt", "personal": "personal"},
    "linear_probe": {"probe": "probe"},
    "transfer": {"transfer": "missing_lead"},
}
