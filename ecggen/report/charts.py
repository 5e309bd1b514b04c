"""Result tables drawn on a figure of the caller; `ecggen.report.figures` is the way in.

Every function takes a matplotlib figure and a data frame (`ecggen.report.tables.frame`), draws, and returns
the figure; matplotlib is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ecggen.report.tables import column, distinct, label, of_lead_sets, protocol_words

INK = "#1f2933"
#: Okabe and Ito's colours, told apart by colour-blind readers too; the model always takes the first.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#999999", "#b8a800", "#444444")


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


def _grouped_bars(
    axes: Any, data: pd.DataFrame, group: str, series: str, value: tuple[str, str, str], names: Sequence[str]
) -> None:
    """Bars of column value[0] with intervals value[1:], one group per `group`, one colour per `series`."""
    groups = distinct(data, group)
    width = 0.84 / max(len(names), 1)
    for index, name in enumerate(names):
        of_series = data[column(data, series) == name].drop_duplicates(group)
        if of_series.empty:
            continue
        places = np.array([groups.index(item) for item in of_series[group]])
        places = places + (index - (len(names) - 1) / 2) * width
        r, low, high = (column(of_series, each).to_numpy(float) for each in value)
        axes.bar(places, r, width * 0.92, color=COLOURS[index % len(COLOURS)], label=label(name))
        arms = np.maximum([r - low, high - r], 0)
        if np.isfinite(arms).any():
            axes.errorbar(places, r, arms, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.2)
    crowded = max(map(len, groups), default=0) > 12 or len(groups) > 9
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(groups)), [label(name) for name in groups], **turn)
    axes.yaxis.grid(True, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _lowest(data: pd.DataFrame, *names: str) -> float:
    """The lower end of an r axis: the smallest entry of some columns, at most 0."""
    values = [column(data, name).min() for name in names]
    return min([1.05 * value for value in values if math.isfinite(value)] + [0.0])


def _legend_above(figure: Any, panels: Sequence[Any]) -> None:
    """One legend for all panels."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {words: bar for bar, words in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        columns = min(len(handles), 5)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)


def lead_set_bars(figure: Any, data: pd.DataFrame, series: str) -> Any:
    """Mean r of hidden leads, a colour per `series` (method or database); one panel for the named lead sets,
    one for those that leave one lead out."""
    parts = {
        "leads given": of_lead_sets(data, leaves_one_out=False),
        "one precordial lead hidden": of_lead_sets(data, leaves_one_out=True),
    }
    parts = {name: part for name, part in parts.items() if len(part)} or {"leads given": data}
    panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    names = distinct(data, series, model_first=True)
    for axes, (name, part) in zip(panels, parts.items(), strict=True):
        _grouped_bars(axes, part, "lead_set", series, ("r", "r_low", "r_high"), names)
        axes.set(ylim=(_lowest(part, "r", "r_low"), 1), xlabel=name, ylabel="mean r, hidden leads")
    _legend_above(figure, panels)
    return figure


def personal(figure: Any, data: pd.DataFrame) -> Any:
    """Mean r of hidden leads with a personal reference, one panel per protocol."""
    protocols = distinct(data, "protocol") or [""]
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    names = distinct(data, "method", model_first=True)
    for axes, protocol in zip(panels, protocols, strict=True):
        part = data[column(data, "protocol") == protocol]
        _grouped_bars(axes, part, "lead_set", "method", ("r", "r_low", "r_high"), names)
        axes.set(title=f"reference: {protocol_words(protocol)}", ylabel="mean r, hidden leads")
        axes.set(ylim=(_lowest(part, "r"), 1))
    _legend_above(figure, panels)
    return figure


def ttt(figure: Any, data: pd.DataFrame) -> Any:
    """Mean r and RMSE of hidden leads against inner steps; the closed form as a dashed line of its own.

    Columns: lead_set, step, kind (ttt, record, closed_form, w0), r, rmse_mv.
    """
    panels = figure.subplots(1, 2)
    kinds = column(data, "kind").replace("", "ttt")
    points = {"w0": ("D", 5, "start W0"), "record": ("*", 8, "one W for the record")}
    for axes, name, words in zip(panels, ("r", "rmse_mv"), ("mean r", "RMSE (mV)"), strict=True):
        for index, lead_set in enumerate(distinct(data, "lead_set")):
            colour = COLOURS[index % len(COLOURS)]
            rows = data.assign(value=column(data, name), at=column(data, "step"))
            rows = rows[data["lead_set"] == lead_set]
            of_kind = kinds[rows.index]
            steps = rows[of_kind == "ttt"].sort_values("at")
            axes.plot(steps["at"], steps["value"], "o-", ms=3, color=colour, label=label(lead_set))
            for value in rows["value"][of_kind == "closed_form"]:
                axes.axhline(value, color=colour, ls="--", lw=0.9)
            for kind, (marker, size, _) in points.items():
                chosen = rows[of_kind == kind]
                if len(chosen):
                    at, value = chosen["at"].fillna(0), chosen["value"]
                    axes.plot(at, value, marker, ms=size, mfc="none", color=colour)
        axes.set(xlabel="inner steps (test-time training)", ylabel=f"{words}, hidden leads")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = panels[0].get_legend_handles_labels()
    styles = {"closed_form": ("", 0, "closed form"), **points}
    for kind, (marker, _, words) in styles.items():
        if (kinds == kind).any():
            line = "" if marker else "--"
            handles += panels[0].plot([], [], ls=line, marker=marker, mfc="none", color="#555555")
            labels.append(words)
    if handles:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def probe(figure: Any, data: pd.DataFrame) -> Any:
    """AUROC per class: frozen features beside their controls, 95 % intervals, chance as a dashed line."""
    axes = figure.subplots()
    names = distinct(data, "method", model_first=True)
    _grouped_bars(axes, data, "class", "method", ("auroc", "low", "high"), names)
    axes.axhline(0.5, color="#555555", ls="--", lw=0.9)
    lowest = column(data, "auroc").min()
    axes.set(ylim=(min(0.4, lowest - 0.02) if math.isfinite(lowest) else 0.4, 1), ylabel="AUROC")
    _legend_above(figure, [axes])
    return figure


def energy(figure: Any, data: pd.DataFrame) -> Any:
    """Per part (dipole, residual ...): share of the recorded energy it holds and explains (medians).

    Columns: part, share_median, explained_median (fractions of one).
    """
    axes = figure.subplots()
    columns = {"share_median": "energy of the part", "explained_median": "energy that it explains"}
    for index, (name, words) in enumerate(columns.items()):
        values = 100 * column(data, name)
        if values.notna().any():
            places = np.arange(len(data)) + (index - 0.5) * 0.4
            bars = axes.bar(places, values, 0.38, color=COLOURS[index], label=words)
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(data)), [label(part).replace(" ", "\n") for part in column(data, "part")])
    axes.set(ylabel="% of the recorded energy")
    _legend_above(figure, [axes])
    return figure


def strips(
    figure: Any,
    ecg: np.ndarray,
    names: Sequence[str],
    marks: Sequence[tuple[frozenset[str], float, float]],
    fs: float,
    title: str,
    start_s: float = 0.0,
) -> Any:
    """Leads one below the other; ecg [L, T] mV in the order of names; marks: (leads, from, to) in seconds.

    A mark without leads covers all of them. start_s: the time of the first sample.
    """
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True, sharey=True))
    time, end = start_s + np.arange(ecg.shape[1]) / fs, start_s + ecg.shape[1] / fs
    # One scale for all; an artefact of many mV must not make the beats disappear.
    limit = min(max(1.0, 1.05 * float(np.nanmax(np.abs(ecg), initial=0))), 5.0)
    for axes, name, line in zip(panels, names, ecg, strict=True):
        marked = [(a, b) for leads, a, b in marks if not leads or name in leads]
        for a, b in marked:
            axes.axvspan(max(a, start_s), min(b, end), color=COLOURS[0], alpha=0.16, lw=0)
        axes.plot(time, line, color=COLOURS[0] if marked else INK, lw=0.8)
        weight = "bold" if marked else "normal"
        axes.set_ylabel(name, rotation=0, ha="right", va="center", weight=weight)
        axes.set(xlim=(start_s, end), ylim=(-limit, limit))
        axes.grid(True, color="#e3e3e3", lw=0.5)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("seconds; amplitude in mV")
    figure.suptitle(title, fontsize=11, weight="bold")
    return figure
