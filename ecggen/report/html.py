"""The words of the report page: numbers, tables, figures and the page itself as HTML. All text is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecggen.report.tables import Row, Rows, label, lead_set_words, model_first, number, ordered

#: Column -> (heading, digits after the point; None = as it stands).
COLUMNS: dict[str, tuple[str, int | None]] = {
    "split": ("Split", None),
    "method": ("Method", None),
    "features": ("Features", None),
    "class": ("Class", None),
    "lead": ("Lead", None),
    "lead_set": ("Leads given", None),
    "protocol": ("Reference", None),
    "descriptor": ("Descriptor", None),
    "axis": ("Axis", None),
    "part": ("Part", None),
    "source": ("VCG", None),
    "share_median": ("Energy of the part, median share", 3),
    "explained_median": ("Energy explained, median share", 3),
    "closure_median": ("Gap at beat borders, median", 3),
    "n_records": ("Records", 0),
    "n_beats": ("Beats", 0),
    "dimensions": ("Dimensions", 0),
    "r": ("r", 3),
    "algebra_r": ("r, leads fixed by algebra", 3),
    "over": ("Compared with", None),
    "database": ("Database", None),
    "record": ("Record", None),
    "labels": ("Labels", None),
    "home_r": ("r, own test split", 3),
    "home_auroc": ("AUROC, own test split", 3),
    "difference": ("Difference", 3),
    "matched_difference": ("Difference, same labels", 3),
    "n_matched": ("Windows compared", 0),
    "linear_regression": ("r, linear regression", 3),
    "best_subspace_3": ("r, best three dimensions", 3),
    "personal_gain": ("Gain of r", 3),
    "coverage": ("in the 90 % interval", 3),
    "rmse_mv": ("RMSE (mV)", 3),
    "mae_mv": ("MAE (mV)", 3),
    "r_step": ("r", 4),
    "rmse_step": ("RMSE (mV)", 4),
    "snr_db": ("SNR (dB)", 1),
    "auroc": ("AUROC", 3),
    "rank": ("Rank", 0),
    "condition": ("Condition number", 1),
    "icc_mean": ("Intraclass correlation, mean", 3),
    "icc_median": ("Intraclass correlation, median", 3),
    "retrieval": ("Retrieval accuracy", 3),
    "chance": ("Chance", 4),
    "days": ("Days between, median", 0),
    "step": ("Inner steps", 0),
    "kind": ("Kind", None),
    "n": ("Windows", 0),
    "n_windows": ("Windows", 0),
    "n_patients": ("Patients", 0),
    "n_positive": ("Positives", 0),
    "n_constant": ("Constant leads skipped", 0),
}
#: Value column -> its interval columns, folded into one cell.
INTERVALS = {
    "r": ("r_low", "r_high"),
    "rmse_mv": ("rmse_low", "rmse_high"),
    "auroc": ("low", "high"),
    "personal_gain": ("gain_low", "gain_high"),
    "difference": ("difference_low", "difference_high"),
    "matched_difference": ("matched_low", "matched_high"),
}
ABSENT = "not measured"


def escape(text: Any) -> str:
    """Text made safe for HTML, quotes included."""
    return html.escape(str(text), quote=True)


def format_number(value: Any, digits: int | None = 3) -> str:
    """A number with fixed digits (typographic minus); infinity as a sign; other text as it stands."""
    got = number(value)
    if math.isnan(got):
        return "–" if value in (None, "") or isinstance(value, float) else str(value)  # noqa: RUF001
    if math.isinf(got):
        return "∞" if got > 0 else "−∞"  # noqa: RUF001
    if digits is None:
        digits = 0 if got == int(got) else 3
    return f"{got:,.{digits}f}".replace(",", "\u202f").replace("-", "−")  # noqa: RUF001


def cell(row: Row, column: str) -> str:
    """One cell as plain text, its interval in brackets behind it."""
    digits = COLUMNS.get(column, ("", None))[1]
    value = row.get(column, "")
    if column in ("lead_set", "split", "class", "lead", "axis", "database", "record", "labels"):
        return lead_set_words(value) if column == "lead_set" else str(value)
    if column in ("method", "features", "protocol", "descriptor", "kind", "part", "source"):
        return label(value)
    text = format_number(value, digits)
    low, high = (row.get(name) for name in INTERVALS.get(column, ("", "")))
    if math.isfinite(number(low)) and math.isfinite(number(high)):
        text += f" [{format_number(low, digits)}, {format_number(high, digits)}]"
    return text


def table(rows: Rows, columns: Sequence[str] = (), *, caption: str = "", best: str = "") -> str:
    """Rows as an HTML table: `columns` that occur (all where none is named); the largest of `best` marked."""
    if not rows:
        return paragraph(f"{caption}: {ABSENT}." if caption else f"{ABSENT.capitalize()}.")
    folded = {name for pair in INTERVALS.values() for name in pair}
    names = [name for name in (columns or list(rows[0])) if any(name in row for row in rows)]
    names = [name for name in names if columns or name not in folded]
    tops = [number(row.get(best)) for row in rows] if best else []
    top = max((value for value in tops if math.isfinite(value)), default=math.nan)
    head = [COLUMNS.get(name, (name.replace("_", " "), None))[0] for name in names]
    body = []
    for row in rows:
        marked = {best} if best and number(row.get(best)) == top else set()
        body.append([(cell(row, name), name in marked) for name in names])
    return grid(head, body, caption)


def grid(head: Sequence[str], body: Sequence[Sequence[tuple[str, bool]]], caption: str = "") -> str:
    """An HTML table of plain text; True marks a best cell. The first column heads its row."""
    lines = ['<div class="wide"><table>']
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    lines.append("<thead><tr>" + "".join(f'<th scope="col">{escape(h)}</th>' for h in head) + "</tr></thead>")
    lines.append("<tbody>")
    for row in body:
        first, rest = row[0], row[1:]
        cells = [f'<th scope="row">{escape(first[0])}</th>']
        cells += [
            f'<td class="best">{_folded(t, " ★")}</td>' if on else f"<td>{_folded(t)}</td>" for t, on in rest
        ]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _folded(text: str, mark: str = "") -> str:
    """Escaped, with an interval in brackets on a line of its own: a table on a phone stays narrow."""
    value, bracket, interval = text.partition(" [")
    return escape(value) + mark + (f"<br><small>[{escape(interval)}</small>" if bracket else "")


def pivot(
    rows: Rows,
    down: str,
    across: str,
    value: str,
    *,
    extra: Sequence[str] = (),
    caption: str = "",
    mark: str = "highest",
) -> str:
    """One line per `down`, one column per `across` (the model first), `value` inside.

    mark: "highest" or "lowest" value of a line is starred; empty = none.

    extra: further columns that belong to the line, taken from its first row.
    """
    if not rows:
        return paragraph(f"{caption}: {ABSENT}.")
    methods = model_first(rows, across)
    by_key = {(str(row.get(down)), str(row.get(across))): row for row in rows}
    extra = [name for name in extra if any(row.get(name) not in (None, "") for row in rows)]
    head = [COLUMNS[down][0] if down in COLUMNS else down, *(COLUMNS[name][0] for name in extra)]
    body = []
    for item in ordered(rows, down):
        found = [by_key.get((item, method)) for method in methods]
        values = [number(row.get(value)) if row else math.nan for row in found]
        choose = min if mark == "lowest" else max
        top = choose((v for v in values if math.isfinite(v)), default=math.nan)
        first = next(row for row in found if row)
        line = [(cell({down: item}, down), False), *((cell(first, name), False) for name in extra)]
        several = bool(mark) and len({v for v in values if math.isfinite(v)}) > 1
        for row, got in zip(found, values, strict=True):
            line.append((cell(row, value) if row else "–", several and got == top))  # noqa: RUF001
        body.append(line)
    return grid(head + [label(name) for name in methods], body, caption)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def details(summary: str, inside: str) -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"


def picture(path: Path, words: str) -> str:
    """A PNG inside the page, with its caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:image/png;base64,{data}"
    return (
        f'<figure><img alt="{escape(words)}" src="{source}"><figcaption>{escape(words)}</figcaption></figure>'
    )


def facts(pairs: Mapping[str, Any]) -> str:
    """A list of names and values; values that are absent are left out."""
    shown = {name: value for name, value in pairs.items() if value not in (None, "", [], {})}
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown.items())
    return f"<dl>{inside}</dl>" if inside else paragraph("Nothing is recorded.")


def page(title: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page. sections: (id, heading, HTML inside)."""
    links = "".join(f'<a href="#{escape(key)}">{escape(name)}</a>' for key, name, _ in sections)
    body = "\n".join(
        f'<section id="{escape(key)}"><h2>{escape(name)}</h2>\n{inside}\n</section>'
        for key, name, inside in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="warn">{escape(NOTICE)}</p></header>\n'
        f"<nav>{links}</nav>\n<main>\n{body}\n</main>\n"
        f"<footer>{escape(NOTICE)}</footer>\n</body>\n</html>\n"
    )


NOTICE = "Research use only. Not a medical device; no warranty; not for diagnosis or treatment."

_CSS = """
:root{--ink:#1f2933;--soft:#5b6770;--line:#d9dee3;--paper:#fff;--tint:#f5f7f9;--mark:#b3480a;--warn:#fdf1e7}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#a5b0ba;--line:#3a444d;--paper:#14191e;
--tint:#1d242a;--mark:#ffa463;--warn:#33261a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.4rem;border-top:2px solid var(--line)}
p,dl,ul{max-width:46rem}
.lead{font-size:1.1rem}
.warn{background:var(--warn);border-left:4px solid var(--mark);padding:.5rem .8rem}
.soft,figcaption,caption,footer{color:var(--soft);font-size:.9rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem .9rem;font-size:.92rem}
a{color:var(--mark)}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}
caption{text-align:left;padding:.2rem 0}
th,td{padding:.28rem .65rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{background:var(--tint);vertical-align:bottom;white-space:normal;min-width:4.5rem}
th[scope=row],thead th:first-child{text-align:left;font-weight:600}
.text td{text-align:left;white-space:normal}
td small{color:var(--soft);font-weight:400}
td.best{font-weight:700;color:var(--mark)}
figure{margin:1rem 0}
figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:4px}
dl{display:grid;grid-template-columns:minmax(6rem,17rem) minmax(8rem,1fr);gap:.15rem 1rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--mark)}
footer{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:.6rem}
@media print{nav{display:none}body{max-width:none;font-size:11pt}figure,tr{break-inside:avoid}
h2{break-after:avoid}
.wide{overflow:visible}table{font-size:8pt}th,td{white-space:normal;padding:.15rem .3rem}}
"""
