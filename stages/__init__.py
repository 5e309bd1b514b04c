"""One script per stage of dvc.yaml, run from the repository root (python -m stages.train); their frame."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecggen.utils.config import Config, load_config
from ecggen.utils.display import show_progress
from ecggen.utils.errors import EcggenError, in_words
from ecggen.utils.files import locked
from ecggen.utils.threads import reuse_freed_arrays, wait_passively
from stages.changes import say_changes
from stages.record import StageRun

__all__ = ["Config", "StageRun", "run_stage"]

PIPELINE_WINDOWS = "data/windows"
#: SLURM and Kubernetes end a job with the first, a closed terminal with the second.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_stage(name: str, stage: Callable[[Config, StageRun], None]) -> int:
    """Run one stage: params.yaml in, `stage(config, run)`, its record for MLflow out. Returns the exit code.

    `stage` imports what it needs itself, after the parameters are checked and threads are set up. Codes: 1,
    an error, in one sentence; 128 + number, ended by a signal (130 Ctrl-C, 143 SIGTERM).
    """
    wait_passively()
    reuse_freed_arrays()
    show_progress()
    atexit.register(gc.freeze)  # spares the exit a search for cycles: .7 s with torch
    try:
        say_changes()
        config = load_config("params.yaml")
        if config.data.meta_root != PIPELINE_WINDOWS:
            raise EcggenError(
                f"data.meta_root is {config.data.meta_root!r}: the pipeline reads the windows it cuts, "
                f"{PIPELINE_WINDOWS!r}. For records of your own set data.source=wfdb and data.path; for a "
                "folder of .npy windows use python -m ecggen.main."
            )
        with _signals_raise(), locked(Path(".ecggen") / name) as free:
            if not free:
                raise EcggenError(
                    f"Stage {name} is still running in this folder (its dvc may have been killed): wait "
                    "until it is done, or end that process, then run dvc repro again."
                )
            return _recorded_stage(name, stage, config)
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        return 1


def _recorded_stage(name: str, stage: Callable[[Config, StageRun], None], config: Config) -> int:
    """Run the stage with its MLflow record, which ends as the stage does."""
    run = StageRun(name, config)
    try:
        stage(config, run)
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 128 + signal.SIGINT
        word = signal.Signals(int(code or 0) - 128).name
        run.close("KILLED", word)
        print(f"error: stage {name} was ended ({word}).", file=sys.stderr)
        return int(code or 0)
    except BaseException as error:
        run.close("FAILED", in_words(error) or f"{type(error).__name__}: {error}")
        raise
    run.close("FINISHED")
    return 0


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit(128 + number); a signal that is ignored (nohup) stays ignored."""
    process = os.getpid()

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN if os.getpid() == process else signal.SIG_DFL)
        if os.getpid() != process:  # a forked worker just ends, as its pool expects
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    ours = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
