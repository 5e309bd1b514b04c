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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ecggen.leads import LEADS
from ecggen.report import charts
from ecggen.report.tables import column, distinct, frame, left_out, of_model, of_split
from ecggen.utils.files import atomic_path, fresh_folder

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


@dataclass(frozen=True)
class _Sheet:
    """ECG paper in mm: samples drawn, width of a cell, and what each row needs above and below zero."""

    length: int
    cell: int
    rows: list[tuple[int, int]]

    @classmethod
    def of(cls, recorded: np.ndarray, rendered: np.ndarray, fs: float) -> _Sheet:
        """Wide enough for the first SECONDS of all leads."""
        length = min(recorded.shape[1], max(2, round(SECONDS * fs)))
        rows = []
        for cells in _CELLS:
            both = np.concatenate([recorded[cells, :length], rendered[cells, :length]]) * MM_PER_MV
            both = np.append(both[np.isfinite(both)], 0.0)
            # Steps of 5 mm keep the zero lines on the grid; the cap keeps an artefact from filling the page.
            top = 5 * math.ceil((min(max(float(both.max()), 8), 40) + 5) / 5)
            rows.append((top, 5 * math.ceil(min(max(-float(both.min()), 5), 40) / 5)))
        return cls(length, 5 * math.ceil(length / fs * MM_PER_S / 5), rows)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in mm."""
        return 4.0 * self.cell + 10, float(sum(map(sum, self.rows)))

    def inches(self, width: float) -> float:
        """Height of a sheet `width` inches wide, with room for title and legend."""
        return width * self.size[1] / self.size[0] + 0.85

    def draw_grid(self, axes: Any) -> None:
        """Lines every 1 and 5 mm."""
        width, height = self.size
        for step, colour, line in ((1, GRID_MINOR, 0.3), (5, GRID_MAJOR, 0.6)):
            segments = [[(x, 0), (x, height)] for x in np.arange(0, width + 0.5, step)]
            segments += [[(0, y), (width, y)] for y in np.arange(0, height + 0.5, step)]
            axes.add_collection(LineCollection(segments, colors=colour, linewidths=line, zorder=0))


def _draw_ecg(
    axes: Any, recorded: np.ndarray, rendered: np.ndarray, observed: np.ndarray, fs: float, sheet: _Sheet
) -> None:
    """Three rows of four leads, every cell the same first samples, drawn in mm of paper."""
    width, height = sheet.size
    sheet.draw_grid(axes)
    x = np.arange(sheet.length) / fs * MM_PER_S
    edge = height
    for cells, (top, bottom) in zip(_CELLS, sheet.rows, strict=True):
        zero = edge - top
        axes.plot([1, 3, 3, 7, 7, 9], zero + np.array([0, 0, 10, 10, 0, 0]), color=INK, lw=0.8)  # 1 mV, 0.2 s
        for at, lead in enumerate(cells):
            left = 10 + at * sheet.cell
            lines = [zero + each[lead, : sheet.length] * MM_PER_MV for each in (recorded, rendered)]
            if observed[lead]:
                box = (left, edge - top - bottom), sheet.cell, top + bottom
                axes.add_patch(Rectangle(*box, color="#0072b2", alpha=0.09))
                axes.plot(left + x, lines[0], color=INK, lw=1.0)
                words = f"{LEADS[lead]}  given"
            else:
                # Recorded wide and pale under rendered narrow: where they agree, both stay visible.
                axes.plot(left + x, lines[0], color=INK, lw=2.0, alpha=0.5)
                axes.plot(left + x, lines[1], color=RENDERED, lw=0.9)
                r = pearson(recorded[lead], rendered[lead])
                words = f"{LEADS[lead]}  r {r:.3f}" if math.isfinite(r) else f"{LEADS[lead]}  r not defined"
            axes.text(left + 1, edge - 1, words, va="top", weight="bold", fontsize=8.5, color=INK)
        edge -= top + bottom
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    handles = [
        Line2D([], [], color=INK, lw=1, label="given to the model"),
        Line2D([], [], color=INK, lw=2, alpha=0.5, label="hidden, as recorded"),
        Line2D([], [], color=RENDERED, lw=1.1, label="hidden, as rendered"),
    ]
    axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.005), ncols=3, fontsize=8.5)
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
    sheet = _Sheet.of(recorded, rendered, fs)
    height = sheet.inches(10.5)
    figure = _figure(10.5, height if vcg is None else height + 3.3)
    upper: Any = figure
    if vcg is not None:
        parts: Any = figure.subfigures(2, 1, height_ratios=(height, 3.3))
        upper, lower = parts
        _draw_loop(lower, vcg, reference)
    upper.suptitle(title, fontsize=11, weight="bold")
    _draw_ecg(upper.subplots(), recorded, rendered, observed, fs, sheet)
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
    """Leads of one recording, one below the other, with what a flag marks shaded; see `charts.strips`."""
    return charts.strips(_figure(10.5, 0.72 * len(names) + 0.9), ecg, names, marks, fs, title, start_s)


# --- tables ---------------------------------------------------------------------------------------------


@_style()
def table_figure(name: str, rows: Rows) -> Figure:
    """One of TABLE_FIGURES from the rows of its table."""
    data = frame(rows)
    if name == "training_curves":
        return charts.training(_figure(9.5, 3.1), data)
    data = of_model(data) if name == "transfer" else of_split(data)
    if name in ("missing_lead", "transfer"):
        panels = max(len(set(column(data, "lead_set").map(left_out))), 1)
        series = "database" if name == "transfer" else "method"
        return charts.lead_set_bars(_figure(10.5, 3.1 * panels + 0.4), data, series)
    if name == "personal":
        protocols = max(len(distinct(data, "protocol")), 1)
        return charts.personal(_figure(10.5, 2.9 * protocols + 0.4), data)
    draw, size = {
        "ttt": (charts.ttt, (9.5, 3.6)),
        "probe": (charts.probe, (10.5, 3.8)),
        "energy": (charts.energy, (9.5, 3.1)),
    }[name]
    return draw(_figure(*size), data)


#: Stage -> figures of its tables: figure, table.
TABLE_FIGURES = {
    "train": {"training_curves": "history"},
    "reconstruction": {"energy": "energy"},
    "missing_lead": {"missing_lead": "lead_sets", "ttt": "ttt", "personal": "personal"},
    "linear_probe": {"probe": "probe"},
    "transfer": {"transfer": "missing_lead"},
}


def table_figures(stage: str, tables: Mapping[str, Rows]) -> dict[str, Callable[[], Figure]]:
    """The figures of one stage's tables by name, each drawn when it is called for; see `stage_figures`."""
    names = TABLE_FIGURES.get(stage, {})
    return {
        name: partial(table_figure, name, tables[table])
        for name, table in names.items()
        if len(tables.get(table, ()))
    }


def stage_figures(
    stage: str, tables: Mapping[str, Rows], arrays: Mapping[str, np.ndarray] | None = None
) -> dict[str, Figure]:
    """The figures of one stage by name; tables and arrays that are absent or empty give no figure.

    tables: name -> rows (history, lead_sets, ttt, personal, probe, energy). arrays: example_recorded,
    example_rendered [n, 12, T], example_vcg, example_frank [n, 3, T], of which the first are drawn,
    example_given [12] bool, fs in Hz (100 where absent). An unknown stage has no figures.
    """
    if stage not in TABLE_FIGURES:
        return {}
    return {name: draw() for name, draw in table_figures(stage, tables).items()} | _example(arrays or {})


def write_figures(
    stage: str, tables: Mapping[str, Rows], arrays: Mapping[str, np.ndarray], folder: str | Path
) -> None:
    """The figures of one stage (see `stage_figures`) as PNG files; replaces the folder."""
    with fresh_folder(folder) as fresh:
        for name, figure in stage_figures(stage, tables, arrays).items():
            save(figure, fresh / f"{name}.png")


def _example(arrays: Mapping[str, np.ndarray]) -> dict[str, Figure]:
    """The first example window: its twelve leads and its loop."""
    if not len(arrays.get("example_recorded", ())):
        return {}
    first = {name: np.asarray(values)[0] for name, values in arrays.items() if np.ndim(values) == 3}
    fs = float(np.asarray(arrays.get("fs", 100.0)))
    vcg, frank = first["example_vcg"], first.get("example_frank")
    given = np.asarray(arrays.get("example_given", np.ones(len(LEADS), dtype=bool)))
    names = "+".join(name for name, on in zip(LEADS, given, strict=True) if on) or "no lead"
    title = "All twelve leads given" if given.all() else f"Twelve leads from {names}"
    twelve = first["example_recorded"], first["example_rendered"]
    sheet = ecg_sheet(*twelve, given, fs, title, vcg, frank)
    return {"ecg_overlay": sheet, "vcg_loop": vcg_loop(vcg, fs, frank)}
