"""data/raw -> data/records: records read, checked, filtered, resampled; nothing dropped without a reason.

A few records make a batch (batches.py), which this process, one beside it or the worker of a Dask scheduler
conditions; this process puts the results in order and writes them. They depend on the records and the
settings alone. Memory depends neither on the number of records nor on their length.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from ecggen.io.npy_rows import NpyRows
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.source import read_sources
from ecggen.prepare.labels.records import patient_notes
from ecggen.prepare.preprocess.batches import Batch, RecordResult, batches, condition_batch
from ecggen.prepare.preprocess.conditioning import preprocessing_settings
from ecggen.prepare.preprocess.sources import LabelledSource, describe_sources
from ecggen.prepare.preprocess.tables import RecordTables
from ecggen.utils.config import DataConfig, PreprocessConfig
from ecggen.utils.display import Progress
from ecggen.utils.files import fresh_folder, write_json
from ecggen.utils.parallel import cores, ordered_map, workers

#: Records, or bytes of raw files, from which local processes are worth the second that their start takes.
MANY_RECORDS, MANY_BYTES = 1000, 100 << 20


def preprocess(
    raw: Path, out: Path, data: DataConfig, config: PreprocessConfig, *, backend: str = "auto"
) -> dict[str, Any]:
    """Read the records that raw/source.json lists and write out/ (see data/README.md). Returns the counts.

    data.scheduler and data.workers say who computes. A bad record goes to rejected.csv with its reason.
    Raises RecordError if no record is usable, SourceError for a broken list, ConfigError for a filter that
    cannot be built, WorkerError for workers that cannot be used or were lost; then `out` is as it was.
    """
    sources = [LabelledSource(source, data.limit, data.patient) for source in read_sources(raw)]
    settings = preprocessing_settings(data, config, backend)
    raw_bytes, number = (sum(each.source.bytes for each in sources), sum(each.listed for each in sources))
    many = number >= MANY_RECORDS or raw_bytes >= MANY_BYTES
    processes = data.workers or (cores() if many else 1)
    with workers(data.scheduler, processes) as pool, fresh_folder(out) as folder:
        # Below the result, which all who write to it see, and gone with it where this process is killed.
        parts = folder / "parts"
        parts.mkdir()
        with (
            RecordTables(folder) as tables,
            closing(NpyRows(folder / "signals.npy", len(LEADS))) as signals,
            closing(NpyRows(folder / "frank.npy", len(FRANK))) as frank,
            closing(Progress("records", number)) as progress,
        ):
            for source in sources:
                for name, reason in source.source.rejected.items():
                    tables.add(source, RecordResult(name, error=reason), signals.rows)
                items = batches(source, parts, data.fs, config, settings["backend"])
                for result in ordered_map(condition_batch, items, pool, split=Batch.split):
                    progress.add(len(result.records))
                    offset = signals.rows
                    signals.move_file(result.signals, sum(record.rows for record in result.records))
                    frank.move_file(result.frank, sum(record.frank_rows for record in result.records))
                    for record in result.records:
                        tables.add(source, record, offset)
                        offset += record.rows
        if frank.rows != signals.rows:  # not every record has them
            (folder / "frank.npy").unlink()
        shutil.rmtree(parts, ignore_errors=True)
        counts = tables.counts(sources)
        meta = {"fs": data.fs, "leads": list(LEADS), "preprocessing": settings, "counts": counts}
        write_json(folder / "meta.json", meta | {"source": describe_sources(sources)})
    return counts


def notes(counts: dict[str, Any]) -> list[str]:
    """Sentences for the user: what was left out."""
    lines = []
    if counts["rejected"]:
        lines.append(
            f"{counts['rejected']} of {counts['listed']} records are left out, see data/records/rejected.csv."
        )
    lines += [
        f"{name}: none of its {each['listed']} records is usable, so it is not in the data set."
        for name, each in counts["by_database"].items()
        if not each["records"]
    ]
    if 0 < counts["records_with_frank"] < counts["records"]:
        lines.append(
            f"{counts['records_with_frank']} of {counts['records']} records have Frank leads: they are left "
            "out, as the VCG is compared only where all records have them."
        )
    return lines + patient_notes(counts["by_database"])
