"""Arrays and tables in, figures out. The only file of the report that imports matplotlib; it keeps no state.

Legend: ECG in mV [12, T], rows in the order of `ecggen.leads.LEADS`; VCG in mV [3, T] on the Frank axes
(+x left, +y inferior, +z posterior); observed [12] bool, True = given to the model. Tables are rows of text
or of numbers, or data frames.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ecggen.leads import LEADS
from ecggen.report import charts
from ecggen.report.tables import (
    column,
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
SECONDS = 2.5  # of each lead that are drawn
INK, RENDERED, GRID_MAJOR, GRID_MINOR = "#1f2933", "#d1495b", "#efb9b3", "#f8dfdc"
AXIS_WORDS = ("x (mV), left +", "y (mV), inferior +", "z (mV), posterior +")
#: Views of the loop: name, Frank axis across the page, Frank axis down or up the page.
_PLANES = (("frontal", 0, 1), ("transverse", 0, 2), ("left sagittal", 2, 1))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 130,
    "path.simplify": True,
}
Rows = Sequence[Mapping[str, Any]]  # or a data frame


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson r of two lines [T]; NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else math.nan


def _figure(width: float, height: float) -> Figure:
    """A figure in inches with its own canvas: pyplot and its list of open figures stay out."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _style() -> Iterator[None]:
    """Our style, whatever matplotlibrc says, and matplotlib as it was afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | _STYLE):
            yield


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all, and clear the figure.

    Without time stamp and software name: the same figure gives the same bytes on one installation.
    """
    with _style(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None, "Creation Time": None})
    figure.clear()


# --- ECG and VCG ----------------------------------------------------------------------------------------

#: Rows of the sheet as positions in LEADS: I aVR V1 V4 | II aVL V2 V5 | III aVF V3 V6.
_CELLS = [[column * 3 + row for column in range(4)] for row in range(3)]


def _row_heights(recorded: np.ndarray, rendered: np.ndarray) -> list[tuple[int, int]]:
    """What each row of the sheet needs above and below zero, in mm; recorded and rendered [12, T] in mV."""
    heights = []
    for cells in _CELLS:
        both = np.concatenate([recorded[cells], rendered[cells]]) * MM_PER_MV
        both = np.append(both[np.isfinite(both)], 0.0)
        # Steps of 5 mm keep the zero lines on the grid; the cap keeps an artefact from filling the page.
        top = 5 * math.ceil((min(max(float(both.max()), 8), 40) + 5) / 5)
        heights.append((top, 5 * math.ceil(min(max(-float(both.min()), 5), 40) / 5)))
    return heights


def _draw_ecg(
    axes: Any, recorded: np.ndarray, rendered: np.ndarray, observed: np.ndarray, x: np.ndarray, cell: int,
    heights: list[tuple[int, int]],
) -> None:  # fmt: skip
    """Three rows of four leads on paper with lines every 1 and 5 mm; x: mm of the first samples of each lead,
    cell: mm of a lead."""
    width, height = 4 * cell + 10, sum(map(sum, heights))
    for step, colour, line in ((1, GRID_MINOR, 0.3), (5, GRID_MAJOR, 0.6)):
        axes.vlines(np.arange(0, width + 0.5, step), 0, height, colors=colour, linewidths=line, zorder=0)
        axes.hlines(np.arange(0, height + 0.5, step), 0, width, colors=colour, linewidths=line, zorder=0)
    edge = height
    for cells, (top, bottom) in zip(_CELLS, heights, strict=True):
        zero = edge - top
        axes.plot([1, 3, 3, 7, 7, 9], zero + np.array([0, 0, 10, 10, 0, 0]), color=INK, lw=0.8)  # 1 mV, 0.2 s
        for at, lead in enumerate(cells):
            left = 10 + at * cell
            lines = [zero + each[lead, : len(x)] * MM_PER_MV for each in (recorded, rendered)]
            if observed[lead]:
                corners = [left, left + cell, left + cell, left], [edge, edge, zero - bottom, zero - bottom]
                axes.fill(*corners, color="#0072b2", alpha=0.09, lw=0)
                axes.plot(left + x, lines[0], color=INK, lw=1.0, label="given to the model")
                words = f"{LEADS[lead]}  given"
            else:
                # Recorded wide and pale under rendered narrow: where they agree, both stay visible.
                axes.plot(left + x, lines[0], color=INK, lw=2.0, alpha=0.5, label="hidden, as recorded")
                axes.plot(left + x, lines[1], color=RENDERED, lw=0.9, label="hidden, as rendered")
                r = pearson(recorded[lead], rendered[lead])
                words = f"{LEADS[lead]}  r {r:.3f}" if math.isfinite(r) else f"{LEADS[lead]}  r not defined"
            axes.text(left + 1, edge - 1, words, va="top", weight="bold", fontsize=8.5, color=INK)
        edge -= top + bottom
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    handles = {words: line for line, words in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(
        handles.values(), handles.keys(), loc="upper right", bbox_to_anchor=(1, -0.005), ncols=3, fontsize=8.5
    )
    axes.text(0, -1.5, "25 mm/s   10 mm/mV", va="top", fontsize=8.5, color=INK)


def _dense(line: np.ndarray, factor: int = 5) -> np.ndarray:
    """[3, T] -> [3, (T - 1) * factor + 1], band-limited: a loop at 100 Hz has no corners."""
    length = line.shape[1]
    ramp = line[:, :1] + (line[:, -1:] - line[:, :1]) * np.linspace(0, 1, length)
    flat = line - ramp
    # Continued oddly about its ends: no step, no ringing at the borders.
    odd = np.concatenate([flat, -flat[:, -2:0:-1]], axis=1)
    fine = np.fft.irfft(np.fft.rfft(odd), odd.shape[1] * factor) * factor
    count = (length - 1) * factor + 1
    return fine[:, :count] + line[:, :1] + (line[:, -1:] - line[:, :1]) * np.linspace(0, 1, count)


def _draw_loop(parent: Any, vcg: np.ndarray, reference: np.ndarray | None) -> None:
    """The loop [3, T] in space, and its frontal, transverse and left sagittal views, all on one scale."""
    lines = [(_dense(np.asarray(vcg, dtype=float)), RENDERED, 0.9, "rendered")]
    if reference is not None:
        lines.insert(0, (_dense(np.asarray(reference, dtype=float)), INK, 0.8, "measured"))
    every = np.concatenate([line for line, *_ in lines] + [np.zeros((3, 1))], axis=1)
    low, high = every.min(axis=1), every.max(axis=1)
    half = 0.55 * max(float((high - low).max()), 1e-3)
    limits = [(float(mid - half), float(mid + half)) for mid in (low + high) / 2]
    left, right = parent.subfigures(1, 2, width_ratios=(1, 3))
    space = left.add_subplot(projection="3d")
    for line, colour, width, label in lines:
        space.plot(line[0], line[2], line[1], color=colour, lw=width, label=label)
    # Seen from the front: x to the reader's right (the patient's left), foot down.
    space.set(xlim=limits[0], ylim=limits[2], zlim=limits[1][::-1], box_aspect=(1, 1, 1))
    space.view_init(elev=22, azim=-62)
    space.set_xlabel("x left", labelpad=-13, fontsize=8)
    space.set_ylabel("z posterior", labelpad=-13, fontsize=8)
    space.set_zlabel("y inferior", labelpad=-15, fontsize=8)
    space.set(xticklabels=[], yticklabels=[], zticklabels=[])
    space.set_title("loop in space")
    space.set_in_layout(False)  # it fills its own part; the labels, moved inwards, ask for more
    for at, (name, across, down) in enumerate(_PLANES):
        axes = right.add_subplot(1, 3, at + 1)
        for line, colour, width, _ in lines:
            axes.plot(line[across], line[down], color=colour, lw=width)
        axes.axhline(0, color="#bbbbbb", lw=0.6, zorder=0)
        axes.axvline(0, color="#bbbbbb", lw=0.6, zorder=0)
        # The foot is at the bottom of the page; in the transverse view the chest wall is.
        vertical = limits[down][::-1] if down == 1 else limits[down]
        axes.set(xlim=limits[across], ylim=vertical, aspect="equal", title=name)
        axes.set_xlabel(AXIS_WORDS[across], fontsize=8)
        axes.set_ylabel(AXIS_WORDS[down], fontsize=8, labelpad=1)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=5)
    if reference is not None:
        handles = space.get_legend_handles_labels()
        parent.legend(*handles, loc="outside lower center", ncols=2, fontsize=8.5)


@_style()
def ecg_sheet(
    recorded: np.ndarray,
    rendered: np.ndarray,
    observed: np.ndarray,
    fs: float,
    title: str,
    vcg: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> Figure:
    """Twelve leads on ECG paper (25 mm/s, 10 mm/mV): given leads shaded, hidden ones rendered over recorded.

    recorded, rendered [12, T] in mV, observed [12] bool. Drawn are the first SECONDS; the r beside a hidden
    lead is that of all T samples. Below them the loop of vcg and reference [3, T], see `vcg_loop`.
    """
    recorded, rendered = np.asarray(recorded, dtype=float), np.asarray(rendered, dtype=float)
    length = min(recorded.shape[1], max(2, round(SECONDS * fs)))
    x, cell = np.arange(length) / fs * MM_PER_S, 5 * math.ceil(length / fs * MM_PER_S / 5)
    heights = _row_heights(recorded[:, :length], rendered[:, :length])
    height = 10.5 * sum(map(sum, heights)) / (4 * cell + 10) + 0.85  # inches, with room for title and legend
    figure = _figure(10.5, height if vcg is None else height + 3.3)
    upper: Any = figure
    if vcg is not None:
        parts: Any = figure.subfigures(2, 1, height_ratios=(height, 3.3))
        upper, lower = parts
        _draw_loop(lower, vcg, reference)
    upper.suptitle(title, fontsize=11, weight="bold")
    _draw_ecg(upper.subplots(), recorded, rendered, observed, x, cell, heights)
    return figure


@_style()
def vcg_loop(vcg: np.ndarray, fs: float, reference: np.ndarray | None = None) -> Figure:
    """The vectorcardiogram [3, T] in mV as a loop in space and in three planes; Frank axes.

    reference [3, T]: measured or known Frank leads, drawn beneath.
    """
    figure = _figure(11.5, 3.4)
    figure.suptitle(f"Vectorcardiogram, {np.shape(vcg)[-1] / fs:.2f} s", fontsize=11, weight="bold")
    _draw_loop(figure, vcg, reference)
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
    figure = _figure(10.5, 0.72 * len(names) + 0.9)
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
        axes.grid(True, color="#e3e3e3", lw=0.5)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("seconds; amplitude in mV")
    figure.suptitle(title, fontsize=11, weight="bold")
    return figure


# --- tables ---------------------------------------------------------------------------------------------


@_style()
def table_figure(name: str, rows: Rows) -> Figure:
    """One of TABLE_FIGURES from the rows of its table."""
    data = frame(rows)
    if name == "training_curves":
        return charts.training(_figure(9.5, 3.1), data)
    data = of_model(data) if name == "transfer" else of_split(data)
    if name == "ttt":
        return charts.ttt(_figure(9.5, 3.6), data)
    if name == "probe":
        values = ("auroc", "low", "high")
        figure = charts.bars(_figure(10.5, 3.8), {"": data}, ("class", "method"), values, "AUROC", 0.4)
        figure.axes[0].axhline(0.5, color=charts.GREY, ls="--", lw=0.9)
        return figure
    if name == "energy":
        shares = {"share_median": "energy of the part", "explained_median": "energy that it explains"}
        percent = [
            data.assign(share=words, percent=100 * column(data, each)) for each, words in shares.items()
        ]
        panels, words = {"": pd.concat(percent)}, "% of the recorded energy"
        return charts.bars(_figure(9.5, 3.1), panels, ("part", "share"), ("percent",), words)
    if name == "personal":
        protocols = {f"reference: {protocol_words(each)}": each for each in distinct(data, "protocol")}
        panels = {title: only(data, "protocol", each) for title, each in protocols.items()}
    else:
        parts = {
            "leads given": of_lead_sets(data, False),
            "one precordial lead hidden": of_lead_sets(data, True),
        }
        panels = {title: part for title, part in parts.items() if len(part)}
    panels = panels or {"": data}
    names = ("lead_set", "database" if name == "transfer" else "method")
    figure, values = _figure(10.5, 3.1 * len(panels) + 0.4), ("r", "r_low", "r_high")
    return charts.bars(figure, panels, names, values, "mean r, hidden leads")


#: Stage -> figures of its tables: figure, table.
TABLE_FIGURES = {
    "train": {"training_curves": "history"},
    "reconstruction": {"energy": "energy"},
    "missing_lead": {"missing_lead": "lead_sets", "ttt": "ttt", "personal": "personal"},
    "linear_probe": {"probe": "probe"},
    "transfer": {"transfer": "missing_lead"},
}


def table_figures(stage: str, tables: Mapping[str, Rows]) -> dict[str, Callable[[], Figure]]:
    """The figures of one stage's tables by name, each drawn when it is called for."""
    names = TABLE_FIGURES.get(stage, {}).items()
    return {
        name: partial(table_figure, name, tables[table])
        for name, table in names
        if len(tables.get(table, ()))
    }
