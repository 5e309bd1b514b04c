"""transfer.sources -> data/transfer: a folder of windows for each database that a model is tested on.

The way is the pipeline's own (download, preprocess, window), with the same parameters, and every window in
the test split.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.prepare.download.source import PARTS, read_sources
from ecggen.prepare.download.specs import check_transfer_sources
from ecggen.prepare.download.stage import gather
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.window.stage import window
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import fresh_folder, write_csv

DATABASES_FILE = "databases.csv"
DATABASE_COLUMNS = ("database", "source", "kind", "records_listed", "records", "windows")


class TransferSourceError(EcggenError):
    """A database of transfer.sources that cannot be used."""


def transfer_windows(config: Config, raw: Path, out: Path) -> dict[str, Any]:
    """Write out/databases.csv and a window folder out/KEY for each of config.transfer.sources.

    raw: where the sources are listed, and downloaded to; what lies there already goes on where it stopped.
    Returns the counts of each. Raises TransferSourceError, which names the source; then `out` is as it was.
    """
    lines = config.transfer.sources
    window_config = replace(config.window, split="test")
    data = replace(config.data, patient="")  # the names of other databases are built in other ways
    try:
        gather(check_transfer_sources(config, [raw, out]), config, raw)
    except EcggenError as error:
        named = "transfer.sources" in str(error)
        raise TransferSourceError(f"{'' if named else 'transfer.sources: '}{error}") from error
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    with fresh_folder(out) as folder:
        for line, source in zip(lines, read_sources(raw), strict=True):
            records = folder / ".records"  # beside the result: they may need as much room
            try:
                preprocess(raw / PARTS / source.key, records, data, config.preprocess)
                counts[source.key] = window(records, folder / source.key, config.data, window_config)
            except EcggenError as error:
                raise TransferSourceError(f"transfer.sources names {line!r}: {error}") from error
            shutil.rmtree(records)
            numbers = {key: counts[source.key][key] for key in ("records_listed", "records", "windows")}
            rows.append({"database": source.key, "source": line, "kind": source.kind, **numbers})
        write_csv(folder / DATABASES_FILE, rows, DATABASE_COLUMNS)
    return {"databases": len(rows), "counts": counts}
