"""What a stage records for MLflow, in files alone; `ecggen.tracking` logs them and describes their folder.

Environment: MLFLOW_EXPERIMENT_NAME names another experiment, ECGGEN_RUN_KEY another key of the pipeline run
(stages with the same key share a parent), and ECGGEN_TRACKING=off switches records off.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecggen.report.params import git, value_in_words
from ecggen.tracking import KEY_TAG, NOTE_TAG, pipeline_root, runs_folder, tracking_uri, warnings_file
from ecggen.utils.config import Config, config_to_dict, flatten
from ecggen.utils.files import FileError, locked, read_json, write_json
from stages.description import (
    changed_parameters,
    command,
    run_name,
    short_keys,
    uncommitted,
    verdict_and_table,
)

if TYPE_CHECKING:
    from ecggen.report.summary import Number

CURVES = ("train_loss", "val_loss", "val_r", "val_r_personal", "lr")
SOURCE_STAGES = ("download", "preprocess")


def _recorded(method: Callable[..., None]) -> Callable[..., None]:
    """Saves the record after a method. What the disk refuses ends the record, and not the stage."""

    @functools.wraps(method)
    def call(self: StageRun, *args: Any, **kwargs: Any) -> None:
        if self.folder is None:
            return
        try:
            method(self, *args, **kwargs)
            write_json(self.folder / "run.json", self._record)
        except (OSError, FileError) as error:
            self.folder = None
            reason = getattr(error, "strerror", None) or error
            words = f"stage {self.name} is not recorded further in MLflow: {runs_folder()} cannot be written"
            print(f"warning: {words} ({reason}).", file=sys.stderr)

    return call


class StageRun:
    """What a stage records. No method waits for the store, or raises because of it or of a full disk."""

    def __init__(self, name: str, config: Config) -> None:
        self.name, self._config = name, config
        self._alive = ExitStack()  # holds the lock of the folder as long as the stage runs
        self.folder: Path | None = None
        if os.environ.get("ECGGEN_TRACKING", "").lower() not in {"off", "0", "false", "no"}:
            self._record = _new_record(name, config)
            self.folder = runs_folder() / f"{self._record['begin']}-{name}-{os.getpid()}"
            self._open()
            _start_following()

    @_recorded
    def _open(self) -> None:
        assert self.folder is not None
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # addresses may hold passwords
        self._alive.enter_context(locked(self.folder))  # first: a folder without a lock is of a killed stage
        self.folder.mkdir()

    @_recorded
    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log every finite number of a nested mapping on the child run."""
        now = _now_ms()
        self._record["points"] += [[key, value, now, step] for key, value in flat_numbers(values).items()]

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log the curves of one row of the training history, which is a file; its `epoch` is the step."""
        values = {f"epoch/{key}": row[key] for key in CURVES if key in row}
        self.metrics(values, step=int(row.get("epoch", 0)))

    @_recorded
    def headline(self, values: Mapping[str, float], numbers: Sequence[Number] = ()) -> None:
        """Log the few numbers that runs are compared by on the parent run; all `numbers` are in its text."""
        self._record["headline"] = flat_numbers(values)
        self._record["columns"] = list(self._record["headline"])  # in this order; that of the other is lost
        words = verdict_and_table(numbers) if numbers else ""
        note = "\n\n".join(filter(None, [words, self._record["parent_tags"][NOTE_TAG]]))
        self._record["parent_tags"][NOTE_TAG] = note

    @_recorded
    def dataset(self, folder: str | Path, context: str) -> None:
        """Log a folder of windows (with meta.json) as an input of the child and the parent run."""
        entry = _dataset(self._config, _json_or_empty(Path(folder) / "meta.json"))
        self._record["datasets"].append([entry, context])
        self._tag_data()

    @_recorded
    def artifact(self, path: str | Path, subfolder: str = "", *, parent: bool = False) -> None:
        """Log a file, or the files of a folder, on the child (and the parent) run; they are copied now."""
        if not Path(path).exists():
            print(f"warning: {path} is not there and is not recorded in MLflow.", file=sys.stderr)
            return
        for run in ("child", "parent") if parent else ("child",):
            target = Path(str(self.folder), run, subfolder)
            target.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target / Path(path).name)

    def close(self, status: str, error: str = "") -> None:
        """End the child run (FINISHED, FAILED, KILLED), and print what the logging process has to say."""
        self._end(status, error)
        self._alive.close()
        if self.folder is None:
            return
        _start_following()
        with suppress(OSError):
            print(warnings_file().read_text(encoding="utf-8"), end="", file=sys.stderr)
            warnings_file().unlink()

    @_recorded
    def _end(self, status: str, error: str) -> None:
        if status == "FINISHED":
            self._tag_data()
        self._record |= {"status": status, "error": error[:500], "end": _now_ms()}

    def _tag_data(self) -> None:
        """The fingerprint of the windows; before they are cut, of the source records."""
        path = "data/raw/source.json" if self.name in SOURCE_STAGES else "data/windows/meta.json"
        if fingerprint := _json_or_empty(Path(path)).get("fingerprint"):
            self._record["tags"]["data_fingerprint"] = str(fingerprint)


def flat_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested mapping under names that MLflow takes ("I+II" becomes "I_II")."""
    return {
        re.sub(r"[^\w\-. /:]", "_", key): float(value)
        for key, value in flatten(dict(values)).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _new_record(name: str, config: Config) -> dict[str, Any]:
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "HEAD")
    data, changes = config.data, changed_parameters(config)
    source = f"{data.source} {data.database or data.path}".strip()
    status = git("status", "--porcelain", "--untracked-files=no")
    tags = {
        KEY_TAG: run_key(),
        "git_commit": commit,
        "mlflow.source.git.dirty": str(bool(status)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.type": "LOCAL",
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "data_source": f"several {', '.join(data.sources)}" if data.sources else source,
    }
    names = short_keys(changes)
    return {
        "stage": name,
        "uri": tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI", "").strip() else "",
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ecggen",
        "pipeline": run_name(config, changes),
        "host": socket.gethostname(),
        "begin": _now_ms(),
        "status": "RUNNING",
        "tags": tags,
        "parent_tags": {names[key]: value_in_words(value)[:500] for key, value in changes.items()}
        | {NOTE_TAG: command(changes, commit, uncommitted(status))},
        "params": {key: str(value) for key, value in flatten(config_to_dict(config)).items()},
        "points": [],
        "headline": {},
        "datasets": [],
    }


def _dataset(config: Config, meta: Mapping[str, Any]) -> dict[str, str]:
    """The fields of an MLflow data set: where the windows come from, their fingerprint and counts."""
    data = config.data
    return {
        "name": "several" if data.sources else data.database or data.source,
        "digest": str(meta.get("fingerprint", "unknown"))[:36],
        "source_type": data.source,
        "source": json.dumps({"uri": data.url or data.path or data.database or "data/windows"}),
        "profile": json.dumps(meta.get("counts", {}), sort_keys=True),
    }


def _start_following() -> None:
    """Start a process that logs beside the pipeline and outlives it, unless there is one."""
    with suppress(OSError):  # a disk that is full or cannot be written: said elsewhere
        with locked(runs_folder().parent / "following") as free:
            pass
        if not free:
            return
        root = pipeline_root()
        # Imports are those of this stage, also in a temporary copy; no folder that is removed is in use.
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with (root / ".ecggen" / "tracking.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "ecggen.tracking", "--follow"],
                cwd=root / ".ecggen",
                env=os.environ | {"PYTHONPATH": paths, "DVC_ROOT": str(root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is meant for the pipeline
            )


def _now_ms() -> int:
    return int(time.time() * 1000)


def _json_or_empty(path: Path) -> dict[str, Any]:
    with suppress(FileError):
        return dict(read_json(path))
    return {}


def run_key() -> str:
    """What the stages of one pipeline run share and other runs do not: the experiment and the dvc process."""
    if os.environ.get("ECGGEN_RUN_KEY"):
        return re.sub(r"[^\w.:-]", "_", os.environ["ECGGEN_RUN_KEY"])
    names = [os.environ.get(name, "") for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")]
    process = dvc_process()[0] or _process_identity(os.getpid())
    return hashlib.sha256("\x1f".join([*names, socket.gethostname(), process]).encode()).hexdigest()[:16]


def dvc_process() -> tuple[str, list[str]]:
    """Identity and command of the dvc process above this one (`dvc ...`, `python -m dvc ...`), if any."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            command = process.cmdline()
            words = [Path(word).stem.lower() for word in command if not word.startswith("-")]
            if "dvc" in words[:2]:
                return _process_identity(process.pid), command
    return "", []


def _process_identity(pid: int) -> str:
    """pid:start, which no later process of that number shares."""
    import psutil

    with suppress(OSError):  # in clock ticks since boot: psutil's time of day can jump by a second
        return f"{pid}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{pid}:{psutil.Process(pid).create_time():.0f}"
