"""Trainings that are killed at any moment and started again, as fast as that can be tried.

    python -m tests.killing JOB.json

A process that has imported torch and has no threads forks one training after the other, as the stage calls it
(`train(pick_up=True)`), kills each with SIGKILL, deletes the stage's outputs as DVC does before it starts the
stage again, and says in JSON where the training was each time. Not a test itself: tests/test_kill.py runs it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # what an optimiser imports; once, not in every child

from ecggen import trainer as module
from ecggen.trainer import Trainer
from ecggen.training import calibration
from ecggen.utils.config import Config, config_from_dict

OUTS = ("checkpoint.pt", "history.csv", "metrics.json")
PHASES = ("start", "step", "validation", "saving", "calibration", "end")
HERE = mmap.mmap(-1, 1)  # shared with the child: the phase that it is in


def told(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        before, HERE[0] = HERE[0], PHASES.index(phase)
        try:
            return function(*args, **kwargs)
        finally:
            HERE[0] = before

    return call


def watch() -> None:
    Trainer._step = told("step", Trainer._step)  # type: ignore[method-assign]
    Trainer._save = told("saving", Trainer._save)  # type: ignore[method-assign]
    Trainer._write_history = told("saving", Trainer._write_history)  # type: ignore[method-assign]
    Trainer.validate = told("validation", Trainer.validate)  # type: ignore[method-assign]
    Trainer._calibrate = told("calibration", Trainer._calibrate)  # type: ignore[method-assign]


def die_at_file(number: int, after: bool) -> None:
    """Kill this process at the `number`-th file that gets its name: just before that, or just after."""
    replace, count = Path.replace, [0]

    def dying(self: Path, target: Any) -> Any:
        count[0] += 1
        if count[0] < number:
            return replace(self, target)
        if after:
            replace(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    Path.replace = dying  # type: ignore[method-assign, assignment]


def start(config: Config, out: Path, prepare: Callable[[], None] = lambda: None) -> int:
    for name in OUTS:
        (out / name).unlink(missing_ok=True)
    HERE[0] = 0
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare()
        module.train(config, out, pick_up=True, quiet=True)
        HERE[0] = PHASES.index("end")
        code = 0
    except BaseException as error:  # the parent's report must not be written twice
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def killed(child: int, delay: float) -> str | None:
    """The phase in which the child was killed; None where it had ended by itself before."""
    until = time.monotonic() + delay
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return by_itself(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return by_itself(os.waitpid(child, 0)[1])


def by_itself(status: int) -> str | None:
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return PHASES[HERE[0]]
    assert os.WEXITSTATUS(status) == 0, "the training failed"
    return None


def final(out: Path) -> list[str]:
    """What the pipeline keeps, and nothing left over."""
    hidden = [path.name for path in out.rglob(".*")]
    assert not hidden, hidden
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in OUTS]


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    watch()
    calibration.SETS = calibration.SETS[:4]  # as good as all where only the end result is compared
    config, root = config_from_dict(job["config"]), Path(job["root"])
    begin = time.monotonic()
    assert killed(start(config, root / "whole"), 1e9) is None
    whole_s = time.monotonic() - begin
    expected = final(root / "whole")
    rng = np.random.default_rng(job["seed"])
    moments: list[str] = []
    courses: list[list[str]] = []
    out = root / "killed"
    by_time, by_file = job["by_time"], job["by_file"]

    def ended() -> None:
        """A training came to its end between two kills: compare it, and begin another one."""
        nonlocal out
        courses.append(final(out))
        out = root / f"killed{len(courses)}"

    while len(moments) < by_time + by_file:
        if len(moments) < by_time:
            phase = killed(start(config, out), float(rng.uniform(0, whole_s / 3)))
        else:
            number, after = int(rng.integers(1, 8)), bool(rng.integers(2))
            phase = killed(start(config, out, lambda: die_at_file(number, after)), 1e9)  # noqa: B023
        if phase is None:
            ended()
        else:
            moments.append(phase)
    assert killed(start(config, out), 1e9) is None
    courses.append(final(out))
    return {"expected": expected, "courses": courses, "moments": moments, "whole_s": whole_s}


if __name__ == "__main__":
    json.dump(main(json.loads(Path(sys.argv[1]).read_text())), sys.stdout)
