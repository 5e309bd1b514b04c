"""A batch of records, conditioned by one process.

Which records make a batch depends on the list of records alone, never on who computes. The signals of a batch
go to files under names that nobody else uses; a batch that was computed twice, because a process was lost,
left two pairs of files, of which one is named in the result.
"""

from __future__ import annotations

import errno
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ecggen.io.annotations import AnnotationError, Beat, read_beats
from ecggen.io.records import RecordError, open_record
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.array_table import Entry
from ecggen.prepare.preprocess.conditioning import Findings, condition_record
from ecggen.prepare.preprocess.sources import LabelledSource
from ecggen.utils.config import PreprocessConfig
from ecggen.utils.errors import EcggenError
from ecggen.utils.threads import reuse_freed_arrays

#: Records of a batch at most, and the size of the raw files, on average, from which there are fewer.
RECORDS, BYTES = 32, 8 << 20
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


class SharedFolderError(EcggenError):
    """A worker that does not see the folder that results go to."""


@dataclass(frozen=True)
class Batch:
    """records: names below `root`, with their lines of a table where the source is one.

    folder: for the signals; fs in Hz, of the result; flags of the database; backend: "scipy" or "numpy".
    """

    root: Path
    records: tuple[tuple[str, Entry | None], ...]
    folder: Path
    fs: float
    config: PreprocessConfig
    flags: tuple[str, ...]
    backend: str

    def split(self) -> list[Batch]:
        """A batch for each record."""
        return [replace(self, records=(record,)) for record in self.records]

    def __str__(self) -> str:
        names = [name for name, _ in self.records]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"record{'s' * (len(names) > 1)} {shown}"


@dataclass(frozen=True)
class RecordResult:
    """What is known of a record.

    error: why it cannot be used, else empty, and then the rest holds: findings; rows of signals and of Frank
    leads; fs (Hz) as recorded; the header's comments; annotated beats, or why they cannot be read.
    unknown_channels: names of channels that were not understood.
    """

    name: str
    error: str = ""
    findings: Findings | None = None
    rows: int = 0
    frank_rows: int = 0
    fs: float = 0.0
    comments: tuple[str, ...] = ()
    beats: tuple[Beat, ...] = ()
    unreadable: str = ""
    unknown_channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """The records of a batch in order; signals and frank: files of float32 rows [rows, 12 or 3]."""

    records: tuple[RecordResult, ...]
    signals: Path
    frank: Path


def batches(
    source: LabelledSource, folder: Path, fs: float, config: PreprocessConfig, backend: str
) -> Iterator[Batch]:
    """Those of one source, in the order of its records: smaller ones where the raw files are large."""
    mean = source.source.bytes / max(1, len(source.source.records))
    size = max(1, min(RECORDS, int(BYTES / max(mean, 1.0))))
    root = source.source.root.absolute()
    names = source.names()
    while chunk := tuple(itertools.islice(names, size)):
        records = tuple((name, source.table.entry(name) if source.table else None) for name in chunk)
        yield Batch(root, records, folder.absolute(), fs, config, source.flags, backend)


def condition_batch(batch: Batch) -> BatchResult:
    """Read, check, filter and resample the records of a batch. A bad record has an error in its result."""
    if not batch.folder.is_dir():
        raise SharedFolderError(
            f"A worker does not see the folder {batch.folder}: records and results must lie on a file system "
            "that all workers share, under the same path."
        )
    reuse_freed_arrays()
    stem = batch.folder / uuid.uuid4().hex
    signals, frank = stem.with_suffix(".signals"), stem.with_suffix(".frank")
    with signals.open("w+b") as ecg, frank.open("w+b") as vcg:
        results = tuple(_condition(batch, name, entry, ecg, vcg) for name, entry in batch.records)
    return BatchResult(results, signals, frank)


def _condition(batch: Batch, name: str, entry: Entry | None, ecg: BinaryIO, vcg: BinaryIO) -> RecordResult:
    """One record; its signals are appended to the files, or nothing is."""
    start, frank_start = ecg.tell(), vcg.tell()

    def write(signals: NDArray[np.float64], frank: NDArray[np.float64] | None) -> None:
        ecg.write(np.ascontiguousarray(signals.T, dtype="<f4").data)
        if frank is not None:
            vcg.write(np.ascontiguousarray(frank.T, dtype="<f4").data)

    try:
        record = entry.open(name) if entry else open_record(batch.root / name)
        findings = condition_record(
            record, batch.fs, batch.config, write, flags=batch.flags, backend=batch.backend
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a bad file leads to is said of this record; the others go on
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise
        for stream, size in ((ecg, start), (vcg, frank_start)):
            stream.seek(size)
            stream.truncate()
        if isinstance(error, RecordError):
            return RecordResult(name, str(error), unknown_channels=error.unknown_channels)
        return RecordResult(name, f"{type(error).__name__}: {error}")
    rows = (ecg.tell() - start) // (4 * len(LEADS))
    if not findings.observed.all():
        ecg.flush()
        written = np.memmap(ecg, "<f4", "r+", start, (rows, len(LEADS)))
        written[:, ~findings.observed] = 0.0
        written.flush()
    beats: Sequence[Beat] = ()
    unreadable = ""
    try:
        if not entry:
            beats = read_beats(batch.root / name, record.fs, record.n_samples / record.fs)
    except AnnotationError as error:
        unreadable = str(error)
    return RecordResult(
        name,
        findings=findings,
        rows=rows,
        frank_rows=(vcg.tell() - frank_start) // (4 * len(FRANK)),
        fs=record.fs,
        comments=tuple(record.comments),
        beats=tuple(beats),
        unreadable=unreadable,
        unknown_channels=record.unknown_channels,
    )
