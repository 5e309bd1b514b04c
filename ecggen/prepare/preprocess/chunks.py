"""A few records in a row as one task: `run_chunk`, wherever it runs, and what it tells of them.

Which records make a task depends on the list of records alone, never on who works. A task writes the
conditioned signals of its records, one after the other, to a part file under a name that nobody else uses;
what it returns names that file. A task that was run twice, because its worker was lost, left two files, of
which one is named.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.io.annotations import AnnotationError, Beat, read_beats
from ecggen.io.npy_rows import RowWriter
from ecggen.io.records import AnyRecord, RecordError, open_record
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.array_table import Entry
from ecggen.prepare.preprocess.conditioning import condition_recording
from ecggen.prepare.preprocess.long_records import Verdict, condition_long, is_long
from ecggen.prepare.preprocess.run_parts import Part
from ecggen.utils.config import PreprocessConfig
from ecggen.utils.errors import EcggenError

#: Records of a task at most, and the size of the raw files, on average, from which there are fewer.
RECORDS, BYTES = 32, 8 << 20


class SharedFolderError(EcggenError):
    """A worker that does not see the folder that results go to."""


@dataclass(frozen=True)
class Chunk:
    """One task: names of records below root (entries: of a table instead), and how to treat them.

    parts: folder that the part files go to; fs in Hz, of the result; backend: "scipy" or "numpy".
    """

    root: Path
    names: tuple[str, ...]
    parts: Path
    fs: float
    rules: PreprocessConfig
    backend: str
    entries: tuple[Entry, ...] = ()

    def split(self) -> list[Chunk]:
        """The same, a task for each record."""
        return [
            replace(self, names=(name,), entries=self.entries[at : at + 1])
            for at, name in enumerate(self.names)
        ]


@dataclass(frozen=True)
class Done:
    """What is to be said of one record.

    error: why it cannot be used, else empty, and then the rest holds: rows of signals and of Frank leads; fs
    (Hz) and seconds as recorded; the header's comments; leads in the file [12] bool; findings; annotated
    beats, or why they cannot be read. unknown_channels: names of channels that were not understood.
    """

    name: str
    error: str = ""
    rows: int = 0
    frank_rows: int = 0
    fs: float = 0.0
    seconds: float = 0.0
    comments: tuple[str, ...] = ()
    in_file: NDArray[np.bool_] | None = None
    verdict: Verdict | None = None
    beats: tuple[Beat, ...] = ()
    unreadable: str = ""
    unknown_channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChunkDone:
    """The records of a task in order; signals and frank: names of the part files, "" = there are no rows."""

    records: tuple[Done, ...]
    signals: str = ""
    frank: str = ""


def chunks(part: Part, parts: Path, fs: float, rules: PreprocessConfig, backend: str) -> Iterator[Chunk]:
    """The tasks of one source, in the order of its records."""
    root = part.source.root.absolute()
    for names in part.blocks(chunk_size(part)):
        entries = tuple(part.table.entry(name) for name in names) if part.table else ()
        yield Chunk(root, names, parts.absolute(), fs, rules, backend, entries)


def chunk_size(part: Part) -> int:
    """Records of a task: fewer where the raw files are large, at least one."""
    mean = part.source.bytes / max(1, len(part.source.records))
    return max(1, min(RECORDS, int(BYTES / max(mean, 1.0))))


def run_chunk(chunk: Chunk) -> ChunkDone:
    """Read, judge, filter and resample the records of a task. A bad record is told of, never raised."""
    name = uuid.uuid4().hex
    places = [chunk.parts / f"{name}.{kind}" for kind in ("signals", "frank")]
    with contextlib.ExitStack() as stack:
        try:
            signals, frank = (
                stack.enter_context(RowWriter(place, len(leads)))
                for place, leads in zip(places, (LEADS, FRANK), strict=True)
            )
        except FileNotFoundError as error:
            raise SharedFolderError(
                f"A worker does not see the folder {chunk.parts}: records and results must lie on a file "
                "system that all workers share, under the same path."
            ) from error
        done = tuple(_run(chunk, at, signals, frank) for at in range(len(chunk.names)))
        named = [
            place.name if rows.rows else "" for place, rows in zip(places, (signals, frank), strict=True)
        ]
    for place, kept in zip(places, named, strict=True):
        if not kept:
            place.unlink()
    return ChunkDone(done, *named)


def _run(chunk: Chunk, at: int, signals: RowWriter, frank: RowWriter) -> Done:
    """One record; its signals are appended, or nothing is."""
    name, before = chunk.names[at], (signals.rows, frank.rows)
    try:
        opened = chunk.entries[at].open(name) if chunk.entries else open_record(chunk.root / name)
        verdict = _condition(opened, chunk, signals, frank)
    except RecordError as error:
        signals.cut(before[0])
        frank.cut(before[1])
        return Done(name, error=str(error), unknown_channels=error.unknown_channels)
    seconds = opened.n_samples / opened.fs
    beats, unreadable = ((), "") if chunk.entries else _beats(chunk.root / name, opened.fs, seconds)
    return Done(
        name,
        rows=signals.rows - before[0],
        frank_rows=frank.rows - before[1],
        fs=opened.fs,
        seconds=seconds,
        comments=tuple(opened.comments),
        in_file=opened.observed,
        verdict=verdict,
        beats=beats,
        unreadable=unreadable,
        unknown_channels=opened.unknown_channels,
    )


def _condition(record: AnyRecord, chunk: Chunk, signals: RowWriter, frank: RowWriter) -> Verdict:
    """Append one record to the part files, a long one in pieces, and say what is to be said of it."""

    def write(ecg: NDArray[np.float64], vcg: NDArray[np.float64] | None) -> None:
        signals.append(ecg.T)
        if vcg is not None:
            frank.append(vcg.T)

    if is_long(record):
        return condition_long(record, chunk.fs, chunk.rules, write, backend=chunk.backend)
    made = condition_recording(record.read(), chunk.fs, chunk.rules, backend=chunk.backend)
    write(made.ecg, made.frank)
    return Verdict(made.observed, made.spans, made.words, made.quality)  # the signals are on their way


def _beats(path: Path, fs: float, seconds: float) -> tuple[tuple[Beat, ...], str]:
    """Annotated beats, and why they cannot be read."""
    try:
        return tuple(read_beats(path, fs, seconds)), ""
    except AnnotationError as error:
        return (), str(error)


def shown(names: Sequence[str], most: int = 5) -> str:
    """The names in a sentence, the first few of many."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
