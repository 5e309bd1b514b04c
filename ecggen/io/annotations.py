"""WFDB annotation files in: beats and where they are. One of the places that import wfdb."""

from __future__ import annotations

from pathlib import Path

from ecggen.prepare.labels.beats import CLASS_OF, Beat
from ecggen.utils.errors import EcggenError

REFERENCE = "atr"  # the suffix of reference annotations on PhysioNet


class AnnotationError(EcggenError):
    """An annotation file that cannot be read."""


def has_beats(path: Path) -> bool:
    """Whether a record (path without suffix) has a file of reference annotations."""
    return path.with_name(f"{path.name}.{REFERENCE}").is_file()


def read_beats(path: Path, fs: float) -> list[Beat]:
    """The annotated beats of a record in order of time; path has no suffix, fs is the record's rate in Hz.

    Annotations that are no beats are left out. Raises AnnotationError for a file that cannot be read or that
    holds a negative time.
    """
    import wfdb

    try:
        found = wfdb.rdann(str(path), REFERENCE)
        rate = float(found.fs or fs)
        beats = [
            Beat(float(sample) / rate, symbol)
            for sample, symbol in zip(found.sample, found.symbol, strict=True)
            if symbol in CLASS_OF
        ]
    except Exception as error:  # wfdb raises whatever its parser trips over
        words = " ".join(str(error).split()).rstrip(".")[:200]
        raise AnnotationError(
            f"Annotations {path.name}.{REFERENCE} cannot be read: {words} ({type(error).__name__})."
        ) from error
    if beats and min(beat.time_s for beat in beats) < 0:
        raise AnnotationError(f"Annotations {path.name}.{REFERENCE} have a beat before the record's start.")
    return sorted(beats, key=lambda beat: beat.time_s)
