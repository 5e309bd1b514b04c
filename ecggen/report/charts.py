"""Result tables drawn on a figure of the caller; `ecggen.report.figures` is the way in.

Every function takes a matplotlib figure and a data frame (`ecggen.report.tables.frame`), draws, and returns
the figure; matplotlib is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from ecggen.report.tables import column, distinct, label

GREY, LINE = "#5b6770", "#d9dee3"
#: Okabe and Ito's colours, told apart by colour-blind readers too; the model always takes the first.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#999999", "#b8a800", GREY)


def dots(
    figure: Any, panels: Mapping[str, pd.DataFrame], names: tuple[str, str], value: Sequence[str], words: str
) -> Any:  # fmt: skip
    """One panel for each title and table: a line of the page for each group, a dot for each series.

    names: the column of the groups, and that of the series; value: the columns of the place and of the two
    ends of its interval; words: label of the axis, which starts at .5 or before the lowest.
    """
    group, series = names
    every = pd.concat(panels.values())
    entries = distinct(every, series, model_first=True)
    lows = [column(every, name).min() - 0.02 for name in value[:2]]
    low = min(0.5, *(each for each in lows if math.isfinite(each)), 0.5)
    ratios = [len(distinct(data, group)) + 1 for data in panels.values()]
    columns = figure.subplots(len(panels), 1, sharex=True, height_ratios=ratios)
    handles: dict[str, Any] = {}
    for axes, (title, data) in zip(np.ravel(columns), panels.items(), strict=True):
        groups = distinct(data, group)
        for index, name in reversed(list(enumerate(entries))):  # the model lies on top
            rows = data[column(data, series) == name].drop_duplicates(group) if groups else data[:0]
            if rows.empty:
                continue
            places = np.array([groups.index(item) for item in rows[group]])
            places = places + 0.7 * ((index + 0.5) / len(entries) - 0.5)
            middle, *ends = (column(rows, each).to_numpy(float) for each in value)
            look = {"color": COLOURS[index % len(COLOURS)], "zorder": 3}
            size = 5.5 if index == 0 else 4
            handles[label(name)] = axes.plot(middle, places, "o", ms=size, label=label(name), **look)[0]
            if np.isfinite(arms := np.maximum([middle - ends[0], ends[1] - middle], 0)).any():
                axes.errorbar(middle, places, xerr=arms, fmt="none", elinewidth=0.9, ecolor=look["color"])
        axes.set_yticks(range(len(groups)), [label(name) for name in groups])
        axes.set_ylim(max(len(groups), 1) - 0.5, -0.5)
        axes.hlines(
            np.arange(0.5, len(groups) - 1), *(0, 1), transform=axes.get_yaxis_transform(), color=LINE, lw=0.6
        )
        axes.xaxis.grid(True, color=LINE, lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set(axisbelow=True, title=title)
        axes.set_xlim(low, 1.01)
    axes.set_xlabel(words)
    if handles:
        shown = {label(name): handles[label(name)] for name in entries if label(name) in handles}
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=2)
    return figure


def training(figure: Any, history: pd.DataFrame) -> Any:
    """Loss and validation r by epoch; columns epoch, train_loss, val_loss, val_r, val_r_personal."""
    panels = figure.subplots(1, 2)
    epochs = column(history, "epoch") if "epoch" in history else pd.Series(range(len(history)))
    names = {"train_loss": "training", "val_loss": "validation", "val_r": "nothing known"}
    names |= {"val_r_personal": "person known"}
    titles = {"loss": ["train_loss", "val_loss"], "validation r": ["val_r", "val_r_personal"]}
    for axes, (title, columns) in zip(panels, titles.items(), strict=True):
        for colour, name in zip(COLOURS, columns, strict=False):
            values = column(history, name)
            if values.notna().any():
                mark = "o" if len(values) < 40 else None
                axes.plot(epochs, values, color=colour, marker=mark, ms=3, label=names[name])
        axes.set(title=title, xlabel="epoch")
        axes.grid(True, color=LINE, lw=0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend()
    return figure


#: Kinds of rows of the table `ttt`: line and marker, its size, words.
_TTT_KINDS = {
    "ttt": ("o-", 3, ""),
    "closed_form": ("--", 0, "closed form"),
    "w0": ("D", 5, "start W0"),
    "record": ("*", 8, "one W for the record"),
}


def ttt(figure: Any, data: pd.DataFrame) -> Any:
    """Mean r of hidden leads against inner steps; the closed form as a dashed line of its own.

    Columns: lead_set, step, kind (ttt, record, closed_form, w0), r.
    """
    kinds = column(data, "kind").replace("", "ttt")
    data = data.assign(kind=kinds, step=column(data, "step")).sort_values("step", kind="stable")
    axes, handles = figure.subplots(), []
    for colour, lead_set in zip(cycle(COLOURS), distinct(data, "lead_set")):
        of_set = data[data["lead_set"] == lead_set]
        for kind, (mark, size, _) in _TTT_KINDS.items():
            rows = of_set[of_set["kind"] == kind]
            values = column(rows, "r")
            if kind == "closed_form":
                for value in values:
                    axes.axhline(value, ls=mark, color=colour, lw=0.9)
            elif len(rows):
                fill = colour if kind == "ttt" else "none"
                axes.plot(rows["step"].fillna(0), values, mark, ms=size, mfc=fill, color=colour)
        handles += axes.plot([], [], "o-", ms=3, color=colour, label=label(lead_set))
    for kind, (mark, size, words) in _TTT_KINDS.items():
        if words and (kinds == kind).any():
            handles += axes.plot([], [], mark, ms=size, mfc="none", color=GREY, label=words)
    axes.set(xlabel="inner steps (test-time training)", ylabel="mean r, hidden leads")
    axes.grid(True, color=LINE, lw=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure
