"""transfer.sources -> data/transfer: a folder of windows for each database that a model is tested on.

The way is the pipeline's own (list, preprocess, window), with the same parameters, and every window in the
test split. Raw records are listed or written in passing and not kept.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.prepare import synthetic
from ecggen.prepare.preprocess import preprocess
from ecggen.prepare.source import SourceError, list_source, write_source
from ecggen.prepare.windows import window
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import fresh_folder, write_csv

DATABASES_FILE = "databases.csv"
DATABASE_COLUMNS = ("database", "source", "kind", "records_listed", "records", "windows", "fingerprint")


class TransferSourceError(EcggenError):
    """A database of transfer.sources that cannot be used."""


def transfer_windows(config: Config, out: Path) -> dict[str, Any]:
    """Write out/databases.csv and a window folder out/NAME for each of config.transfer.sources.

    Returns the counts of each. Raises TransferSourceError, which names the source; then `out` is as it was.
    """
    rules = replace(config.window, split="test")
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    with fresh_folder(out) as folder:
        for text in config.transfer.sources:
            scratch = folder / ".scratch"  # beside the result: records may need as much room
            try:
                said = prepare_records(text, config, scratch / "raw")
                preprocess(scratch / "raw", scratch / "records", config.data, config.preprocess)
                name = folder_name(said["name"], counts)
                counts[name] = window(scratch / "records", folder / name, config.data, rules)
            except EcggenError as error:
                raise TransferSourceError(f"transfer.sources names {text!r}: {error}") from error
            shutil.rmtree(scratch)
            row = {"database": name, "source": text, "kind": said["source"]}
            row |= {"fingerprint": said["fingerprint"]}
            rows.append(row | {key: counts[name][key] for key in ("records_listed", "records", "windows")})
        write_csv(folder / DATABASES_FILE, rows, DATABASE_COLUMNS)
    return {"databases": len(rows), "counts": counts}


def prepare_records(text: str, config: Config, raw: Path) -> dict[str, Any]:
    """Fill `raw` from KIND:PLACE and return what its source.json says.

    synthetic: the population of data set `synthetic`; synthetic:other: other people on another device;
    wfdb:FOLDER: local records, which are not copied. Raises SourceError.
    """
    kind, _, place = text.strip().partition(":")
    if kind == "synthetic" and not place:
        return synthetic.write_dataset(config.synthetic, raw, limit=config.data.limit)
    if kind == "synthetic" and place == "other":
        rules, device = synthetic.other_population(config.synthetic), synthetic.OTHER_DEVICE
        return synthetic.write_dataset(
            rules, raw, limit=config.data.limit, device=device, name="synthetic_other"
        )
    if kind == "wfdb" and place:
        return write_source(raw, list_source(place, fs=config.data.fs, limit=config.data.limit))
    raise SourceError(
        f"{text!r} is no source: write wfdb:FOLDER, synthetic or synthetic:other, for example "
        "wfdb:/my/georgia."
    )


def folder_name(name: str, taken: Container[str]) -> str:
    """A name made of letters, digits, _ and -, which no database before it has, whatever the case.

    File systems that fold the case must not see two as one, so names are in lower case.
    """
    base = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-") or "database"
    number, found = 1, base
    while found in taken:
        number += 1
        found = f"{base}_{number}"
    return found
