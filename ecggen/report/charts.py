"""Result tables drawn on a figure that the caller made; `ecggen.report.figures` is the way in.

Every function takes a matplotlib figure and rows, draws, and returns the figure; matplotlib is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecggen.report.tables import (
    Row,
    Rows,
    label,
    lead_set_words,
    left_out,
    lowest,
    model_first,
    number,
    ordered,
    protocol_words,
)

INK = "#1f2933"
#: Okabe and Ito's colours, told apart by colour-blind readers too; the model always takes the first.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#999999", "#b8a800", "#444444")


def training(figure: Any, history: Rows) -> Any:
    """Loss, validation r and learning rate by epoch; columns epoch, train_loss, val_loss, val_r, lr."""
    panels = figure.subplots(1, 3)
    epochs = [number(row.get("epoch", index)) for index, row in enumerate(history)]
    sets = ((("train_loss", "val_loss"), "loss"), (("val_r",), "validation r"), (("lr",), "learning rate"))
    for axes, (columns, name) in zip(panels, sets, strict=True):
        for index, column in enumerate(columns):
            values = [number(row.get(column)) for row in history]
            if np.isfinite(values).any():
                words = {"train_loss": "training", "val_loss": "validation"}.get(column, column)
                mark = "o" if len(values) < 40 else None
                axes.plot(epochs, values, color=COLOURS[index], marker=mark, ms=3, label=words)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if panels[0].lines:
        panels[0].legend()
    return figure


def _interval(row: Row, key: str, low: str, high: str) -> tuple[float, float, float]:
    """(value, distance down, distance up); the distances are NaN where the table has no interval."""
    value = number(row.get(key))
    return value, max(value - number(row.get(low)), 0.0), max(number(row.get(high)) - value, 0.0)


def _grouped_bars(
    axes: Any, rows: Rows, group: str, series: str, cell: tuple[str, str, str], names: Sequence[str]
) -> None:
    """Bars of column cell[0] with intervals cell[1:], one group per `group`, one colour per `series`."""
    groups = ordered(rows, group)
    by_key = {(str(row.get(group)), str(row.get(series))): row for row in rows}
    width = 0.84 / max(len(names), 1)
    for index, name in enumerate(names):
        found = [(at, by_key[(item, name)]) for at, item in enumerate(groups) if (item, name) in by_key]
        if not found:
            continue
        values = np.array([_interval(row, *cell) for _, row in found])
        at = np.array([place for place, _ in found]) + (index - (len(names) - 1) / 2) * width
        axes.bar(at, values[:, 0], width * 0.92, color=COLOURS[index % len(COLOURS)], label=label(name))
        if np.isfinite(values[:, 1:]).any():
            axes.errorbar(
                at, values[:, 0], values[:, 1:].T, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.2
            )
    long = max((len(item) for item in groups), default=0) > 12 or len(groups) > 9
    axes.set_xticks(
        range(len(groups)),
        [lead_set_words(name) for name in groups],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.yaxis.grid(True, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _legend_above(figure: Any, panels: Sequence[Any]) -> None:
    """One legend for all panels."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {words: bar for bar, words in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        columns = min(len(handles), 5)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)


def missing_lead(figure: Any, rows: Rows) -> Any:
    """One panel for the named lead sets, one for leave-one-out."""
    names = model_first(rows)
    parts = [
        ("leads given", [row for row in rows if not left_out(str(row.get("lead_set", "")))]),
        ("one precordial lead hidden", [row for row in rows if left_out(str(row.get("lead_set", "")))]),
    ]
    parts = [part for part in parts if part[1]] or [("leads given", [])]
    panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for axes, (name, chosen) in zip(panels, parts, strict=True):
        _grouped_bars(axes, chosen, "lead_set", "method", ("r", "r_low", "r_high"), names)
        low = lowest(chosen, "r")
        axes.set(ylim=(min(0, low * 1.05), 1), xlabel=name, ylabel="mean r, hidden leads")
    _legend_above(figure, panels)
    return figure


def transfer(figure: Any, rows: Rows) -> Any:
    """Mean r of hidden leads by lead set, a colour per database; home, which stands first, is the model's."""
    names = ordered(rows, "database")
    parts = [[row for row in rows if left_out(row.get("lead_set")) == single] for single in (False, True)]
    words = ("leads given", "one precordial lead hidden")
    shown = [(name, chosen) for name, chosen in zip(words, parts, strict=True) if chosen] or [(words[0], [])]
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (name, chosen) in zip(panels, shown, strict=True):
        _grouped_bars(axes, chosen, "lead_set", "database", ("r", "r_low", "r_high"), names)
        low = min(lowest(chosen, "r"), lowest(chosen, "r_low"))
        axes.set(ylim=(min(0.0, low * 1.05), 1), xlabel=name, ylabel="mean r, hidden leads")
    _legend_above(figure, panels)
    return figure


def ttt(figure: Any, rows: Rows) -> Any:
    """Mean r and RMSE of hidden leads against inner steps; the closed form as a dashed line of its own.

    Rows: lead_set, step, kind (ttt, record, closed_form, w0), r, rmse_mv.
    """
    panels = figure.subplots(1, 2)
    for axes, column, name in zip(panels, ("r", "rmse_mv"), ("mean r", "RMSE (mV)"), strict=True):
        for index, lead_set in enumerate(ordered(rows, "lead_set")):
            colour = COLOURS[index % len(COLOURS)]
            own = [row for row in rows if str(row.get("lead_set")) == lead_set]
            steps = [row for row in own if row.get("kind", "ttt") in ("ttt", "", None)]
            steps = sorted(steps, key=lambda row: number(row.get("step")))
            x = [number(row.get("step")) for row in steps]
            axes.plot(x, [number(row.get(column)) for row in steps], "o-", ms=3, color=colour, label=lead_set)
            for row in own:
                if row.get("kind") == "closed_form":
                    axes.axhline(number(row.get(column)), color=colour, ls="--", lw=0.9)
                elif row.get("kind") == "w0":
                    axes.plot([0], [number(row.get(column))], "D", ms=5, mfc="none", color=colour)
                elif row.get("kind") == "record":
                    at = number(row.get("step"))
                    axes.plot([at], [number(row.get(column))], "*", ms=8, mfc="none", color=colour)
        axes.set(xlabel="inner steps (test-time training)", ylabel=f"{name}, hidden leads")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = panels[0].get_legend_handles_labels()
    kinds = {row.get("kind") for row in rows}
    styles = {"closed_form": ("--", "", "closed form"), "w0": ("", "D", "start W0")}
    styles["record"] = ("", "*", "one W for the record")
    for kind, (line, marker, words) in styles.items():
        if kind in kinds:
            handles += panels[0].plot([], [], ls=line, marker=marker, mfc="none", color="#555555")
            labels.append(words)
    if handles:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def personal(figure: Any, rows: Rows) -> Any:
    """Mean r of hidden leads with a personal reference, one panel per protocol."""
    protocols = ordered(rows, "protocol") or [""]
    panels = figure.subplots(len(protocols), 1, squeeze=False)[:, 0]
    names = model_first(rows)
    for axes, protocol in zip(panels, protocols, strict=True):
        chosen = [row for row in rows if str(row.get("protocol") or "") == protocol]
        _grouped_bars(axes, chosen, "lead_set", "method", ("r", "r_low", "r_high"), names)
        low = lowest(chosen, "r")
        axes.set(
            title=f"reference: {protocol_words(protocol)}",
            ylim=(min(0, low * 1.05), 1),
            ylabel="mean r, hidden leads",
        )
    _legend_above(figure, panels)
    return figure


def probe(figure: Any, rows: Rows) -> Any:
    """AUROC per class: frozen features beside their controls, 95 % intervals, chance as a dashed line."""
    axes = figure.subplots()
    series = "features" if any("features" in row for row in rows) else "method"
    _grouped_bars(axes, rows, "class", series, ("auroc", "low", "high"), model_first(rows, series))
    axes.axhline(0.5, color="#555555", ls="--", lw=0.9)
    low = lowest(rows, "auroc", 0.5)
    axes.set(ylim=(min(0.4, low - 0.02), 1), ylabel="AUROC")
    _legend_above(figure, [axes])
    return figure


def energy(figure: Any, rows: Rows) -> Any:
    """Per part (dipole, residual ...): share of the recorded energy it holds and explains (medians).

    Rows: part, share_median, explained_median (fractions of one).
    """
    axes = figure.subplots()
    columns = (("share_median", "energy of the part"), ("explained_median", "energy that it explains"))
    for index, (column, words) in enumerate(columns):
        values = [100 * number(row.get(column)) for row in rows]
        if np.isfinite(values).any():
            at = np.arange(len(rows)) + (index - 0.5) * 0.4
            bars = axes.bar(at, values, 0.38, color=COLOURS[index], label=words)
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(rows)), [label(row.get("part", "")) for row in rows])
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
    time = start_s + np.arange(ecg.shape[1]) / fs
    end = start_s + ecg.shape[1] / fs
    # One scale for all; an artefact of many mV must not make the beats disappear.
    most = float(np.nanmax(np.abs(ecg))) if ecg.size else 1.0
    limit = min(max(1.0, 1.05 * most), 5.0)
    for axes, name, line in zip(panels, names, ecg, strict=True):
        own = [(a, b) for leads, a, b in marks if not leads or name in leads]
        for a, b in own:
            axes.axvspan(max(a, start_s), min(b, end), color=COLOURS[0], alpha=0.16, lw=0)
        axes.plot(time, line, color=COLOURS[0] if own else INK, lw=0.8)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", weight="bold" if own else "normal")
        axes.set(xlim=(start_s, end), ylim=(-limit, limit))
        axes.grid(True, color="#e3e3e3", lw=0.5)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("seconds; amplitude in mV")
    figure.suptitle(title, fontsize=11, weight="bold")
    return figure
