"""Journals replayed into MLflow: one parent run per pipeline run, one child per stage. Imports mlflow.

Replaying is safe to interrupt and to repeat. Runs are found again by a tag (the child by the journal's id,
the parent by the pipeline's key), parameters, tags and artifacts are set to the same value, and a metric
point (key, step, time, value) that the store has is not stored again: it is the key of MLflow's table.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ecggen.tracking.identity import KEY_TAG, pipeline_root
from ecggen.tracking.locks import lock
from ecggen.tracking.outbox import Waiting

JOURNAL_TAG = "ecggen.journal"
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # the store's own limits
_SAVE_EVERY = 50  # entries; what is sent twice after a crash costs time alone
#: What a store says of an entry that it will never take, however often it is asked.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Store:
    """One tracking store. Every method lets the errors of MLflow's database and network layers through."""

    def __init__(self, uri: str) -> None:
        _probe(uri)
        # A stage waits for seconds, and the next attempt is never far: no minutes of retries inside MLflow.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        for name in ("mlflow", "alembic"):  # a new store tells its whole making, an error its traceback
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.uri = uri
        self._entities = mlflow.entities
        with _parents():
            self._client = mlflow.MlflowClient(tracking_uri=uri)  # makes the store
        self._experiments: dict[str, str] = {}

    def send(self, journal: Waiting, owned: bool) -> list[str]:
        """Send what is new of a journal and remove it when it is complete; what the store refused, in words.

        owned: its stage is still running; of another one that did not say how it ended, the run is KILLED.
        The caller holds the journal's lock.
        """
        _probe(self.uri)
        replay = _Replay(self, journal)
        ended = replay.run()
        if not ended and not owned:
            replay.end("KILLED", "The process was killed.", journal.last_written_ms())
        if ended or not owned:
            journal.remove()
        return replay.refused

    def answers(self) -> bool:
        """Whether the store is there: what failed before was then about one journal."""
        try:
            _probe(self.uri)
            self._client.search_experiments(max_results=1)
        except Exception:  # of whatever layer below MLflow
            return False
        return True

    def experiment(self, name: str, place: str | None) -> str:
        """Id of the experiment, made with this artifact location if it is new."""
        if name not in self._experiments:
            with _parents():
                found = self._client.get_experiment_by_name(name)
                self._experiments[name] = (
                    found.experiment_id
                    if found is not None
                    else self._client.create_experiment(name, artifact_location=place)
                )
        return self._experiments[name]

    def find(self, experiment: str, tags: Mapping[str, str]) -> Any | None:
        """The oldest run with these tags."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time ASC"]
        found = self._client.search_runs([experiment], query, max_results=1, order_by=order)
        return found[0] if found else None

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """One call of the client."""
        return getattr(self._client, name)(*args, **kwargs)

    def entity(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """One of MLflow's own value classes."""
        return getattr(self._entities, name)(*args, **kwargs)


class _Replay:
    """One pass over a journal."""

    def __init__(self, store: Store, journal: Waiting) -> None:
        self.store, self.journal = store, journal
        self.refused: list[str] = []
        self._points: list[tuple[str, Any]] = []  # (run id, metric), not sent yet
        self._told: set[str] | None = None  # metrics that the parent has
        self._kinds = {
            "run": self._run,
            "metrics": self._metrics,
            "headline": self._headline,
            "tags": self._tags,
            "dataset": self._dataset,
            "artifact": self._artifact,
        }

    def run(self) -> bool:
        """Send every new entry; True when the journal's end is among them."""
        position, since = self.journal.sent["position"], 0
        for position, entry in self.journal.entries():
            if entry["kind"] != "metrics":
                self._flush()
            if entry["kind"] == "end":
                self.end(entry["status"], entry["error"], entry["time"])
                return True
            if entry["kind"] in self._kinds:
                self._kinds[entry["kind"]](entry)
            else:
                self.refused.append(f"an entry of a kind that this version does not know: {entry['kind']!r}")
            since += 1
            if since % _SAVE_EVERY == 0:
                self._flush()
                self.journal.save(position)
        self._flush()
        if since:
            self.journal.save(position)
        return False

    def end(self, status: str, error: str, time_ms: int) -> None:
        """End the child; the parent takes its status, until a further stage opens it again."""
        if error:
            self._try("set_tag", self._child_id, "error", error[:500])
        for run in (self._child_id, self._parent_id):
            self._try("set_terminated", run, status, time_ms)

    @property
    def _child_id(self) -> str:
        return str(self.journal.sent["child"])

    @property
    def _parent_id(self) -> str:
        return str(self.journal.sent["parent"])

    def _runs(self, entry: Mapping[str, Any]) -> list[str]:
        return [self._child_id if name == "child" else self._parent_id for name in entry["to"]]

    def _try(self, call: str, /, *args: Any, **kwargs: Any) -> None:
        """A call; an entry that the store refuses for good is noted and left out."""
        try:
            self.store.call(call, *args, **kwargs)
        except Exception as error:  # told apart by MLflow's own code, which other layers' errors lack
            if getattr(error, "error_code", "") not in _REFUSALS:
                raise
            self.refused.append(f"{call}: {first_line(error)}")

    # --- one method per kind of entry ---------------------------------------------------------------------

    def _run(self, entry: Mapping[str, Any]) -> None:
        """The header: parent found or made, child found or made, parameters."""
        store, sent = self.store, self.journal.sent
        experiment = store.experiment(entry["experiment"], entry["artifacts"])
        tags, begun = entry["tags"], entry["time"]
        with _parents():
            parent = store.find(experiment, {KEY_TAG: tags[KEY_TAG], "stage": "pipeline"})
            if parent is None:
                own = tags | {"stage": "pipeline", "mlflow.source.name": "dvc.yaml"}
                parent = store.call("create_run", experiment, begun, own, entry["pipeline_name"])
            else:
                store.call("update_run", parent.info.run_id, status="RUNNING")
            known = parent.data.params  # not all of them where a sender was killed just here
            self._params(parent.info.run_id, {k: v for k, v in entry["params"].items() if k not in known})
        sent["parent"] = parent.info.run_id
        child = store.find(experiment, {JOURNAL_TAG: entry["id"]})
        if child is None:
            own = tags | {"stage": entry["stage"], "mlflow.source.name": f"stages/{entry['stage']}.py"}
            own |= {"mlflow.parentRunId": parent.info.run_id, JOURNAL_TAG: entry["id"]}
            child = store.call("create_run", experiment, begun, own, entry["stage"])
        sent["child"] = child.info.run_id
        self._params(child.info.run_id, entry["params"])

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        entries = [self.store.entity("Param", key, value) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_A_BATCH):
            self._try("log_batch", run, params=entries[start : start + _PARAMS_A_BATCH])

    def _metrics_of(self, run: str, entry: Mapping[str, Any], values: Mapping[str, float]) -> None:
        for key, value in values.items():
            point = self.store.entity("Metric", key, value, entry["time"], entry["step"])
            self._points.append((run, point))

    def _metrics(self, entry: Mapping[str, Any]) -> None:
        self._metrics_of(self._child_id, entry, entry["values"])
        if len(self._points) >= _METRICS_A_BATCH:
            self._flush()

    def _headline(self, entry: Mapping[str, Any]) -> None:
        """Numbers of the parent, each once: the first value stands."""
        if self._told is None:
            self._told = set(self.store.call("get_run", self._parent_id).data.metrics)
        fresh = {key: value for key, value in entry["values"].items() if key not in self._told}
        self._told |= set(fresh)
        self._metrics_of(self._parent_id, {**entry, "step": 0}, fresh)

    def _flush(self) -> None:
        """Send the collected metrics, in the store's batches."""
        points, self._points = self._points, []
        for run in dict.fromkeys(run for run, _ in points):
            own = [point for owner, point in points if owner == run]
            for start in range(0, len(own), _METRICS_A_BATCH):
                self._try("log_batch", run, metrics=own[start : start + _METRICS_A_BATCH])

    def _tags(self, entry: Mapping[str, Any]) -> None:
        for run in self._runs(entry):
            for key, value in entry["values"].items():
                self._try("set_tag", run, key, value)

    def _dataset(self, entry: Mapping[str, Any]) -> None:
        data = self.store.entity("Dataset", **_described(entry))
        tag = self.store.entity("InputTag", "mlflow.data.context", entry["context"])
        for run in self._runs(entry):
            self._try("log_inputs", run, [self.store.entity("DatasetInput", data, [tag])])

    def _artifact(self, entry: Mapping[str, Any]) -> None:
        path = self.journal.path / entry["file"]
        if not path.exists():
            self.refused.append(f"{path} was removed before it was sent")
            return
        call = "log_artifacts" if path.is_dir() else "log_artifact"
        for run in self._runs(entry):
            self._try(call, run, str(path), entry["folder"])


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an MLflow data set: digest, source, schema and counts; the windows are not read."""
    import numpy as np
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
    from mlflow.types import Schema, TensorSpec

    source: Any = (
        HTTPDatasetSource(entry["url"]) if entry["url"] else LocalArtifactDatasetSource(entry["path"])
    )
    schema = Schema([TensorSpec(np.dtype(np.float32), (-1, 12, entry["time_len"]), "ecg_mv")])
    made = MetaDataset(  # type: ignore[abstract]  # MLflow's own class, complete at run time
        source, name=entry["name"], digest=entry["digest"] or None, schema=schema
    )
    return made.to_dict() | {"profile": json.dumps(entry["counts"], sort_keys=True)}


def _parents() -> Any:
    """One process at a time makes the store, an experiment or a parent: several that meet a fresh sqlite
    file break it."""
    return lock(pipeline_root() / ".mlflow.lock")


def _probe(uri: str) -> None:
    """Whether a sqlite store can be written now. MLflow itself would ask a locked one for minutes."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
    if not path.is_file() or not path.stat().st_size:
        return
    connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()
