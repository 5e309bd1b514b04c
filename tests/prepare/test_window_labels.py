"""One label system per window folder, and the beats of each window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_databases as made
import numpy as np
import pytest

from ecggen.data.read_windows import read_window_folder
from ecggen.prepare.download.source import list_source, write_source
from ecggen.prepare.labels.record_info import LabelError
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.window.labels import SplitCounts, choose_system
from ecggen.prepare.window.stage import window
from ecggen.utils.config import SPLITS, DataConfig, PreprocessConfig, WindowConfig
from ecggen.utils.files import read_csv, read_json


def rows(*records: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"database": d, "label_system": s, "all_labels": labels} for d, s, labels in records]


PTB = ("ptb-xl", "superclass", "superclass/NORM;rhythm/SR;snomed/NSR")
GEORGIA = ("georgia", "snomed", "dx/426783006;snomed/NSR")
MITDB = ("mitdb", "beats", "beats/N")
PLAIN = ("mine", "dx", "")


@pytest.mark.parametrize(
    ("table", "wanted", "system"),
    [
        ([PTB], "auto", "superclass"),
        ([PTB], "rhythm", "rhythm"),
        ([PTB, GEORGIA], "auto", "snomed"),
        ([PTB, GEORGIA], "dx", "dx"),
        ([PTB, PLAIN], "auto", "snomed"),  # a source without any label does not count
        ([PLAIN], "auto", "dx"),
        ([MITDB, GEORGIA], "beats", "beats"),
    ],
)
def test_the_system_that_is_chosen(table, wanted: str, system: str) -> None:
    assert choose_system(rows(*table), wanted) == system


def test_nothing_in_common_says_what_there_is() -> None:
    with pytest.raises(LabelError, match=r"georgia has dx, snomed; mitdb has beats\. Set window\.labels"):
        choose_system(rows(GEORGIA, MITDB), "auto")
    with pytest.raises(LabelError, match=r"window\.labels is form .*which no record has: mitdb has beats"):
        choose_system(rows(MITDB), "form")


def test_counts_are_those_of_sets() -> None:
    """Random people, records and labels: as many as the sets of them have members."""
    rng = np.random.default_rng(0)
    split_of = {f"p{i}": str(name) for i, name in enumerate(rng.choice(SPLITS, 50))}
    counts, seen = SplitCounts(split_of), {kind: set() for kind in ("patients", "records", "windows")}
    for record in range(200):
        patient = f"p{rng.integers(50)}"
        windows = [[f"L{i}" for i in np.flatnonzero(rng.random(7) < 0.2)] for _ in range(rng.integers(1, 4))]
        counts.add(patient, windows)
        for number, labels in enumerate(windows):
            for label in labels:
                seen["patients"].add((label, split_of[patient], patient))
                seen["records"].add((label, split_of[patient], record))
                seen["windows"].add((label, split_of[patient], record, number))
    for kind, counted in counts.result().items():
        for label in {entry[0] for entry in seen[kind]} | set(counted):
            for split in SPLITS:
                assert counted[label][split] == sum(entry[:2] == (label, split) for entry in seen[kind])


BEATS = WindowConfig(stride=64, split="test", min_label_count=1, exclude=[])


def convert(root: Path, out: Path, config: WindowConfig = BEATS) -> Path:
    (out / "raw").mkdir(parents=True, exist_ok=True)
    data = DataConfig(time_len=128, fs=100)
    write_source(out / "raw", list_source(root))
    preprocess(out / "raw", out / "records", data, PreprocessConfig())
    window(out / "records", out / "windows", data, config)
    return out / "windows"


def test_windows_know_their_beats(tmp_path: Path) -> None:
    made.make("mitdb", tmp_path / "mitdb")
    out = convert(tmp_path / "mitdb", tmp_path)
    index, beats, meta = (
        read_csv(out / "index.csv"),
        read_csv(out / "beats.csv"),
        read_json(out / "meta.json"),
    )
    assert meta["label_system"] == "beats"
    # Annotated at samples 500 (N), 900 (V) and 2000 (paced) of 360 Hz.
    times = {"N": 500 / 360, "V": 900 / 360, "Q": 2000 / 360}
    for row in index:
        start = float(row["start_s"])
        wanted = [name for name in ("N", "V", "Q") if start <= times[name] < start + 1.28]
        assert row["labels"].split(";") == (wanted or [""])
        inside = [beat for beat in beats if beat["window"] == row["window"]]
        assert [beat["class"] for beat in inside] == wanted
        for beat in inside:
            at = start + int(beat["sample"]) / 100
            assert abs(at - times[beat["class"]]) <= 0.005 and 0 <= int(beat["sample"]) < 128
    assert meta["label_windows"]["V"]["test"] == sum("V" in row["labels"] for row in index)


def test_windows_of_a_record_with_rejected_annotations_have_no_label(tmp_path: Path) -> None:
    """Cut off after the first beats, they say nothing of the later windows: these are not negatives."""
    made.make("mitdb", tmp_path / "mitdb")
    for path in (tmp_path / "mitdb").rglob("*.atr"):
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LabelError, match="beats"):
        convert(tmp_path / "mitdb", tmp_path, replace(BEATS, labels="beats"))
    out = convert(tmp_path / "mitdb", tmp_path)
    assert {row["labels"] for row in read_csv(out / "index.csv")} == {""}
    assert not read_window_folder(out).label_valid.any()
    rejected = read_csv(tmp_path / "records" / "rejected_labels.csv")
    (counts,) = read_json(out / "meta.json")["counts"]["by_database"].values()
    assert counts["annotations_unreadable"] == len(rejected) == 3 == sum(counts["patients_from"].values())


def test_another_system_needs_no_new_records(tmp_path: Path) -> None:
    made.make("ptb-xl", tmp_path / "ptb")
    seen = {}
    for system in ("auto", "subclass", "form", "rhythm", "snomed"):
        config = WindowConfig(stride=128, split="train", min_label_count=1, labels=system)
        out = convert(tmp_path / "ptb", tmp_path, config)
        seen[system] = [r["labels"] for r in read_csv(out / "index.csv") if r["start_s"] == "0.0"]
        assert read_json(out / "meta.json")["label_system"] == (system if system != "auto" else "superclass")
    assert seen["auto"] == ["NORM", "MI", "CD"] and seen["subclass"] == ["NORM", "IMI", "CLBBB"]
    assert seen["form"] == ["", "PVC", ""] and seen["rhythm"] == ["SR", "AFIB", "SR"]
    assert seen["snomed"] == ["LAD;NSR", "AF;LAD;MI;VEB", "CLBBB;LAD;NSR"]


def test_real_windows_have_the_beats_of_their_record(shared_data: Path, tmp_path: Path) -> None:
    """Each beat lies in one window; where the last window overlaps the one before, in two."""
    for name in ("100.hea", "100.dat", "100.atr"):
        (tmp_path / "mitdb").mkdir(exist_ok=True)
        (tmp_path / "mitdb" / name).symlink_to(shared_data / "mitdb" / name)
    out = convert(tmp_path / "mitdb", tmp_path, replace(BEATS, stride=128))
    beats, index = read_csv(out / "beats.csv"), read_csv(out / "index.csv")
    starts = np.array([float(row["start_s"]) for row in index])
    overlap = starts[-2] + 1.28 - starts[-1]
    twice = sum(int(b["window"]) == len(index) - 1 and int(b["sample"]) < overlap * 100 for b in beats)
    # The record has 2,273 beats, the last at 1805.53 s of 1805.56 s.
    assert len(beats) - twice == 2273
    assert {row["labels"] for row in index} >= {"N", "N;S"}
    assert 1 <= sum("V" in row["labels"] for row in index) <= 2  # it has one ventricular beat
