"""MLflow records of pipeline runs: one parent run for each pipeline run, with one child run for each stage.

A stage never touches the store, so it neither waits for it nor fails with it. It writes its record to a
folder of its own below the main repository:

    .ecggen/runs/ID/run.json     parameters, tags, metric points, status; rewritten after every epoch
    .ecggen/runs/ID/child/...    copies of the files for the child run; parent/... for the parent run

and starts `python -m ecggen.tracking --follow`, which logs these folders while the pipeline works (importing
MLflow takes seconds: once for all stages) and removes those of stages that have ended. Logging a folder twice
changes nothing, so it may be interrupted anywhere. `python -m ecggen.tracking` logs what is still there.

Environment: MLFLOW_TRACKING_URI names another store (default: mlflow.db in the main repository),
MLFLOW_EXPERIMENT_NAME another experiment, ECGGEN_RUN_KEY another key of the pipeline run (stages with the
same key share a parent), and ECGGEN_TRACKING=off switches records off.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ecggen.utils.config import Config, config_to_dict, flatten
from ecggen.utils.files import FileError, locked, read_json, write_json, write_text

KEY_TAG, FOLDER_TAG = "ecggen.run_key", "ecggen.folder"
SOURCE_STAGES, LAST_STAGE = ("download", "preprocess"), "report"
WAIT_S = 5.0  # at most, at the end of a stage after which the pipeline may end
_POLL_S, _RETRY_S, _IDLE_S = 0.5, 3.0, 20.0  # of the following process
_OTHER_HOST_S = 86_400.0  # locks of other machines may be invisible: their runs are lost after a silent day

# --- which store, which pipeline run ------------------------------------------------------------------------


def pipeline_root() -> Path:
    """The main repository, also in queued and temporary experiments; else the folder with dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def runs_folder() -> Path:
    """Where the folders of stage runs lie; not created."""
    return pipeline_root() / ".ecggen" / "runs"


def tracking_uri(uri: str | None = None) -> str:
    """The address of the store; uri: as given, None = MLFLOW_TRACKING_URI, "" = mlflow.db in the repository.

    Relative paths are below the main repository: the folder of a temporary experiment is deleted.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() if uri is None else uri
    root = pipeline_root()
    path = uri.removeprefix("sqlite:///") if uri else "mlflow.db"
    if not uri or (path != uri and not Path(path).is_absolute()):
        return f"sqlite:///{(root / path).as_posix()}"
    return uri if "://" in uri or uri in ("databricks", "databricks-uc", "uc") else (root / uri).as_uri()


def run_key() -> str:
    """What the stages of one pipeline run share and other runs do not: the experiment and the dvc process."""
    if os.environ.get("ECGGEN_RUN_KEY"):
        return re.sub(r"[^\w.:-]", "_", os.environ["ECGGEN_RUN_KEY"])
    names = [os.environ.get(name, "") for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")]
    process = dvc_process() or _process_identity(os.getpid())
    return hashlib.sha256("\x1f".join([*names, socket.gethostname(), process]).encode()).hexdigest()[:16]


def dvc_process() -> str:
    """Identity of the dvc process above this one (`dvc ...`, `python -m dvc ...`); empty without one."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = [Path(word).stem.lower() for word in process.cmdline() if not word.startswith("-")]
            if "dvc" in words[:2]:
                return _process_identity(process.pid)
    return ""


def _process_identity(pid: int) -> str:
    """pid:start, which no later process of that number shares."""
    import psutil

    with suppress(OSError):  # in clock ticks since boot: psutil's time of day can jump by a second
        return f"{pid}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{pid}:{psutil.Process(pid).create_time():.0f}"


def _git(*arguments: str) -> str:
    """The output of git; empty where it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""


# --- the stage's side ---------------------------------------------------------------------------------------


def _recorded(method: Callable[..., None]) -> Callable[..., None]:
    """Skips a method of StageRun where nothing is recorded; what the disk refuses ends the record alone."""

    @functools.wraps(method)
    def call(self: StageRun, *args: Any, **kwargs: Any) -> None:
        if self.folder is None:
            return
        try:
            method(self, *args, **kwargs)
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

    @_recorded
    def _open(self) -> None:
        assert self.folder is not None
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # addresses may hold passwords
        self._alive.enter_context(locked(self.folder))  # first: a folder without a lock is of a killed stage
        self.folder.mkdir()
        self._save()
        _start_following()

    def _save(self) -> None:
        assert self.folder is not None
        write_json(self.folder / "run.json", self._record)

    @_recorded
    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log every finite number of a nested mapping on the child run."""
        now = _now_ms()
        self._record["points"] += [[key, value, now, step] for key, value in flat_numbers(values).items()]
        self._save()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log one row of the training history; its `epoch` is the step."""
        values = {f"epoch/{key}": value for key, value in row.items() if key != "epoch"}
        self.metrics(values, step=int(row.get("epoch", 0)))

    @_recorded
    def headline(self, values: Mapping[str, float]) -> None:
        """Log the few numbers that runs are compared by on the parent run; the first value of each stands."""
        self._record["headline"] = flat_numbers(values) | self._record["headline"]

    @_recorded
    def dataset(self, folder: str | Path, context: str) -> None:
        """Log a folder of windows (with meta.json) as an input of the child and the parent run."""
        entry = _dataset(self._config, _json_or_empty(Path(folder) / "meta.json"))
        self._record["datasets"].append([entry, context])
        self._tag_data()
        self._save()

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

    @_recorded
    def close(self, status: str, error: str = "") -> None:
        """End the child run (FINISHED, FAILED, KILLED), and say where the store did not take it.

        Waits for the store, WAIT_S at most, where the pipeline may end here.
        """
        assert self.folder is not None
        if status == "FINISHED":
            self._tag_data()
        self._record |= {"status": status, "error": error[:500], "end": _now_ms()}
        notice = _text(self.folder / "notice")
        self._save()
        self._alive.close()
        _start_following()
        last = status != "FINISHED" or self.name == LAST_STAGE or not self._record["in_dvc"]
        until = time.monotonic() + (WAIT_S if last else 0.0)
        while not (problem := _text(self.folder / "problem")) and self.folder.exists():
            if time.monotonic() >= until:
                problem = _problem(self._record, f"no answer within {WAIT_S:g} s") if last else ""
                break
            time.sleep(0.05)
        for words in filter(None, (notice, problem)):
            print(f"warning: {words}", file=sys.stderr)

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
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    experiment, mode, data = os.environ.get("DVC_EXP_NAME", ""), config.model.tokenizer_mode, config.data
    source = " ".join(filter(None, (data.source, data.database or data.path)))
    tags = {
        KEY_TAG: run_key(),
        "git_commit": commit,
        "mlflow.source.git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.type": "LOCAL",
        "dvc_exp_name": experiment,
        "tokenizer_mode": mode,
        "data_source": f"several {', '.join(data.sources)}" if data.sources else source,
    }
    return {
        "stage": name,
        "uri": tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI", "").strip() else "",
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ecggen",
        "pipeline": experiment or f"{mode} {commit[:7]}".strip(),
        "in_dvc": bool(dvc_process()),
        "host": socket.gethostname(),
        "begin": _now_ms(),
        "status": "RUNNING",
        "tags": tags,
        "params": {key: str(value) for key, value in flatten(config_to_dict(config)).items()},
        "points": [],
        "headline": {},
        "datasets": [],
    }


def _dataset(config: Config, meta: Mapping[str, Any]) -> dict[str, str]:
    """The fields of an MLflow data set: where the windows come from, their fingerprint, shape and counts."""
    data = config.data
    source: dict[str, str] = {"uri": data.path or "data/windows"}
    if data.source == "physionet":
        from ecggen.prepare.databases import physionet_address

        address = f"{data.url or 'https://physionet.org/files'}/{physionet_address(data.database)}/"
        source = {"url": address}
    tensor = {"dtype": "float32", "shape": [-1, 12, data.time_len]}
    schema = {"mlflow_colspec": [{"name": "ecg_mv", "type": "tensor", "tensor-spec": tensor}]}
    return {
        "name": "several" if data.sources else data.database or data.source,
        "digest": str(meta.get("fingerprint", "unknown"))[:36],
        "source_type": "http" if "url" in source else "local",
        "source": json.dumps(source),
        "schema": json.dumps(schema),
        "profile": json.dumps(meta.get("counts", {}), sort_keys=True),
    }


def _problem(record: Mapping[str, Any], reason: str) -> str:
    words = (
        f"the MLflow store {tracking_uri(record['uri'])} has not taken the record of stage {record['stage']} "
        f"({reason}). Nothing is lost: it waits in {runs_folder()}, and python -m ecggen.tracking logs it."
    )
    return re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:***@", words)  # without passwords


def _start_following() -> None:
    """Start a process that logs beside the pipeline and outlives it, unless there is one."""
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


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _json_or_empty(path: Path) -> dict[str, Any]:
    with suppress(FileError):
        return dict(read_json(path))
    return {}


# --- the logging side: the only place that imports mlflow ---------------------------------------------------


class Logger:
    """Logs the folders of stage runs to MLflow and removes those of ended stages."""

    def __init__(self) -> None:
        self.logged = 0  # stage runs logged to their end
        self.running = 0  # stages at work, as the last pass saw it
        self.problems: list[str] = []  # of the last pass, in words
        self.notices: list[str] = []
        self._states: dict[Path, tuple[float, bool]] = {}  # time of run.json, whether its stage was at work
        self._points: dict[Path, int] = {}  # metric points of a folder that are logged
        self._away: dict[str, str] = {}  # stores that did not answer in this pass -> why

    def log_all(self) -> bool:
        """One pass over the folders; whether any had news."""
        from filelock import FileLock, Timeout

        self.running, self.problems, self._away = 0, [], {}
        folders = sorted(runs_folder().glob("[0-9]*"))
        if not folders:
            return False
        try:
            with FileLock(runs_folder().parent / "logging.lock", timeout=60):
                return sum(self._visit(folder) for folder in folders) > 0
        except Timeout:
            self.problems = ["Another process has been logging for a minute: try again later."]
            return False

    def _visit(self, folder: Path) -> bool:
        """Log a folder that has news; whether it had any."""
        with locked(folder) as free:  # before run.json is read: a stage writes that before it ends
            pass
        record = _json_or_empty(folder / "run.json")
        if not record:
            if free and folder.is_dir() and time.time() - folder.stat().st_mtime > 60:  # killed at its start
                shutil.rmtree(folder, ignore_errors=True)
            return False
        changed = (folder / "run.json").stat().st_mtime
        another_host = record["host"] != socket.gethostname()
        alive = not free or (another_host and time.time() - changed < _OTHER_HOST_S)
        self.running += alive
        if self._states.get(folder) == (changed, alive):
            return False
        uri = tracking_uri(record["uri"])
        try:
            if uri in self._away:
                raise ConnectionError(self._away[uri])
            try:
                client = _client(uri)
            except Exception as error:
                self._away[uri] = str(error)
                raise
            self._log(client, folder, record, alive, int(changed * 1000))
        except Exception as error:  # of MLflow or any database or network layer below it: tried again later
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.problems.append(_problem(record, reason))
            with suppress(OSError):
                write_text(folder / "problem", self.problems[-1])
            return True
        self._states[folder] = (changed, alive)
        (folder / "problem").unlink(missing_ok=True)
        return True

    def _log(self, client: Any, folder: Path, record: dict[str, Any], alive: bool, changed_ms: int) -> None:
        from mlflow.entities import Metric

        stage, tags, begin = record["stage"], record["tags"], record["begin"]
        experiment, notice = _experiment(client, record)
        if notice:
            self.notices.append(notice)
            write_text(folder / "notice", notice)
        identity = {KEY_TAG: tags[KEY_TAG], "stage": "pipeline"}
        source = {"mlflow.source.name": "dvc.yaml"}
        parent = _run(client, experiment, record["pipeline"], begin, identity, tags | source)
        parent_id = parent.info.run_id
        source = {"mlflow.source.name": f"stages/{stage}.py", "mlflow.parentRunId": parent_id}
        identity = {FOLDER_TAG: folder.name, "stage": stage}
        child = _run(client, experiment, stage, begin, identity, tags | source)
        child_id = child.info.run_id
        if folder not in self._points and not record["uri"]:
            _close_lost_runs(client, experiment)
        for run in (parent, child):
            _log_settings(client, run, record)
        points = [Metric(*point) for point in record["points"][self._points.get(folder, 0) :]]
        for start in range(0, len(points), 1000):
            client.log_batch(child_id, metrics=points[start : start + 1000])
        self._points[folder] = len(record["points"])
        status, error, end = record["status"], record.get("error", ""), record.get("end", changed_ms)
        new = {key: value for key, value in record["headline"].items() if key not in parent.data.metrics}
        client.log_batch(parent_id, metrics=[Metric(key, value, end, 0) for key, value in new.items()])
        if status == "RUNNING" and not alive:
            status, error = "KILLED", "The process was killed, or could not write its end to the disk."
        if status != "RUNNING":
            for run_id, name in ((child_id, "child"), (parent_id, "parent")):
                if (folder / name).is_dir():
                    client.log_artifacts(run_id, str(folder / name))
            if error:
                client.set_tag(child_id, "error", error)
            client.set_terminated(child_id, status, end)
        _set_parent_status(client, experiment, parent_id, end)
        if status != "RUNNING":
            (folder / "run.json").unlink()
            shutil.rmtree(folder, ignore_errors=True)
            self.logged += 1


def _sqlite_file(uri: str) -> Path | None:
    """The file of a store that is one."""
    is_file = uri.startswith("sqlite:///")
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])) if is_file else None


def _client(uri: str) -> Any:
    """A client of a store that answers. Raises whatever MLflow and the layers below it raise."""
    path = _sqlite_file(uri)
    if path is not None and path.is_file() and path.stat().st_size:
        # A locked or broken file is found out here; MLflow would try again for minutes.
        with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for name in ("mlflow", "alembic"):  # they describe every step of making a new store
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _experiment(client: Any, record: Mapping[str, Any]) -> tuple[str, str]:
    """Id of the experiment, made where it is missing, and a notice: artifacts lie beside the store in use.

    An experiment keeps the absolute path of its artifacts: after a move of the project another one is used.
    """
    name, file = record["experiment"], _sqlite_file(tracking_uri(record["uri"]))
    experiment, notice = client.get_experiment_by_name(name), ""
    place = None if file is None else (file.parent / "mlartifacts").as_uri()  # a server knows where
    if not record["uri"] and experiment is not None and experiment.artifact_location.rstrip("/") != place:
        old, name = experiment.artifact_location, f"{name} in {pipeline_root()}"
        notice = (
            f"The project was moved: MLflow's experiment {record['experiment']!r} keeps its files in "
            f"{old}. New runs go to the experiment {name!r}, with files in {place}."
        )
        experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id, ""
    return client.create_experiment(name, artifact_location=place), notice


def _run(
    client: Any, experiment: str, name: str, begin: int, identity: dict[str, str], tags: dict[str, str]
) -> Any:
    """The run with the tags `identity`, made where it is missing."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
    return runs[0] if runs else client.create_run(experiment, begin, tags | identity, name)


def _log_settings(client: Any, run: Any, record: Mapping[str, Any]) -> None:
    """Parameters, tags and data sets that a run lacks."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    run_id = run.info.run_id
    params = [Param(key, value) for key, value in record["params"].items() if key not in run.data.params]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    for key, value in record["tags"].items():
        if run.data.tags.get(key) != value:
            client.set_tag(run_id, key, value)
    for fields, context in record["datasets"]:
        tag = InputTag("mlflow.data.context", context)
        client.log_inputs(run_id, [DatasetInput(Dataset(**fields), [tag])])


def _set_parent_status(client: Any, experiment: str, parent_id: str, end: int) -> None:
    """Running while a child is; otherwise the worst of its stages, each as it ended last."""
    query, order = f"tags.`mlflow.parentRunId` = '{parent_id}'", ["attributes.start_time ASC"]
    children = client.search_runs([experiment], query, order_by=order)
    last = {run.data.tags["stage"]: run.info.status for run in children}.values()
    status = next((status for status in ("RUNNING", "KILLED", "FAILED") if status in last), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent_id, status=status)
    else:
        client.set_terminated(parent_id, status, end)


def _close_lost_runs(client: Any, experiment: str) -> None:
    """End what the repository's own store calls running though its folder is gone."""
    folders = {folder.name for folder in runs_folder().iterdir()}
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    for run in sorted(running, key=lambda run: run.data.tags.get("stage") == "pipeline"):  # parents last
        if run.data.tags.get("stage") == "pipeline":
            _set_parent_status(client, experiment, run.info.run_id, _now_ms())
        elif run.data.tags.get(FOLDER_TAG) not in folders:
            client.set_tag(run.info.run_id, "error", "Its record in .ecggen/runs is gone.")
            client.set_terminated(run.info.run_id, "KILLED")


def _follow(logger: Logger) -> None:
    """Log what the stages write until none has run for a while."""
    if hasattr(os, "nice"):
        os.nice(5)  # training goes first
    active, printed = time.monotonic(), ""
    while time.monotonic() - active < _IDLE_S:
        with suppress(OSError):  # the folder was removed: looked at again
            if (logger.log_all() and not logger.problems) or logger.running:
                active = time.monotonic()
            if printed != (printed := "\n".join(logger.problems)):
                print(time.strftime("%Y-%m-%d %H:%M:%S"), printed or "logged again", flush=True)
        time.sleep(_RETRY_S if logger.problems else _POLL_S)


def main(argv: list[str] | None = None) -> int:
    """Log to MLflow what is not there yet. Exit code 1 where records of ended stages stay behind."""
    parser = argparse.ArgumentParser(prog="python -m ecggen.tracking", description=main.__doc__)
    parser.add_argument("--follow", action="store_true", help="go on while stages run (stages start this)")
    logger = Logger()
    if parser.parse_args(argv).follow:
        with locked(runs_folder().parent / "following") as free:
            if free:
                _follow(logger)
        return 0
    logger.log_all()
    for words in (*logger.notices, *logger.problems):
        print(f"warning: {words}", file=sys.stderr)
    left, running = len(logger.problems), logger.running
    print(f"MLflow: {logger.logged} stage runs logged now, {left} still wait, {running} still run.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
