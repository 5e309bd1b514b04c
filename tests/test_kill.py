"""A training that is killed again and again, at any moment, gives what the uninterrupted one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ecggen.utils.config import config_to_dict
from tests.killing import OUTS
from tests.training import ROOT, one_thread, tiny_config, write_windows


@pytest.mark.timeout(900)
def test_twenty_random_kills_change_nothing(tmp_path: Path) -> None:
    config = tiny_config(write_windows(tmp_path / "windows"), epochs=4, checkpoint_every=2)
    job = {"config": config_to_dict(config), "root": str(tmp_path), "seed": 3, "by_time": 20, "by_file": 8}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(tmp_path / "job.json")],
        cwd=ROOT,
        env=one_thread(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert len(told["expected"]) == len(OUTS)
    assert all(course == told["expected"] for course in told["courses"])
    by_time, by_file = Counter(told["moments"][:20]), Counter(told["moments"][20:])
    assert by_time.total() == 20 and by_file.total() == 8
    assert by_time["start"] <= 10, f"most kills must land inside training: {by_time}"
    assert by_time["step"] >= 3 and by_file["saving"] >= 4, (by_time, by_file)
