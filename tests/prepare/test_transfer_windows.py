"""data/transfer: one folder of windows per database, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecggen.data.pipeline import read_window_folder
from ecggen.data.signal import condition
from ecggen.io.records import write_record
from ecggen.leads import LEADS
from ecggen.prepare.synthetic import population as synthetic
from ecggen.prepare.transfer_windows import TransferSourceError, transfer_windows
from ecggen.utils.config import Config, SyntheticConfig, TransferConfig
from ecggen.utils.files import read_csv, read_json

SMALL = SyntheticConfig(patients=24, seconds=6.0, noise_mv=0.01)


def config(*sources: str) -> Config:
    return replace(Config(), synthetic=SMALL, transfer=TransferConfig(sources=list(sources)))


def write_own(folder: Path, count: int = 2, seconds: float = 8.0, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        signals = np.cumsum(rng.normal(0, 0.02, (round(seconds * 200), 12)), axis=0) * 0.2
        write_record(folder, f"rec{number}", 200.0, signals, LEADS, ["Dx: AF"])
    return folder


def test_each_source_becomes_a_folder_of_test_windows(tmp_path: Path) -> None:
    own = write_own(tmp_path / "My records")
    (own / "broken.hea").write_text("broken 12 200 1000\n")
    out = tmp_path / "transfer"
    again = write_own(tmp_path / "elsewhere" / "My records", seed=1)
    lines = ("synthetic:other", f"wfdb:{own}", f"wfdb:{again}")
    counts = transfer_windows(config(*lines), tmp_path / "raw", out)
    rows = read_csv(out / "databases.csv")
    names = ["synthetic-other", "my-records", "my-records-2"]
    assert [row["database"] for row in rows] == names == list(counts["counts"])
    assert sorted(path.name for path in out.iterdir()) == sorted(["databases.csv", *names])
    for name in names:
        folder = read_window_folder(out / name, fs=100.0, time_len=512)
        assert set(folder.split) == {"test"} and folder.meta["preprocessing"]["low_hz"] == 0.67
    assert counts["counts"]["my-records"]["records_unreadable"] == 1
    assert read_csv(out / "my-records" / "rejected.csv")[0]["record"] == "broken"
    assert read_csv(out / "my-records" / "index.csv")[0]["labels"] == "AF"


def test_without_sources_there_is_an_empty_list(tmp_path: Path) -> None:
    assert transfer_windows(config(), tmp_path / "raw", tmp_path / "transfer") == {
        "databases": 0,
        "counts": {},
    }
    assert read_csv(tmp_path / "transfer" / "databases.csv") == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("georgia", "Source 'georgia' has no place: write physionet:NAME, wfdb:FOLDER"),
        ("synthetic:third", "synthetic takes nothing after it but :other"),
        ("wfdb:", "has no place"),
        ("synthetic:other", "both hold the recordings of synthetic-other"),
        ("wfdb:/none/here", "No folder of records at /none/here"),
        ("wfdb:{short}", "None of the 1 records is usable: too short"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence(tmp_path: Path, source: str, words: str) -> None:
    source = source.format(short=write_own(tmp_path / "short", 1, 1.0))
    out = tmp_path / "transfer"
    transfer_windows(config(), tmp_path / "raw", out)
    with pytest.raises(TransferSourceError, match=r"transfer\.sources") as caught:
        transfer_windows(config("synthetic:other", source), tmp_path / "raw", out)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["databases.csv"], "as it was"


def test_the_other_device_writes_another_way_and_is_read_as_the_same_heart(tmp_path: Path) -> None:
    transfer_windows(config("synthetic:other"), tmp_path / "raw", tmp_path / "transfer")
    rules = synthetic.other_population(SMALL)
    header = next((tmp_path / "raw").rglob("*.hea")).read_text().splitlines()
    assert header[0].split()[2:4] == ["500", "3000"]
    assert [line.split()[-1] for line in header[1:13]] == [
        "V1", "V2", "V3", "V4", "V5", "V6", "I", "II", "III", "AVR", "AVF", "AVL",
    ]  # fmt: skip
    assert all("/uV" in line.split()[2] for line in header[1:13])
    folder = read_window_folder(tmp_path / "transfer" / "synthetic-other")
    for row in range(0, len(folder), 3):
        patient, number = (int(part) for part in folder.record[row].removeprefix("p").split("_"))
        truth = synthetic.simulate(rules, patient - 1, number - 1, synthetic.OTHER_DEVICE)
        made = condition(truth.ecg_mv.T, 500.0, 100.0, low_hz=0.67, high_hz=40.0, order=3, backend="auto")
        start = round(folder.start_s[row] * 100)
        np.testing.assert_allclose(folder.windows[row], made[:, start : start + 512], atol=2e-3)


def test_other_population_is_other_people_with_other_noise() -> None:
    rules = synthetic.other_population(SMALL)
    assert (rules.patients, rules.fs) == (6, 500.0) and rules.noise_mv == pytest.approx(0.015)
    assert synthetic.other_population(SyntheticConfig()).patients == 60
    same = synthetic.simulate(replace(SMALL, fs=500.0), 0)
    other = synthetic.simulate(rules, 0, device=synthetic.OTHER_DEVICE)
    assert np.abs(same.ecg_mv - other.ecg_mv).max() > 0.1
    spectrum = np.abs(np.fft.rfft(other.ecg_mv - other.clean_mv, axis=0)).mean(axis=1)
    at = np.fft.rfftfreq(len(other.ecg_mv), 1 / 500)
    assert spectrum[np.abs(at - 60) < 0.5].max() > 5 * np.median(spectrum[(at > 70) & (at < 90)])


def test_real_databases_one_beside_the_other(tmp_path: Path, shared_data: Path) -> None:
    challenge = shared_data / "challenge"
    names = ("cpsc2018", "georgia", "chapman_ningbo")
    if not all((challenge / name).is_dir() for name in names):
        pytest.skip(f"no records of {', '.join(names)} in {challenge}")
    lines = (f"wfdb:{challenge / name}" for name in names)
    counts = transfer_windows(config(*lines), tmp_path / "raw", tmp_path / "transfer")
    assert len(counts["counts"]) == len(names)
    for name, (key, found) in zip(names, counts["counts"].items(), strict=True):
        headers = len(list((challenge / name).glob("*.hea")))
        assert found["records"] + found["records_unreadable"] + found["records_without_window"] == headers
        meta = read_json(tmp_path / "transfer" / key / "meta.json")
        assert (meta["source"]["kind"], meta["source"]["name"]) == ("wfdb", name)
        assert meta["source"]["cohorts"]
