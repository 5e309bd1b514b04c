"""A training that is killed again and again, at any moment, gives what the uninterrupted one gives.

    python -m tests.test_kill JOB.json

forks one training after the other from a process that has imported torch and has no threads, as the stage
calls it (`train(pick_up=True)`), kills each with SIGKILL and deletes the stage's outputs, as DVC does before
it starts the stage again. What lies on the disk changes where a file gets its name: before and after each of
these moments one is killed, and a few at any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # what an optimiser imports; once, not in every child

from ecggen import trainer
from ecggen.training import calibration
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from tests.tiny_training import ROOT, one_thread, tiny_config, write_windows

OUTS = ("checkpoint.pt", "history.csv", "facts.csv")


def die_at_file(number: int, after: bool) -> None:
    """Kill this process at the `number`-th file that gets its name: just before that, or just after."""
    replace, count = Path.replace, [0]

    def replace_or_die(self: Path, target: Any) -> Any:
        count[0] += 1
        if count[0] < number:
            return replace(self, target)
        if after:
            replace(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]


def is_killed(config: Config, out: Path, delay_s: float = 1e9, prepare: Callable[[], None] = list) -> bool:
    """Train, and kill it after some seconds; False where it had come to its end before."""
    for name in OUTS:
        (out / name).unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            prepare()
            trainer.train(config, out, pick_up=True, quiet=True)
            code = 0
        except BaseException as error:  # the parent's output must not be written twice
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    until, ended, status = time.monotonic() + delay_s, 0, 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    if not ended:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the training failed"
    return os.WIFSIGNALED(status)


def digests(out: Path) -> list[str]:
    """Of what the pipeline keeps; nothing else is left over."""
    assert not list(out.rglob(".*"))
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in OUTS]


def killed_trainings(job: dict[str, Any]) -> dict[str, Any]:
    """Digests of an uninterrupted training, and of those that were killed until they came to an end."""
    torch.set_num_threads(1)
    calibration.SETS = calibration.SETS[:4]  # as good as all where only the end result is compared
    config, root, rng = config_from_dict(job["config"]), Path(job["root"]), np.random.default_rng(3)
    began = time.monotonic()
    assert not is_killed(config, root / "whole")
    whole_s = time.monotonic() - began
    kills = {"before": 0, "after": 0, "by_time": 0}
    for name, after in (("before", False), ("after", True)):
        while is_killed(config, root / name, prepare=lambda: die_at_file(kills[name] + 1, after)):  # noqa: B023
            kills[name] += 1
    for _ in range(4):
        kills["by_time"] += is_killed(config, root / "by_time", float(rng.uniform(0, whole_s / 3)))
    assert not is_killed(config, root / "by_time")
    return {
        "kills": kills,
        "expected": digests(root / "whole"),
        "results": [digests(root / name) for name in kills],
    }


@pytest.mark.timeout(900)
def test_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    config = tiny_config(write_windows(tmp_path / "windows"), epochs=2, checkpoint_every=2)
    job = {"config": config_to_dict(config), "root": str(tmp_path)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_kill", str(tmp_path / "job.json")],
        cwd=ROOT, env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert min(answer["kills"].values()) >= 2, answer["kills"]
    assert all(result == answer["expected"] for result in answer["results"])


if __name__ == "__main__":
    json.dump(killed_trainings(json.loads(Path(sys.argv[1]).read_text())), sys.stdout)
