"""What the benchmarks share, and that each of them starts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import interval, median_beats, parser, ptbxl_beats, section, short, table, whole_beats
from ecggen.io.records import write_record
from ecggen.leads import LEADS
from ecggen.utils.files import write_csv

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_median_beat_is_that_of_whole_beats() -> None:
    ecg = np.zeros((2, 1, 40), np.float32)
    for peak, height in ((1, 9), (10, 1), (20, 2), (30, 5), (38, 9)):  # the first and the last are cut off
        ecg[0, 0, peak] = height
    beats = median_beats(ecg, [np.array([1, 10, 20, 30, 38]), np.array([2])], 3, 4)
    assert beats.shape == (2, 1, 7)
    assert beats[0, 0].tolist() == [0, 0, 0, 2, 0, 0, 0]
    assert np.isnan(beats[1]).all()


def test_whole_beats_are_found_in_the_lead_that_is_named() -> None:
    time = np.arange(500) / 100
    lead = np.exp(-(((time + 0.4) % 0.8 - 0.4) ** 2) / 0.0002).astype(np.float32)
    beats = whole_beats(np.stack([lead, 2 * lead])[None], lead[None], 100.0)
    assert beats.shape == (1, 2, 90)
    assert beats[0].argmax(1).tolist() == [30, 30]
    np.testing.assert_allclose(beats[0].max(1), [1, 2], atol=0.05)


def test_every_script_takes_a_checkpoint_windows_and_a_split(capsys) -> None:
    args = parser("What it does.").parse_args(["c.pt", "w"])
    assert (args.checkpoint, args.windows, args.split) == ("c.pt", "w", "validation")
    with pytest.raises(SystemExit):
        parser("").parse_args(["c.pt", "w", "--split", "train"])
    assert "invalid choice" in capsys.readouterr().err


def test_beats_of_the_folds_asked_for(tmp_path: Path) -> None:
    time = np.arange(1000) / 100
    line = np.exp(-(((time + 0.4) % 0.8 - 0.4) ** 2) / 0.0005)
    rows = [{"ecg_id": k, "strat_fold": k, "filename_lr": f"records100/{k}"} for k in (1, 2, 9)]
    write_csv(tmp_path / "ptbxl" / "ptbxl_database.csv", rows, list(rows[0]))
    for k, gain in ((1, 1.0), (2, 0.0), (9, 3.0)):  # the second record has no beats
        write_record(tmp_path / "ptbxl" / "records100", str(k), 100, gain * np.tile(line[:, None], 12), LEADS)
    beats, folds, rows = ptbxl_beats(tmp_path, range(1, 9))
    assert folds.tolist() == [1] and [row["ecg_id"] for row in rows] == ["1"]
    assert beats.shape[:2] == (1, 12) and beats[0].max() == pytest.approx(0.9, abs=0.1)
    assert abs(int(beats[0, 0].argmax()) - 28) <= 1


def test_every_script_finds_what_it_imports() -> None:
    """They are run by hand, and rarely."""
    code = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='loaded')"
    scripts = sorted(map(str, BENCHMARKS.glob("*.py")))
    assert len(scripts) > 12
    places = f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"
    done = subprocess.run(
        [sys.executable, "-c", code, *scripts],
        env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.1234, False, ".123"),
        (-0.5, False, "-.500"),
        (0.01, True, "+.010"),
        (10.0, False, "10.000"),
        (1, True, "+1.000"),
    ],
)
def test_numbers_lose_the_zero_in_front_and_nothing_else(value: float, signed: bool, text: str) -> None:
    assert short(value, signed) == text


def test_a_table_has_a_line_per_row() -> None:
    text = table(["a", "b"], [["1", interval((0.5, 0.25, 0.75))]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | .500 [.250, .750] |\n"
    with pytest.raises(ValueError, match="1 cells below 2"):
        table(["a", "b"], [["1"]])


def test_a_section_can_be_run_again() -> None:
    assert section("T", ["x.py", "a b"]) == "## T\n\n```sh\npython x.py 'a b'\n```\n"
