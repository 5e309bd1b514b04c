"""Run ids and step folders."""

from __future__ import annotations

import pytest

from ecggen.utils.run_id import RunIdError, list_step_dirs, run_id, saved_steps, step_dir


def test_codes_are_joined_in_the_order_of_the_mapping():
    assert run_id({"m": "m1", "s": "s1", "k": "k1"}) == "m1s1k1"
    assert run_id({"k": "k1", "m": "m1"}) == "k1m1"
    assert run_id({"m": "big_2-b"}) == "big_2-b"


@pytest.mark.parametrize("code", ["", "a/b", "..", "m 1", "ü1", "m1\n"])
def test_codes_that_cannot_name_a_folder(code):
    with pytest.raises(RunIdError, match=r"run\.m is"):
        run_id({"m": code})


def test_no_code_at_all_and_one_that_reads_like_an_option():
    with pytest.raises(RunIdError, match="run is empty"):
        run_id({})
    with pytest.raises(RunIdError, match="starts with"):
        run_id({"m": "-m1"})


def test_step_folders_are_padded_and_sorted_by_number(tmp_path):
    assert step_dir(tmp_path, 500) == tmp_path / "step_000500"
    with pytest.raises(RunIdError, match="-1"):
        step_dir(tmp_path, -1)
    for step in (1_000_000, 500, 999_999):
        step_dir(tmp_path, step).mkdir()
    (tmp_path / "step_9").mkdir()
    (tmp_path / "step_000700").write_text("a file")
    assert [step for step, _ in list_step_dirs(tmp_path)] == [500, 999_999, 1_000_000]
    assert list_step_dirs(tmp_path / "none") == saved_steps(tmp_path) == []
    (step_dir(tmp_path, 999_999) / "checkpoint.pt").touch()
    assert saved_steps(tmp_path) == [(999_999, step_dir(tmp_path, 999_999))]
