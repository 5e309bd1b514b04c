"""data/raw -> data/records: every record read, judged, filtered, resampled; nothing dropped without a reason.

A few records in a row are a task (chunks.py). Tasks run in this process, in processes beside it, or on a Dask
scheduler; this process puts what they return in order and writes it. The outputs depend on the
records and the rules alone, whoever worked; memory depends neither on the number of records nor on their
length.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ecggen.io.npy_rows import NpyAppender
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.preprocess.chunks import Chunk, ChunkDone, chunks, run_chunk, shown
from ecggen.prepare.preprocess.conditioning import Conditioned, condition_recording, preprocessing_settings
from ecggen.prepare.preprocess.record_tables import RECORD_COLUMNS, SPAN_COLUMNS, RecordTables
from ecggen.prepare.preprocess.run_parts import Part, described, read_parts
from ecggen.utils.config import DataConfig, PreprocessConfig
from ecggen.utils.files import fresh_folder, write_json
from ecggen.utils.parallel import cores, ordered_map, workers

__all__ = [
    "RECORD_COLUMNS",
    "SPAN_COLUMNS",
    "Conditioned",
    "condition_recording",
    "preprocess",
    "preprocessing_settings",
]

#: Records, or bytes of raw files, from which local processes are worth the second that their start takes.
MANY_RECORDS, MANY_BYTES = 1000, 100 << 20


def preprocess(
    raw: Path, out: Path, data: DataConfig, rules: PreprocessConfig, *, backend: str = "auto"
) -> dict[str, Any]:
    """Read the records that raw/source.json lists and write out/ (see data/README.md). Returns the counts.

    data.scheduler and data.workers say who works. Raises RecordError if no record is usable, SourceError for
    a broken list, ConfigError for a filter that cannot be built, WorkerError for workers that cannot be used
    or were lost; then `out` is as it was. A single bad record goes to rejected.csv with its reason.
    """
    parts = read_parts(raw, data.limit, data.patient)
    settings = preprocessing_settings(data, rules, backend)
    with (
        fresh_folder(out) as folder,
        _part_files(out) as place,
        RecordTables(folder) as tables,
        NpyAppender(folder / "signals.npy", len(LEADS)) as signals,
        NpyAppender(folder / "frank.npy", len(FRANK)) as frank,
        workers(data.scheduler, data.workers or (cores() if _many(parts) else 1)) as pool,
    ):
        for part in parts:
            tasks = chunks(part, place, data.fs, rules, settings["backend"])
            for done in ordered_map(run_chunk, tasks, pool, describe=_named, split=Chunk.split):
                offset = signals.rows
                _take(done, place, signals, frank)
                for record in done.records:
                    tables.add(part, record, offset)
                    offset += record.rows
        tables.require_records()
        tables.close()
        frank.close()
        if frank.rows != signals.rows:
            (folder / "frank.npy").unlink()
        counts = tables.counts(parts, frank.rows == signals.rows)
        meta = {
            "fs": data.fs,
            "leads": list(LEADS),
            "preprocessing": settings,
            "source": described(parts),
            "counts": counts,
        }
        write_json(folder / "meta.json", meta)
    return counts


def _many(parts: Sequence[Part]) -> bool:
    """Whether local processes are worth their start."""
    return (
        sum(part.listed for part in parts) >= MANY_RECORDS or sum(p.source.bytes for p in parts) >= MANY_BYTES
    )


def _take(done: ChunkDone, place: Path, signals: NpyAppender, frank: NpyAppender) -> None:
    """Move the rows of a task's part files to the end of the arrays."""
    for rows, name, count in (
        (signals, done.signals, sum(record.rows for record in done.records)),
        (frank, done.frank, sum(record.frank_rows for record in done.records)),
    ):
        if name:
            rows.append_file(place / name, count)
            (place / name).unlink()


def _named(chunk: Chunk) -> str:
    return f"record{'s' if len(chunk.names) > 1 else ''} {shown(chunk.names)}"


@contextlib.contextmanager
def _part_files(out: Path) -> Iterator[Path]:
    """A folder beside `out`, so that all who write to `out` see it too; removed at the end.

    Not within the result: a lost worker that is not quite dead may still write to it.
    """
    place = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.parts."))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
