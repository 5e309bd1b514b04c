"""What metrics.json repeats of the tables, nested by what it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ecggen.eval.bootstrap import MARGIN_COLUMNS
from ecggen.eval.probe_features import MACRO
from ecggen.eval.result import Rows, rounded

METHODS = ("model", "closed_form", "linear_regression", "linear_regression_context", "mean_beat")
NO_COUNT = ("train", "database", "kind")  # columns of the table databases
Tables = Mapping[str, Rows]


def nested(
    rows: Rows, keys: Sequence[str], cells: str | Sequence[str], of_model: Sequence[str] = (), **where: Any
) -> dict[str, Any]:
    """The rows that hold the cells `where`, by their columns `keys`: one cell of each row, or several.

    of_model: those of the rows of the model, where they are others.
    """
    out: dict[str, Any] = {}
    for row in rows:
        if any(
            row[name] not in (value if isinstance(value, tuple) else (value,))
            for name, value in where.items()
        ):
            continue
        at = out
        *path, last = (f"{row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in keys)
        for key in path:
            at = at.setdefault(key, {})
        if isinstance(cells, str):
            at[last] = row[cells]
        else:
            names = of_model if of_model and row["method"] == "model" else cells
            at[last] = {name: row[name] for name in names if name in row}
    return out


def reconstruction_metrics(tables: Tables) -> dict[str, Any]:
    figures = ("r", "r_low", "r_high", "rmse_mv", "snr_db")
    state = ("icc_mean", "retrieval", "chance", "n")
    out = {
        split: nested(tables["overall"], ["part"], figures, split=split) for split in ("validation", "test")
    }
    out["state"] = nested(tables["state"], ["protocol", "descriptor"], state)
    out["vcg"] = nested(tables["vcg"], ["lead_set", "method"], "r", split="test", axis="mean")
    out["energy"] = nested(tables["energy"], ["part"], "explained_median", split="test")
    return rounded(out)


def missing_lead_metrics(tables: Tables, trained: int) -> dict[str, Any]:
    """trained: inner steps that the model was trained with."""
    figures, by = ("r", "r_low", "r_high", "rmse_mv"), ["lead_set", "method"]
    of_model = (*figures, "coverage", "n_patients", *MARGIN_COLUMNS)
    gains = [{"gain": 0.0, **row} for row in tables["ttt"]]
    return rounded(
        {
            "test": nested(tables["lead_sets"], by, figures, of_model, split="test", method=METHODS),
            "validation": nested(tables["lead_sets"], by, ("r",), split="validation", method=METHODS),
            "ttt_gain_r": nested(gains, ["lead_set"], "gain", kind="ttt", step=trained),
            "personal": nested(tables["personal"], ["protocol", *by], "r", split="test"),
        }
    )


def linear_probe_metrics(tables: Tables) -> dict[str, Any]:
    rows = [{"macro_auroc": row["auroc"], **row} for row in tables["probe"]]
    cells = ("macro_auroc", "low", "high", *MARGIN_COLUMNS)
    shares = nested(tables["label_shares"], ["share", "method"], "auroc")
    out = nested(rows, ["split", "method"], cells, **{"class": MACRO})
    return rounded(out | ({"label_shares": shares} if shares else {}))


def transfer_metrics(tables: Tables, unprobed: Mapping[str, str]) -> dict[str, Any]:
    """unprobed: why a database could not be probed."""
    of_model = (
        *("r", "r_low", "r_high", "rmse_mv", "mae_mv", "snr_db", "coverage", "n_patients", "difference"),
        *("difference_low", "difference_high", "within"),
        *("matched_r", "matched_difference", "matched_low", "matched_high", "n_matched"),
    )
    counts = [{key: value for key, value in row.items() if value != ""} for row in tables["databases"]]
    databases = {str(row["database"]): {k: v for k, v in row.items() if k not in NO_COUNT} for row in counts}
    within: dict[str, dict[str, int]] = {}
    for row in tables["missing_lead"]:
        if row["method"] == "model" and row.get("within"):
            sets = within.setdefault(row["database"], {"within": 0, "below": 0, "of": 0})
            sets["within"] += row["within"] == "yes"
            sets["below"] += row["within"] == "no"
            sets["of"] += 1
    probe: dict[str, Any] = {other: {"skipped": why} for other, why in unprobed.items()}
    for row in tables["probe"]:
        if "home_auroc" in row:
            blank = {"classes": {}, "records": row["n_records"], "macro_auroc": {}, "home_macro_auroc": {}}
            cells = probe.setdefault(row["database"], blank)
            if row["class"] == MACRO:
                cells["macro_auroc"][row["method"]] = row["auroc"]
                cells["home_macro_auroc"][row["method"]] = row["home_auroc"]
            else:
                cells["classes"][row["class"]] = row["n_positive"]
    by, pair = ["database", "lead_set", "method"], ("r", "difference")
    return rounded(
        {
            "databases": databases,
            "probe": probe,
            "missing_lead": nested(tables["missing_lead"], by, pair, of_model, method=METHODS),
            "reconstruction": nested(tables["reconstruction"], ["database", "part"], pair),
            "personal": nested(tables["personal"], ["database", "protocol", *by[1:]], "r"),
            "lead_sets_within": within,
        }
    )
