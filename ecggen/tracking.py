"""MLflow records of pipeline runs: one parent run per pipeline run, one child run per stage.

The only file that imports mlflow. Stages of one pipeline run are separate processes; they find their common
parent by a key (`run_key`) under a file lock. A stage that DVC skips keeps the run it made earlier.

Environment: MLFLOW_TRACKING_URI names another store (default: mlflow.db in the main repository),
MLFLOW_EXPERIMENT_NAME another experiment, ECGGEN_RUN_KEY another key of the pipeline run, and
ECGGEN_TRACKING=off switches the records off (for tests and for stages run by hand).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecggen.summary import headline
from ecggen.utils.config import Config, config_to_dict, flatten, load_config
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import FileError, read_json
from ecggen.utils.threads import wait_passively

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

EXPERIMENT = "ecggen"
KEY_TAG = "ecggen.run_key"
PIPELINE_WINDOWS = "data/windows"
SOURCE_STAGES = ("download", "preprocess")


class TrackingError(EcggenError):
    """The tracking store cannot be used."""


def run_stage(name: str, body: Callable[[Config, StageRun], Mapping[str, Any]]) -> int:
    """Run one stage: params.yaml in, `body(config, run)`, its metrics to MLflow. Returns the exit code.

    `body` imports what it needs itself, after the parameters are checked and the thread policy is set.
    """
    wait_passively()
    try:
        config = load_config("params.yaml")
        if config.data.meta_root != PIPELINE_WINDOWS:
            raise TrackingError(
                f"data.meta_root is {config.data.meta_root!r}: the pipeline reads the windows it cuts, "
                f"{PIPELINE_WINDOWS!r}. For records of your own set data.source=wfdb and data.path; for a "
                "folder of .npy windows use python -m ecggen.main."
            )
        with stage_run(name, config) as run:
            metrics = body(config, run)
            run.metrics(metrics)
            run.headline(headline(name, metrics))
    except EcggenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def stage_run(name: str, config: Config) -> Iterator[StageRun]:
    """The child run of one stage; FAILED (KILLED) together with its parent when the block raises."""
    run = StageRun(name, config)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    run.close("FINISHED")


class StageRun:
    """What a stage tells MLflow. With ECGGEN_TRACKING=off every method does nothing."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self._config = config
        self._client: Any = None
        self._warned = False
        self._told: set[str] = set()  # metrics that the parent has
        if os.environ.get("ECGGEN_TRACKING", "").lower() in {"off", "0", "false", "no"}:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow
        except ImportError as error:
            raise TrackingError(
                "MLflow is not installed: pip install -e . brings it, or set ECGGEN_TRACKING=off."
            ) from error
        for name in ("mlflow", "alembic"):  # a new store tells its whole making otherwise
            logging.getLogger(name).setLevel(logging.WARNING)
        self._mlflow = mlflow
        try:
            self._open()
        except Exception as error:  # MLflow lets the errors of its database and network layers through
            raise TrackingError(
                f"The MLflow store {tracking_uri()} cannot be used ({_first_line(error)}): check "
                "MLFLOW_TRACKING_URI, or set ECGGEN_TRACKING=off."
            ) from error

    def _open(self) -> None:
        config = self._config
        params = {key: str(value) for key, value in flatten(config_to_dict(config)).items()}
        tags = _tags(config) | {KEY_TAG: run_key()}
        name = os.environ.get("DVC_EXP_NAME") or f"{config.model.tokenizer_mode} {tags['git_commit'][:7]}"
        with _lock(pipeline_root() / ".mlflow.lock"):
            client = self._mlflow.MlflowClient(tracking_uri=tracking_uri())  # makes the store
            self._experiment = _experiment(client)
            query = f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}' and tags.stage = 'pipeline'"
            found = client.search_runs([self._experiment], query, max_results=1)
            if found:
                self.parent = found[0].info.run_id
                self._told = set(found[0].data.metrics)
                client.update_run(self.parent, status="RUNNING")
            else:
                parent = client.create_run(
                    self._experiment, tags=tags | {"stage": "pipeline"}, run_name=name.strip()
                )
                self.parent = parent.info.run_id
                self._log_params(client, self.parent, params)
        child_tags = tags | {"stage": self.name, "mlflow.parentRunId": self.parent}
        child_tags["mlflow.source.name"] = f"stages/{self.name}.py"
        self.child = client.create_run(self._experiment, tags=child_tags, run_name=self.name).info.run_id
        self._log_params(client, self.child, params)
        self._client = client
        if self.name not in SOURCE_STAGES:
            self._tag_data(self.child, self.parent)

    def _log_params(self, client: Any, run_id: str, params: Mapping[str, str]) -> None:
        entries = [self._mlflow.entities.Param(key, value) for key, value in params.items()]
        for start in range(0, len(entries), 100):  # the store's limit per batch
            client.log_batch(run_id, params=entries[start : start + 100])

    def _send(self, call: str, *args: Any, **kwargs: Any) -> None:
        """One call of the client. A store that fails on the way must not cost a finished training."""
        if self._client is None:
            return
        try:
            getattr(self._client, call)(*args, **kwargs)
        except Exception as error:  # of whatever layer below MLflow
            if not self._warned:
                print(f"warning: MLflow did not take {call}: {_first_line(error)}", file=sys.stderr)
            self._warned = True

    def _log_metrics(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        entries = [self._mlflow.entities.Metric(key, value, now, step) for key, value in values.items()]
        for start in range(0, len(entries), 1000):
            self._send("log_batch", run_id, metrics=entries[start : start + 1000])

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log every finite number of a nested mapping on the child run."""
        if self._client is not None:
            self._log_metrics(self.child, flat_numbers(values), step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log one row of the training history in one batch; its `epoch` is the step."""
        values = {f"epoch/{key}": value for key, value in row.items() if key != "epoch"}
        self.metrics(values, step=int(row.get("epoch", 0)))

    def headline(self, values: Mapping[str, float]) -> None:
        """Log the few numbers that runs are compared by on the parent run, each once."""
        if self._client is None or not values:
            return
        fresh = {key: value for key, value in flat_numbers(values).items() if key not in self._told}
        self._told |= set(fresh)
        self._log_metrics(self.parent, fresh, 0)

    def dataset(self, folder: str | Path, context: str) -> None:
        """Log a folder of windows (with meta.json) as an input of the child and the parent run."""
        if self._client is None:
            return
        meta = _json_or_empty(Path(folder) / "meta.json")
        entity = self._mlflow.entities.Dataset(**_describe(self._config, meta))
        tag = self._mlflow.entities.InputTag("mlflow.data.context", context)
        for run_id in (self.child, self.parent):
            self._send("log_inputs", run_id, [self._mlflow.entities.DatasetInput(entity, [tag])])
        self._tag_data(self.child, self.parent)

    def _tag_data(self, *run_ids: str) -> None:
        fingerprint = data_fingerprint(self.name)
        for run_id in run_ids if fingerprint else ():
            self._send("set_tag", run_id, "data_fingerprint", fingerprint)

    def figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as figures/NAME.png."""
        self._send("log_figure", getattr(self, "child", ""), figure, f"figures/{name}.png")

    def artifact(self, path: str | Path, folder: str | None = None, *, parent: bool = False) -> None:
        """Log a file, or every file of a folder, on the child (and the parent) run."""
        if self._client is None:
            return
        call = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        for run_id in (self.child, self.parent) if parent else (self.child,):
            self._send(call, run_id, str(path), folder)

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the child; the parent takes its status, until a further stage opens it again."""
        if self._client is None:
            return
        if error is not None:
            self._send("set_tag", self.child, "error", _first_line(error)[:500])
        elif self.name in SOURCE_STAGES:
            self._tag_data(self.child)
        for run_id in (self.child, self.parent):
            self._send("set_terminated", run_id, status)


def pipeline_root() -> Path:
    """The main repository, also in queued and temporary experiments; else the folder with dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the sqlite file that `mlflow ui` finds from the repository root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(pipeline_root() / 'mlflow.db').as_posix()}"


def run_key() -> str:
    """What all stages of one pipeline run have in common and no other run has."""
    given = os.environ.get("ECGGEN_RUN_KEY")
    if given:
        return re.sub(r"[^\w.:-]", "_", given)
    names = [os.environ.get(name, "") for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")]
    parts = [*names, _git("rev-parse", "HEAD"), socket.gethostname(), _pipeline_process()]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def data_fingerprint(stage: str) -> str:
    """Of the windows; before they are cut (older ones may still lie there) of the source records."""
    path = "data/raw/source.json" if stage in SOURCE_STAGES else f"{PIPELINE_WINDOWS}/meta.json"
    return str(_json_or_empty(Path(path)).get("fingerprint", ""))


def flat_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested mapping under names that MLflow takes ("I+II" becomes "I_II")."""
    out = {}
    for key, value in flatten(dict(values)).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            out[re.sub(r"[^\w\-. /:]", "_", key)] = float(value)
    return out


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A store of somebody else's choosing knows itself where its artifacts go.
    place = None if os.environ.get("MLFLOW_TRACKING_URI") else (pipeline_root() / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=place)


def _tags(config: Config) -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": os.environ.get("DVC_EXP_BASELINE_REV") or commit,
        "mlflow.source.git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "mlflow.source.git.commit": os.environ.get("DVC_EXP_BASELINE_REV") or commit,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc.yaml",
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "tokenizer_mode": config.model.tokenizer_mode,
        "data_source": _data_source(config),
    }


def _data_source(config: Config) -> str:
    data = config.data
    if data.sources:
        return f"several {', '.join(data.sources)}"
    return " ".join(filter(None, (data.source, data.database or data.path)))


def _describe(config: Config, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an MLflow data set: digest, source, schema and counts; the windows are not read."""
    import numpy as np
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
    from mlflow.types import Schema, TensorSpec

    data = config.data
    source: Any = LocalArtifactDatasetSource(data.path or PIPELINE_WINDOWS)
    if data.source == "physionet":
        from ecggen.prepare.databases import physionet_address

        address = physionet_address(data.database)
        source = HTTPDatasetSource(f"{data.url or 'https://physionet.org/files'}/{address}/")
    schema = Schema([TensorSpec(np.dtype(np.float32), (-1, 12, data.time_len), "ecg_mv")])
    digest = str(meta.get("fingerprint", ""))[:36] or None
    made = MetaDataset(  # type: ignore[abstract]  # MLflow's own class, complete at run time
        source, name="several" if data.sources else data.database or data.source, digest=digest, schema=schema
    )
    return made.to_dict() | {"profile": json.dumps(meta.get("counts", {}), sort_keys=True)}


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time: several that meet a fresh sqlite file break it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is not None:
        with path.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
        return
    held = path.with_name(path.name + ".held")
    while True:
        try:
            os.close(os.open(held, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            if time.time() - held.stat().st_mtime > 120:  # its owner died
                held.unlink(missing_ok=True)
            time.sleep(0.1)
    try:
        yield
    finally:
        held.unlink(missing_ok=True)


def _pipeline_process() -> str:
    """Identity (pid and start) of the dvc process above this one, else of this one."""
    import psutil

    own = psutil.Process()
    try:
        above = [p for p in own.parents() if _is_dvc(p.cmdline())]
    except psutil.Error:
        above = []
    chosen = above[0] if above else own
    try:  # clock ticks since boot; the wall-clock time derived from them can jump by a second
        start = Path(f"/proc/{chosen.pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = f"{chosen.create_time():.2f}"
    return f"{chosen.pid}:{start}"


def _is_dvc(command: list[str]) -> bool:
    """True for `dvc ...`, `python .../dvc ...` and `python -m dvc ...`."""
    names = [Path(part).name.lower().removesuffix(".exe") for part in command[:3]]
    return "dvc" in names[:2] or names[1:] == ["-m", "dvc"]


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileError:
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
