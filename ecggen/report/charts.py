"""Result tables drawn on a figure of the caller; `ecggen.report.figures` is the way in.

Every function takes a matplotlib figure and a data frame (`ecggen.report.tables.frame`), draws, and returns
the figure; matplotlib is not imported.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from ecggen.report.tables import column, distinct, label

INK, GREY = "#1f2933", "#555555"
#: Okabe and Ito's colours, told apart by colour-blind readers too; the model always takes the first.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#999999", "#b8a800", "#444444")


def bars(
    figure: Any, panels: Mapping[str, pd.DataFrame], names: tuple[str, str], value: Sequence[str], words: str,
    bottom: float = 0.0,
) -> Any:  # fmt: skip
    """One panel for each title and table. names: the column of a group of bars, and that of their colours.

    value: the column of the height and, where there are intervals, of their two ends; bars without intervals
    carry their height. words: label of the vertical axis, which starts at `bottom` or below the lowest bar.
    """
    group, series = names
    low_columns = [column(data, name).min() for data in panels.values() for name in value[:2]]
    lowest = min((low - 0.02 for low in low_columns if math.isfinite(low)), default=bottom)
    bar_names = distinct(pd.concat(panels.values()), series, model_first=True)
    handles: dict[str, Any] = {}
    for axes, (title, data) in zip(np.ravel(figure.subplots(len(panels), 1)), panels.items(), strict=True):
        groups = distinct(data, group)
        width = 0.84 / max(len(bar_names), 1)
        for index, name in enumerate(bar_names if groups else ()):
            rows = data[column(data, series) == name].drop_duplicates(group)
            if rows.empty:
                continue
            places = np.array([groups.index(item) for item in rows[group]]) - 0.42 + (index + 0.5) * width
            height, *ends = (column(rows, each).to_numpy(float) for each in value)
            handles[label(name)] = axes.bar(
                places, height, width * 0.92, color=COLOURS[index % len(COLOURS)], label=label(name)
            )
            if not ends:
                axes.bar_label(handles[label(name)], fmt="%.1f", fontsize=8, padding=1)
            elif np.isfinite(arms := np.maximum([height - ends[0], ends[1] - height], 0)).any():
                axes.errorbar(places, height, arms, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.2)
        ticks = [textwrap.fill(label(name), 10, break_long_words=False) for name in groups]
        crowded = (
            len(groups) > 9 or max((len(line) for tick in ticks for line in tick.split("\n")), default=0) > 12
        )
        turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if crowded else {}
        axes.set_xticks(range(len(groups)), [label(name) for name in groups] if crowded else ticks, **turn)
        axes.yaxis.grid(True, color="#dddddd", lw=0.6)
        axes.set(axisbelow=True, title=title, ylabel=words)
        if value[1:]:
            axes.set_ylim(min(bottom, lowest), 1)
    if handles:
        ncols = min(len(handles), 5)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=ncols)
    return figure


def training(figure: Any, history: pd.DataFrame) -> Any:
    """Loss, validation r and learning rate by epoch; columns epoch, train_loss, val_loss, val_r, lr."""
    panels = figure.subplots(1, 3)
    epochs = column(history, "epoch") if "epoch" in history else pd.Series(range(len(history)))
    names = {"train_loss": "training", "val_loss": "validation"}
    titles = {"loss": ["train_loss", "val_loss"], "validation r": ["val_r"], "learning rate": ["lr"]}
    for axes, (title, columns) in zip(panels, titles.items(), strict=True):
        for colour, name in zip(COLOURS, columns, strict=False):
            values = column(history, name)
            if values.notna().any():
                mark = "o" if len(values) < 40 else None
                axes.plot(epochs, values, color=colour, marker=mark, ms=3, label=names.get(name, name))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if panels[0].lines:
        panels[0].legend()
    return figure


#: Kinds of rows of the table `ttt`: line and marker, its size, words.
_TTT_KINDS = {
    "ttt": ("o-", 3, ""),
    "closed_form": ("--", 0, "closed form"),
    "w0": ("D", 5, "start W0"),
    "record": ("*", 8, "one W for the record"),
}


def ttt(figure: Any, data: pd.DataFrame) -> Any:
    """Mean r and RMSE of hidden leads against inner steps; the closed form as a dashed line of its own.

    Columns: lead_set, step, kind (ttt, record, closed_form, w0), r, rmse_mv.
    """
    kinds = column(data, "kind").replace("", "ttt")
    data = data.assign(kind=kinds, step=column(data, "step")).sort_values("step", kind="stable")
    panels = figure.subplots(1, 2)
    for axes, name, words in zip(panels, ("r", "rmse_mv"), ("mean r", "RMSE (mV)"), strict=True):
        for colour, lead_set in zip(cycle(COLOURS), distinct(data, "lead_set")):
            of_set = data[data["lead_set"] == lead_set]
            for kind, (mark, size, _) in _TTT_KINDS.items():
                rows = of_set[of_set["kind"] == kind]
                values, style = column(rows, name), {"color": colour, "lw": 0.9 if kind != "ttt" else None}
                if kind == "closed_form":
                    for value in values:
                        axes.axhline(value, ls=mark, **style)
                elif len(rows):
                    fill = colour if kind == "ttt" else "none"
                    axes.plot(rows["step"].fillna(0), values, mark, ms=size, mfc=fill, **style)
        axes.set(xlabel="inner steps (test-time training)", ylabel=f"{words}, hidden leads")
        axes.xaxis.get_major_locator().set_params(integer=True)
    sets = zip(cycle(COLOURS), distinct(data, "lead_set"))
    handles = [panels[0].plot([], [], "o-", ms=3, color=c, label=label(name))[0] for c, name in sets]
    for kind, (mark, size, words) in _TTT_KINDS.items():
        if words and (kinds == kind).any():
            handles += panels[0].plot([], [], mark, ms=size, mfc="none", color=GREY, label=words)
    if handles:
        figure.legend(handles=handles, loc="outside right upper")
    return figure
