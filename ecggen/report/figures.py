"""Arrays and tables in, figures out. The only file that imports matplotlib; it keeps no state.

Legend: ECG in mV [12, T], rows in the order of `ecggen.leads.LEADS`; VCG in mV [3, T] on the Frank axes
(+x left, +y inferior, +z posterior); observed [12] bool, True = given to the model. Tables are lists of
rows as `ecggen.utils.files.read_csv` returns them (text) or as the evaluation makes them (numbers).
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ecggen.leads import LEADS
from ecggen.report import charts
from ecggen.report.tables import Rows, is_model, left_out, of_split, ordered
from ecggen.utils.files import atomic_path, fresh_folder

MM_PER_S, MM_PER_MV = 25.0, 10.0  # the usual paper speed and gain
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


def save(fig: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all, without time stamp or software name, and clear the figure.

    The same figure gives the same bytes on one installation (matplotlib and its fonts decide the pixels).
    They are those of `Figure.savefig`, which draws everything twice.
    """
    with _style(), atomic_path(path) as temporary:
        fig.dpi = matplotlib.rcParams["savefig.dpi"]
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        nobody: dict[str, Any] = {"Software": None, "Creation Time": None}
        pixels, dots = canvas.buffer_rgba(), int(fig.dpi)
        imsave(temporary, pixels, format="png", origin="upper", dpi=dots, metadata=nobody)
    fig.clear()


# --- ECG and VCG ----------------------------------------------------------------------------------------


#: Rows of the sheet as positions in LEADS: I aVR V1 V4 | II aVL V2 V5 | III aVF V3 V6.
_CELLS = [[column * 3 + row for column in range(4)] for row in range(3)]


def _row_geometry(recorded: np.ndarray, rendered: np.ndarray) -> list[tuple[int, int]]:
    """(top, bottom) in mm around the zero line of each row of cells, wide enough for its leads."""
    out = []
    for cells in _CELLS:
        both = np.concatenate([recorded[cells], rendered[cells]]) * MM_PER_MV
        both = both[np.isfinite(both)]
        high = float(both.max()) if both.size else 0.0
        low = float(both.min()) if both.size else 0.0
        # Steps of 5 mm keep the zero lines on the grid; the cap keeps an artefact from filling the page.
        top = 5 * math.ceil((min(max(high, 8), 40) + 5) / 5)
        out.append((top, 5 * math.ceil(min(max(-low, 5), 40) / 5)))
    return out


def _grid(axes: Any, width: float, height: float) -> None:
    for step, colour, line in ((1, GRID_MINOR, 0.3), (5, GRID_MAJOR, 0.6)):
        segments = [[(x, 0), (x, height)] for x in np.arange(0, width + 0.5, step)]
        segments += [[(0, y), (width, y)] for y in np.arange(0, height + 0.5, step)]
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=line, zorder=0))


def _paper(
    recorded: np.ndarray, rendered: np.ndarray, fs: float, seconds: float
) -> tuple[int, int, list[tuple[int, int]]]:
    """(samples drawn, width of a cell in mm, top and bottom of each row of cells in mm)."""
    length = min(recorded.shape[1], max(2, round(seconds * fs)))
    shown, over = recorded[:, :length], rendered[:, :length]
    return length, 5 * math.ceil(length / fs * MM_PER_S / 5), _row_geometry(shown, over)


def _height(paper: tuple[int, int, list[tuple[int, int]]], width: float) -> float:
    """Height in inches of a sheet `width` inches wide, with room for title and legend."""
    return width * sum(map(sum, paper[2])) / (4 * paper[1] + 10) + 0.85


def _draw_ecg(
    axes: Any,
    recorded: np.ndarray,
    rendered: np.ndarray,
    observed: np.ndarray,
    fs: float,
    paper: tuple[int, int, list[tuple[int, int]]],
) -> None:
    """Three rows of four leads, every cell the same first samples, drawn in mm of paper."""
    length, cell, geometry = paper
    shown, over = recorded[:, :length], rendered[:, :length]
    width, height = 4 * cell + 10, sum(map(sum, geometry))
    _grid(axes, width, height)
    x = np.arange(length) / fs * MM_PER_S
    edge = float(height)
    for cells, (top, bottom) in zip(_CELLS, geometry, strict=True):
        zero = edge - top
        axes.plot([1, 3, 3, 7, 7, 9], zero + np.array([0, 0, 10, 10, 0, 0]), color=INK, lw=0.8)  # 1 mV, 0.2 s
        for column, lead in enumerate(cells):
            left = 10 + column * cell
            if observed[lead]:
                box = Rectangle((left, edge - top - bottom), cell, top + bottom, color="#0072b2", alpha=0.09)
                axes.add_patch(box)
            # Recorded wide and pale under rendered narrow: where they agree, both stay visible.
            wide = 1.0 if observed[lead] else 2.0
            axes.plot(
                left + x, zero + shown[lead] * MM_PER_MV, color=INK, lw=wide, alpha=1 if wide == 1 else 0.5
            )
            label = f"{LEADS[lead]}  given"
            if not observed[lead]:
                axes.plot(left + x, zero + over[lead] * MM_PER_MV, color=RENDERED, lw=0.9)
                score = pearson(recorded[lead], rendered[lead])
                label = (
                    f"{LEADS[lead]}  r {score:.3f}"
                    if math.isfinite(score)
                    else f"{LEADS[lead]}  r not defined"
                )
            axes.text(left + 1, edge - 1, label, va="top", weight="bold", fontsize=8.5, color=INK)
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


def _check_ecg(recorded: Any, rendered: Any, observed: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    recorded, rendered = np.asarray(recorded, dtype=float), np.asarray(rendered, dtype=float)
    observed = np.asarray(observed, dtype=bool)
    assert recorded.ndim == 2 and recorded.shape[0] == len(LEADS), recorded.shape
    assert rendered.shape == recorded.shape, (rendered.shape, recorded.shape)
    assert observed.shape == (len(LEADS),), observed.shape
    return recorded, rendered, observed


@_style()
def ecg_overlay(
    recorded: np.ndarray,
    rendered: np.ndarray,
    observed: np.ndarray,
    fs: float,
    title: str,
    seconds: float = 2.5,
) -> Figure:
    """Twelve leads on ECG paper (25 mm/s, 10 mm/mV): given leads shaded, hidden ones rendered over recorded.

    recorded, rendered [12, T] in mV, observed [12] bool. Drawn are the first `seconds`; the r beside each
    hidden lead is that of all T samples.
    """
    recorded, rendered, observed = _check_ecg(recorded, rendered, observed)
    paper = _paper(recorded, rendered, fs, seconds)
    figure = _figure(10.5, _height(paper, 10.5))
    figure.suptitle(title, fontsize=11, weight="bold")
    _draw_ecg(figure.subplots(), recorded, rendered, observed, fs, paper)
    return figure


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


def _draw_loop(parent: Any, vcg: np.ndarray, reference: np.ndarray | None, spans: Sequence[str]) -> None:
    """The loop in space, and its frontal, transverse and left sagittal views, all on one scale."""
    lines = [(_dense(vcg), RENDERED, 0.9, spans[0])]
    if reference is not None:
        lines.insert(0, (_dense(np.asarray(reference, dtype=float)), INK, 0.8, spans[1]))
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
def vcg_loop(vcg: np.ndarray, fs: float, reference: np.ndarray | None = None) -> Figure:
    """The vectorcardiogram [3, T] in mV as a loop in space and in three planes; Frank axes.

    reference [3, T]: measured or known Frank leads, drawn beneath.
    """
    vcg = np.asarray(vcg, dtype=float)
    assert vcg.ndim == 2 and vcg.shape[0] == 3, vcg.shape
    reference = None if reference is None else np.asarray(reference, dtype=float)
    figure = _figure(11.5, 3.4)
    figure.suptitle(f"Vectorcardiogram, {vcg.shape[1] / fs:.2f} s", fontsize=11, weight="bold")
    _draw_loop(figure, vcg, reference, ("rendered", "measured"))
    return figure


@_style()
def rendered_ecg(
    recorded: np.ndarray,
    rendered: np.ndarray,
    observed: np.ndarray,
    vcg: np.ndarray,
    fs: float,
    title: str,
    reference: np.ndarray | None = None,
    seconds: float = 2.5,
) -> Figure:
    """`ecg_overlay` above `vcg_loop`, in one picture; shapes as there."""
    recorded, rendered, observed = _check_ecg(recorded, rendered, observed)
    paper = _paper(recorded, rendered, fs, seconds)
    sheet = _height(paper, 10.5)
    figure = _figure(10.5, sheet + 3.3)
    parts: Any = figure.subfigures(2, 1, height_ratios=(sheet, 3.3))
    upper, lower = parts
    upper.suptitle(title, fontsize=11, weight="bold")
    _draw_ecg(upper.subplots(), recorded, rendered, observed, fs, paper)
    _draw_loop(lower, np.asarray(vcg, dtype=float), reference, ("rendered", "measured"))
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

    ecg [L, T] mV in the order of names; marks: (leads, from, to) in seconds, without leads for all; start_s:
    the time of the first sample.
    """
    ecg = np.asarray(ecg, dtype=float)
    assert ecg.ndim == 2 and ecg.shape[0] == len(names), (ecg.shape, names)
    return charts.strips(_figure(10.5, 0.72 * len(names) + 0.9), ecg, names, marks, fs, title, start_s)


# --- tables ---------------------------------------------------------------------------------------------


@_style()
def training_curves(history: Rows) -> Figure:
    """Loss, validation r and learning rate by epoch; columns epoch, train_loss, val_loss, val_r, lr."""
    return charts.training(_figure(9.5, 3.1), history)


@_style()
def missing_lead_bars(lead_sets: Rows, split: str = "test") -> Figure:
    """Mean r of hidden leads per lead set, the model beside its baselines, with 95 % intervals."""
    rows = of_split(lead_sets, split)
    parts = len({left_out(row.get("lead_set")) for row in rows})
    return charts.missing_lead(_figure(10.5, 3.1 * max(parts, 1) + 0.4), rows)


@_style()
def transfer_bars(missing_lead: Rows) -> Figure:
    """Mean r of hidden leads per lead set, the model at home beside other databases, with 95 % intervals."""
    rows = [row for row in missing_lead if is_model(row.get("method"))]
    parts = len({left_out(row.get("lead_set")) for row in rows})
    return charts.transfer(_figure(10.5, 3.1 * max(parts, 1) + 0.4), rows)


@_style()
def ttt_curve(ttt: Rows) -> Figure:
    """Mean r and RMSE of hidden leads against inner steps; the closed form dashed.

    Rows: lead_set, step, kind (ttt, record, closed_form, w0), r, rmse_mv.
    """
    return charts.ttt(_figure(9.5, 3.6), ttt)


@_style()
def personal_bars(personal: Rows) -> Figure:
    """Mean r of hidden leads with a personal reference, one panel per protocol."""
    rows = of_split(personal)
    return charts.personal(_figure(10.5, 2.9 * max(len(ordered(rows, "protocol")), 1) + 0.4), rows)


@_style()
def probe_bars(probe: Rows) -> Figure:
    """AUROC per class: frozen features beside their controls, 95 % intervals, chance dashed."""
    return charts.probe(_figure(10.5, 3.8), of_split(probe))


@_style()
def energy_bars(reconstruction: Rows) -> Figure:
    """How much of the leads' energy the dipole and the residual head carry (per cent)."""
    return charts.energy(_figure(9.5, 3.1), of_split(reconstruction))


# --- per stage ------------------------------------------------------------------------------------------


def _first(arrays: Mapping[str, np.ndarray], name: str, ndim: int) -> np.ndarray | None:
    """`name` or `example_name`: the array itself, or its first entry where it holds several."""
    value = arrays.get(name, arrays.get(f"example_{name}"))
    return None if value is None else np.asarray(value) if np.ndim(value) == ndim else np.asarray(value)[0]


def _example(arrays: Mapping[str, np.ndarray]) -> dict[str, Figure]:
    """The first example window: its twelve leads, with the loop where there is one."""
    recorded, rendered = _first(arrays, "recorded", 2), _first(arrays, "rendered", 2)
    vcg, frank = _first(arrays, "vcg", 2), _first(arrays, "frank", 2)
    fs = float(np.asarray(arrays.get("fs", 100.0)))
    if recorded is None or rendered is None:
        return {} if vcg is None else {"vcg_loop": vcg_loop(vcg, fs, frank)}
    given = _first(arrays, "given", 1)
    if given is None:
        given = np.ones(len(LEADS), dtype=bool)
    names = "+".join(name for name, on in zip(LEADS, given, strict=True) if on) or "no lead"
    title = "All twelve leads given" if given.all() else f"Twelve leads from {names}"
    if vcg is None:
        return {"ecg_overlay": ecg_overlay(recorded, rendered, given, fs, title)}
    figure = rendered_ecg(recorded, rendered, given, vcg, fs, title, reference=frank)
    return {"ecg_overlay": figure, "vcg_loop": vcg_loop(vcg, fs, frank)}


#: Stage -> its drawings of tables: name, table, function of the rows.
_TABLES: dict[str, tuple[tuple[str, str, Callable[[Rows], Figure]], ...]] = {
    "train": (("training_curves", "history", training_curves),),
    "reconstruction": (("energy", "energy", energy_bars),),
    "missing_lead": (
        ("missing_lead", "lead_sets", missing_lead_bars),
        ("ttt", "ttt", ttt_curve),
        ("personal", "personal", personal_bars),
    ),
    "linear_probe": (("probe", "probe", probe_bars),),
    "transfer": (("transfer", "missing_lead", transfer_bars),),
}


def table_figures(stage: str, tables: Mapping[str, Rows]) -> dict[str, Callable[[], Figure]]:
    """The drawings of one stage's tables by name, each made when it is called for; see `stage_figures`."""
    makers = _TABLES.get(stage, ())
    return {name: partial(draw, tables[table]) for name, table, draw in makers if tables.get(table)}


def stage_figures(
    stage: str, tables: Mapping[str, Rows], arrays: Mapping[str, np.ndarray] | None = None
) -> dict[str, Figure]:
    """The figures of one stage by name; tables and arrays that are absent or empty give no figure.

    tables: name -> rows (history, lead_sets, ttt, personal, probe, energy). arrays, each also under
    `example_` + name, and [n, ...] of which the first is drawn: recorded, rendered [12, T], given [12] bool,
    vcg, frank [3, T]; fs in Hz (100 where absent). An unknown stage has no figures.
    """
    if stage not in _TABLES:
        return {}
    return {name: draw() for name, draw in table_figures(stage, tables).items()} | _example(arrays or {})


def write_figures(
    stage: str, tables: Mapping[str, Rows], arrays: Mapping[str, np.ndarray], folder: str | Path
) -> None:
    """The figures of one stage (see `stage_figures`) as PNG files; replaces the folder."""
    with fresh_folder(folder) as fresh:
        for name, figure in stage_figures(stage, tables, arrays).items():
            save(figure, fresh / f"{name}.png")
