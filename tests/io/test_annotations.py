"""Beats from annotation files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecggen.io.annotations import CLASS_OF, CLASSES, AnnotationError, Beat, present, read_beats, within


def annotate(path: Path, samples: list[int], symbols: list[str], fs: float) -> None:
    wfdb.wrann(path.name, "atr", np.array(samples), symbols, fs=fs, write_dir=str(path.parent))


def test_beats_and_nothing_else(tmp_path: Path) -> None:
    annotate(tmp_path / "r", [10, 360, 720, 1000, 1080], ["+", "N", "V", "~", "f"], 360)
    assert read_beats(tmp_path / "other", 360) == []
    beats = read_beats(tmp_path / "r", 360)
    assert beats == [Beat(1.0, "N"), Beat(2.0, "V"), Beat(3.0, "f")]
    assert [beat.aami for beat in beats] == ["N", "V", "Q"]


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 40, b"not an annotation file"])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.atr").write_bytes(content)
    with pytest.raises(AnnotationError, match=r"r\.atr (cannot be read|are cut off)"):
        read_beats(tmp_path / "r", 360)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Its beats so far would make the rest of the record look free of beats."""
    annotate(tmp_path / "r", [10, 360, 2000, 9000], ["+", "N", "V", "N"], 360)
    whole = (tmp_path / "r.atr").read_bytes()
    assert len(read_beats(tmp_path / "r", 360)) == 3
    for length in range(len(whole) - 1):
        (tmp_path / "r.atr").write_bytes(whole[:length])
        with pytest.raises(AnnotationError, match="are cut off: the mark of their end is missing"):
            read_beats(tmp_path / "r", 360)
    (tmp_path / "r.atr").unlink()
    (tmp_path / "r.atr").mkdir()
    with pytest.raises(AnnotationError, match="not a regular file"):
        read_beats(tmp_path / "r", 360)


def test_annotations_of_another_record(tmp_path: Path) -> None:
    annotate(tmp_path / "r", [360, 3600], ["N", "V"], 360)
    assert len(read_beats(tmp_path / "r", 360, 9.5)) == 2
    with pytest.raises(AnnotationError, match=r"beats from 1\.0 to 10\.0 s, and the record lasts 8\.0 s"):
        read_beats(tmp_path / "r", 360, 8)


def test_classes() -> None:
    assert set(CLASS_OF.values()) == set(CLASSES)
    assert present("fVNNA") == ["N", "S", "V", "Q"] and present("") == []
    beats = [Beat(t, "N") for t in (0.0, 1.0, 2.0)]
    assert within(beats, 0.0, 2.0) == beats[:2] and within(beats, 2.0, 9.0) == beats[2:]


#: From the database's own directory (physionet.org/content/mitdb/1.0.0/mitdbdir/records.htm).
PUBLISHED = {
    "100": {"N": 2239, "A": 33, "V": 1},
    "105": {"N": 2526, "V": 41, "Q": 5},
    "119": {"N": 1543, "V": 444},
    "203": {"N": 2529, "a": 2, "V": 444, "F": 1, "Q": 4},
    "207": {"L": 1457, "R": 86, "A": 107, "V": 105, "E": 105},
    "217": {"N": 244, "V": 162, "/": 1542, "f": 260},
}


@pytest.mark.parametrize("record", PUBLISHED)
def test_real_beats_are_as_many_as_published(shared_data: Path, record: str) -> None:
    beats = read_beats(shared_data / "mitdb" / record, 360)
    assert Counter(beat.symbol for beat in beats) == PUBLISHED[record]
    assert 0 < beats[0].time_s < 1 and 1800 < beats[-1].time_s < 1806
