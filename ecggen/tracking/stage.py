"""The stage's side: parameters in, the stage's function, everything that it tells into its journal."""

from __future__ import annotations

import atexit
import gc
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecggen.report.summary import headline
from ecggen.tracking import courier, locks
from ecggen.tracking.ending import Ended, ending_cleanly, exit_code
from ecggen.tracking.identity import (
    KEY_TAG,
    TrackingError,
    git,
    pipeline_process,
    pipeline_root,
    run_key,
    shown,
    tracking_uri,
)
from ecggen.tracking.outbox import FAILED, FOLDER, Journal, outbox
from ecggen.utils.config import Config, config_to_dict, flatten, load_config
from ecggen.utils.errors import EcggenError, in_words
from ecggen.utils.files import FileError, read_json
from ecggen.utils.threads import wait_passively

EXPERIMENT = "ecggen"
PIPELINE_WINDOWS = "data/windows"
SOURCE_STAGES = ("download", "preprocess")
LAST_STAGE = "report"
RUNNING = Path(".ecggen") / "running"
#: Seconds that a stage waits at its end for the courier, and the variable that says otherwise.
WAIT_S, WAIT_VARIABLE = 3.0, "ECGGEN_TRACKING_WAIT"
_POLL_S = 0.01


def run_stage(name: str, body: Callable[[Config, StageRun], Mapping[str, Any]]) -> int:
    """Run one stage: params.yaml in, `body(config, run)`, its metrics to MLflow. Returns the exit code.

    `body` imports what it needs itself, after the parameters are checked, and threads and memory are set.
    1: an error, said in one sentence; 130, 143: ended by Ctrl-C, by SIGTERM.
    """
    wait_passively()
    atexit.register(gc.freeze)  # spares the exit a search for cycles: .7 s with torch
    try:
        with ending_cleanly():
            config = load_config("params.yaml")
            if config.data.meta_root != PIPELINE_WINDOWS:
                raise TrackingError(
                    f"data.meta_root is {config.data.meta_root!r}: the pipeline reads the windows it cuts, "
                    f"{PIPELINE_WINDOWS!r}. For records of your own set data.source=wfdb and data.path; for "
                    "a folder of .npy windows use python -m ecggen.main."
                )
            with _alone(name), stage_run(name, config) as run:
                metrics = body(config, run)
                run.metrics(metrics)
                run.headline(headline(name, metrics))
    except (KeyboardInterrupt, Ended) as error:
        print(f"error: stage {name} was ended ({_short(error)}).", file=sys.stderr)
        return exit_code(error)
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def stage_run(name: str, config: Config) -> Iterator[StageRun]:
    """The child run of one stage; FAILED (KILLED) together with its parent when the block raises."""
    run = StageRun(name, config)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, (KeyboardInterrupt, Ended)) else "FAILED", error)
        raise
    run.close("FINISHED")


class StageRun:
    """What a stage tells MLflow, by way of its journal. With ECGGEN_TRACKING=off every method does nothing.

    No method waits for the store or raises because of it. `close` waits for the courier, WAIT_S seconds at
    most, where the pipeline may end here; else it takes a look, and the courier works beside the next stage.
    """

    def __init__(self, name: str, config: Config) -> None:
        """Raises TrackingError where the address of the store cannot be one."""
        self.name = name
        self._config = config
        self._journal: Journal | None = None
        self._courier: subprocess.Popen[bytes] | None = None
        if os.environ.get("ECGGEN_TRACKING", "").lower() in {"off", "0", "false", "no"}:
            return
        header = _header(name, config)
        self._uri, self._wait_s = header["uri"], _wait_s()
        self._inside = bool(header["pipeline"]) and name != LAST_STAGE and not os.environ.get(WAIT_VARIABLE)
        try:
            self._journal = Journal(outbox(), header)
        except OSError as error:
            self._give_up(error)
            return
        self._start_courier()  # what fails here is tried again, and told, at the end
        if name not in SOURCE_STAGES:
            self._tag_data("child", "parent")

    def _add(self, kind: str, **fields: Any) -> None:
        if self._journal is None:
            return
        try:
            self._journal.add(kind, **fields)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """No journal can be written: the stage goes on, and its results on disk are the record."""
        print(
            f"warning: stage {self.name} is not recorded further, {outbox()} cannot be written "
            f"({error.strerror or error}).",
            file=sys.stderr,
        )
        if self._journal is not None:
            self._journal.close()
        self._journal = None

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log every finite number of a nested mapping on the child run."""
        self._add("metrics", step=step, values=flat_numbers(values))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log one row of the training history; its `epoch` is the step."""
        values = {f"epoch/{key}": value for key, value in row.items() if key != "epoch"}
        self.metrics(values, step=int(row.get("epoch", 0)))

    def headline(self, values: Mapping[str, float]) -> None:
        """Log the few numbers that runs are compared by on the parent run, each once."""
        if values:
            self._add("headline", values=flat_numbers(values))

    def dataset(self, folder: str | Path, context: str) -> None:
        """Log a folder of windows (with meta.json) as an input of the child and the parent run."""
        if self._journal is None:
            return
        meta = _json_or_empty(Path(folder) / "meta.json")
        self._add("dataset", to=["child", "parent"], context=context, **_dataset(self._config, meta))
        self._tag_data("child", "parent")

    def _tag_data(self, *to: str) -> None:
        fingerprint = data_fingerprint(self.name)
        if fingerprint:
            self._add("tags", to=list(to), values={"data_fingerprint": fingerprint})

    def figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as figures/NAME.png."""
        if self._journal is None:
            return
        try:
            path = self._journal.place(f"{name}.png")
            figure.savefig(path)
        except OSError as error:
            self._give_up(error)
            return
        kept = path.relative_to(self._journal.path).as_posix()
        self._add("artifact", to=["child"], file=kept, folder="figures")

    def artifact(self, path: str | Path, folder: str | None = None, *, parent: bool = False) -> None:
        """Log a file, or every file of a folder, on the child (and the parent) run; it is copied now."""
        if self._journal is None:
            return
        if not Path(path).exists():
            print(f"warning: {path} is not there and was not recorded.", file=sys.stderr)
            return
        try:
            kept = self._journal.copy(Path(path))
        except OSError as error:
            self._give_up(error)
            return
        self._add("artifact", to=["child", "parent"] if parent else ["child"], file=kept, folder=folder)

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the child; the parent takes its status, until a further stage opens it again."""
        if self._journal is None:
            return
        if error is None and self.name in SOURCE_STAGES:
            self._tag_data("child")
        self._add("end", status=status, error=_short(error)[:500] if error is not None else "")
        if self._journal is not None:
            self._journal.close()
            self._wait(0.0 if self._inside and status == "FINISHED" else self._wait_s)

    def _wait(self, seconds: float) -> None:
        """Until the store has everything, or the courier says why not, or the time is over; at least a look.

        The courier outlives a pipeline that ends after another stage than expected, and sends the rest.
        """
        assert self._journal is not None
        path, starts = self._journal.path, 2
        until = time.monotonic() + seconds
        while path.exists():
            reason = _read(path / FAILED)
            if not reason and not self._courier_is_there() and path.exists():
                reason = self._start_courier() if starts else f"see {FOLDER / courier.LOG}"
                starts -= 1
            if reason:
                print(
                    f"warning: the MLflow store {shown(self._uri)} does not take the records of stage "
                    f"{self.name} now ({reason}). They wait in {path.parent} and go with the next stage, or "
                    "by: python -m ecggen.tracking send",
                    file=sys.stderr,
                )
                return
            if time.monotonic() >= until:
                return
            time.sleep(_POLL_S)

    def _courier_is_there(self) -> bool:
        """Whether one serves the outbox, or is on its way there."""
        coming = self._courier is not None and self._courier.poll() is None
        return coming or courier.serves(outbox())

    def _start_courier(self) -> str:
        """Start a courier; why that is not possible, else empty."""
        try:
            self._courier = courier.start(outbox())
        except OSError as error:
            return f"no process can be started: {error.strerror or error}"
        return ""


def flat_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested mapping under names that MLflow takes ("I+II" becomes "I_II")."""
    out = {}
    for key, value in flatten(dict(values)).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            out[re.sub(r"[^\w\-. /:]", "_", key)] = float(value)
    return out


def data_fingerprint(stage: str) -> str:
    """Of the windows; before they are cut (older ones may still lie there) of the source records."""
    path = "data/raw/source.json" if stage in SOURCE_STAGES else f"{PIPELINE_WINDOWS}/meta.json"
    return str(_json_or_empty(Path(path)).get("fingerprint", ""))


def _header(name: str, config: Config) -> dict[str, Any]:
    """What a sender needs to know to make the runs."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "HEAD")
    dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    own_store = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    tags = {
        KEY_TAG: run_key(),
        "git_commit": commit,
        "mlflow.source.git.dirty": str(dirty).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.type": "LOCAL",
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "tokenizer_mode": config.model.tokenizer_mode,
        "data_source": _data_source(config),
    }
    pipeline_name = os.environ.get("DVC_EXP_NAME") or f"{config.model.tokenizer_mode} {commit[:7]}"
    return {
        "stage": name,
        "uri": tracking_uri(),
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
        # A store of somebody else's choosing knows itself where its artifacts go.
        "artifacts": None if own_store else (pipeline_root() / "mlartifacts").as_uri(),
        "pipeline": pipeline_process(),
        "pipeline_name": pipeline_name.strip(),
        "tags": tags,
        "params": {key: str(value) for key, value in flatten(config_to_dict(config)).items()},
    }


def _data_source(config: Config) -> str:
    data = config.data
    if data.sources:
        return f"several {', '.join(data.sources)}"
    return " ".join(filter(None, (data.source, data.database or data.path)))


def _dataset(config: Config, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Where the windows come from, their fingerprint and counts; the windows are not read."""
    data, url = config.data, ""
    if data.source == "physionet":
        from ecggen.prepare.databases import physionet_address

        url = f"{data.url or 'https://physionet.org/files'}/{physionet_address(data.database)}/"
    return {
        "name": "several" if data.sources else data.database or data.source,
        "digest": str(meta.get("fingerprint", ""))[:36],
        "path": data.path or PIPELINE_WINDOWS,
        "url": url,
        "time_len": data.time_len,
        "counts": meta.get("counts", {}),
    }


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """No second stage of this name in this folder: one whose dvc was killed may still be at work here."""
    path = RUNNING / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = locks.take(path, str(os.getpid()))
    except OSError:  # a folder that cannot be written fails the stage where it writes its results
        yield
        return
    if not taken:
        raise EcggenError(
            f"Stage {name} is still running in this folder (process {_read(path) or 'unknown'}; its dvc may "
            "have been killed): wait until it is done, or end that process, then run dvc repro again."
        )
    try:
        yield
    finally:
        locks.drop(path)


def _wait_s() -> float:
    given = os.environ.get(WAIT_VARIABLE, "")
    try:
        return max(float(given), 0.0) if given else WAIT_S
    except ValueError:
        raise TrackingError(
            f"{WAIT_VARIABLE} is {given!r}: a number of seconds is needed, for example {WAIT_S:g}."
        ) from None


def _short(error: BaseException) -> str:
    return (in_words(error) or str(error).strip() or type(error).__name__).splitlines()[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileError:
        return {}
    return found if isinstance(found, dict) else {}
