"""Logs the records that stages leave to MLflow: one run for each pipeline run, a child run for each stage.

A stage never touches the store, so it neither waits for it nor fails with it: `stages.record` writes

    .ecggen/runs/ID/run.json     parameters, tags, metric points, status; rewritten after every epoch
    .ecggen/runs/ID/child/...    copies of the files for the child run; parent/... for the parent run

below the main repository and starts `python -m ecggen.tracking --follow`, which logs these folders while the
pipeline works (importing MLflow takes seconds: once for all stages) and removes those of stages that have
ended. What a run is in MLflow follows from its folder alone: logging may be interrupted anywhere, and twice
is once. `python -m ecggen.tracking` logs what is still there.

MLFLOW_TRACKING_URI names another store (default: mlflow.db in the main repository).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from ecggen.utils.files import FileError, locked, read_json

#: Tags by which a run is known again.
KEY_TAG, FOLDER_TAG, PARENT_TAG = "ecggen.run_key", "ecggen.folder", "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
#: By this tag of an experiment it is model training, and not generative AI.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
#: A saved view of the runs in the UI: pipeline runs with the numbers that they are compared by.
_VIEW_TAG = "mlflow.sharedViewState.ecggen"
_PAGE = "/#/experiments/{}/runs?workflowType=machine_learning&viewStateShareKey=ecggen"
_POLL_S, _RETRY_S, _IDLE_S = 0.5, 3.0, 20.0  # of the following process
_OTHER_HOST_S = 86_400.0  # locks of other machines may be invisible: their runs are lost after a silent day


def pipeline_root() -> Path:
    """The main repository, also in queued and temporary experiments; else the folder with dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def runs_folder() -> Path:
    """Where the folders of stage runs lie; not created."""
    return pipeline_root() / ".ecggen" / "runs"


def warnings_file() -> Path:
    """What the logging process has to say; the next stage that ends prints and removes it."""
    return runs_folder().parent / "warnings.txt"


def page_file() -> Path:
    """The path of the page in the UI that compares the runs."""
    return runs_folder().parent / "page.txt"


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


class Logger:
    """Logs the folders of stage runs to MLflow and removes those of ended stages."""

    def __init__(self) -> None:
        self.logged = 0  # stage runs logged to their end
        self.running = self.waiting = 0  # in the last pass: stages at work; records that were not taken
        self.warnings: list[str] = []  # of the last pass
        self._states: dict[Path, tuple[float, bool]] = {}  # time of run.json, whether its stage was at work
        self._points: dict[Path, int] = {}  # metric points of a folder that are logged
        self._away: dict[str, Exception] = {}  # stores that did not answer in this pass

    def log_all(self) -> bool:
        """One pass over the folders; whether any had news."""
        from filelock import FileLock

        self.running, self.waiting, self.warnings, self._away = 0, 0, [], {}
        folders = sorted(runs_folder().glob("[0-9]*"))
        if not folders:
            return False
        with FileLock(runs_folder().parent / "logging.lock"):
            return sum(self._visit(folder) for folder in folders) > 0

    def _visit(self, folder: Path) -> bool:
        """Log a folder that has news; whether it had any."""
        with locked(folder) as free:  # before run.json is read: a stage writes that before it ends
            pass
        try:
            record = read_json(folder / "run.json")
        except FileError:  # just made, or just removed
            return False
        changed = (folder / "run.json").stat().st_mtime
        elsewhere = record["host"] != socket.gethostname() and time.time() - changed < _OTHER_HOST_S
        state = (changed, not free or elsewhere)
        self.running += state[1]
        if self._states.get(folder) == state:
            return False
        try:
            self._log(folder, record, *state)
            self._states[folder] = state
        except Exception as error:  # of MLflow or any database or network layer below it: tried again later
            self.waiting += 1
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            words = (
                f"the MLflow store {tracking_uri(record['uri'])} has not taken the record of stage "
                f"{record['stage']} ({reason}). Nothing is lost: it waits in {runs_folder()}, and "
                "python -m ecggen.tracking logs it."
            )
            self.warnings.append(re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:***@", words))  # without passwords
        return True

    def _log(self, folder: Path, record: dict[str, Any], changed: float, alive: bool) -> None:
        from mlflow.entities import Metric

        client = self._client(tracking_uri(record["uri"]))
        experiment = self._experiment(client, record)
        stage, status, error = record["stage"], record["status"], record.get("error", "")
        end = record.get("end", int(changed * 1000))
        identity = {KEY_TAG: record["tags"][KEY_TAG], "stage": "pipeline"}
        parent = _run(
            client, experiment, record, record["pipeline"], identity, "dvc.yaml", record["parent_tags"]
        )
        ids = {"parent": parent.info.run_id}
        identity = {FOLDER_TAG: folder.name, "stage": stage, PARENT_TAG: ids["parent"]}
        ids["child"] = _run(client, experiment, record, stage, identity, f"stages/{stage}.py").info.run_id
        if folder not in self._points and not record["uri"]:
            _close_lost_runs(client, experiment)
        points = record["points"][self._points.get(folder, 0) :]
        _log_batches(client, ids["child"], metrics=[Metric(*point) for point in points])
        self._points[folder] = len(record["points"])
        numbers = record["headline"].items() - parent.data.metrics.items()
        metrics = [Metric(key, value, end, 0) for key, value in sorted(numbers)]
        _log_batches(client, ids["parent"], metrics=metrics)
        if record["headline"]:
            client.set_experiment_tag(experiment, _VIEW_TAG, json.dumps(_view(record["columns"])))
            page_file().write_text(_PAGE.format(experiment), encoding="utf-8")
        if status == "RUNNING" and not alive:
            status, error = "KILLED", "The process was killed, or could not write its end to the disk."
        if status != "RUNNING":
            for name, run_id in ids.items():
                if (folder / name).is_dir():
                    client.log_artifacts(run_id, str(folder / name))
            if error:
                client.set_tag(ids["child"], "error", error)
            client.set_terminated(ids["child"], status, end)
        _set_parent_status(client, experiment, ids["parent"], end)
        if status != "RUNNING":
            (folder / "run.json").unlink()
            shutil.rmtree(folder, ignore_errors=True)
            self.logged += 1

    def _client(self, uri: str) -> Any:
        """A client of a store that answers; one that does not is asked once in a pass."""
        if uri in self._away:
            raise self._away[uri]
        try:
            return _client(uri)
        except Exception as error:
            self._away[uri] = error
            raise

    def _experiment(self, client: Any, record: Mapping[str, Any]) -> str:
        """Id of the experiment, made where it is missing; files lie beside the store that is used.

        An experiment keeps the absolute path of its files: after a move of the project another one is used,
        as after it was deleted.
        """
        name, file = record["experiment"], _sqlite_file(tracking_uri(record["uri"]))
        place = None if file is None else (file.parent / "mlartifacts").as_uri()  # a server knows where
        first, number, why = name, 1, ""
        while experiment := client.get_experiment_by_name(name):
            location = experiment.artifact_location
            if experiment.lifecycle_stage == "deleted":
                number += 1
                back = f"mlflow experiments restore -x {experiment.experiment_id} brings it back"
                why, name = f"MLflow's experiment {name!r} was deleted ({back})", f"{first} ({number})"
            elif not record["uri"] and location.rstrip("/") != place:
                why = f"The project was moved: MLflow's experiment {name!r} keeps its files in {location}"
                first = name = f"{first} in {pipeline_root()}"
            else:
                for key in _KIND.keys() - experiment.tags.keys():
                    client.set_experiment_tag(experiment.experiment_id, key, _KIND[key])
                return str(experiment.experiment_id)
        if why:
            files = f", with files in {place}" if place else ""
            self.warnings.append(f"{why}. New runs go to the experiment {name!r}{files}.")
        return str(client.create_experiment(name, place, _KIND))


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


def _run(
    client: Any, experiment: str, record: Mapping[str, Any], name: str, identity: dict[str, str], script: str,
    more_tags: Mapping[str, str] = MappingProxyType({}),
) -> Any:  # fmt: skip
    """The run with the tags `identity`, made where it is missing, with the settings of the record."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
    tags = record["tags"] | more_tags | identity | {"mlflow.source.name": script}
    run = runs[0] if runs else client.create_run(experiment, record["begin"], tags, name)
    params = [Param(*item) for item in record["params"].items() if item[0] not in run.data.params]
    tags = [RunTag(*item) for item in tags.items() - run.data.tags.items()]
    _log_batches(client, run.info.run_id, params=params, tags=tags)
    for fields, context in record["datasets"]:
        inputs = [DatasetInput(Dataset(**fields), [InputTag("mlflow.data.context", context)])]
        client.log_inputs(run.info.run_id, inputs)
    return run


def _view(names: Iterable[str]) -> dict[str, Any]:
    """What the UI keeps of a view of the runs."""
    columns = [f"metrics.`{name}`" for name in names]
    return {
        "searchFilter": "tags.stage = 'pipeline'",
        "orderByKey": "attributes.`start_time`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
    }


def _log_batches(client: Any, run_id: str, **entities: list[Any]) -> None:
    """Metrics, params or tags, in batches as large as MLflow takes them."""
    for kind, items in entities.items():
        for start in range(0, len(items), 100):
            client.log_batch(run_id, **{kind: items[start : start + 100]})


def _set_parent_status(client: Any, experiment: str, parent_id: str, end: int) -> None:
    """Running while a child is; otherwise the worst of its stages, each as it ended last."""
    query, order = f"tags.`{PARENT_TAG}` = '{parent_id}'", ["attributes.start_time ASC"]
    children = client.search_runs([experiment], query, order_by=order)
    last = {run.data.tags["stage"]: run.info.status for run in children}.values()
    status = next((status for status in ("RUNNING", "KILLED", "FAILED") if status in last), "FINISHED")
    client.update_run(parent_id, status=status)
    if status != "RUNNING":
        client.set_terminated(parent_id, status, end)


def _close_lost_runs(client: Any, experiment: str) -> None:
    """End what the repository's own store calls running though its folder is gone."""
    folders = {folder.name for folder in runs_folder().iterdir()}
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING' and tags.stage != 'pipeline'"):
        if run.data.tags[FOLDER_TAG] not in folders:
            client.set_tag(run.info.run_id, "error", "Its record in .ecggen/runs is gone.")
            client.set_terminated(run.info.run_id, "KILLED")
            _set_parent_status(client, experiment, run.data.tags[PARENT_TAG], int(time.time() * 1000))


def follow(logger: Logger) -> None:
    """Log what the stages write until none has run for a while; warnings go to the stage that ends next."""
    active, before = time.monotonic(), list[str]()
    while True:
        with suppress(OSError):  # the folder was removed: looked at again
            if (logger.log_all() and not logger.waiting) or logger.running:
                active = time.monotonic()
            if new := [words for words in logger.warnings if words not in before]:
                with warnings_file().open("a", encoding="utf-8") as file:
                    file.writelines(f"warning: {words}\n" for words in new)
            before = logger.warnings
        if time.monotonic() - active >= _IDLE_S:
            return
        time.sleep(_RETRY_S if logger.waiting else _POLL_S)


def main(argv: list[str] | None = None) -> int:
    """Log to MLflow what is not there yet. Exit code 1 where records of ended stages stay behind."""
    parser = argparse.ArgumentParser(prog="python -m ecggen.tracking", description=main.__doc__)
    parser.add_argument("--follow", action="store_true", help="go on while stages run (stages start this)")
    logger = Logger()
    if parser.parse_args(argv).follow:
        with locked(runs_folder().parent / "following") as free:
            if free:
                if hasattr(os, "nice"):
                    os.nice(5)  # training goes first
                follow(logger)
        return 0
    logger.log_all()
    warnings_file().unlink(missing_ok=True)  # said now, or no longer true
    for words in logger.warnings:
        print(f"warning: {words}", file=sys.stderr)
    counts = f"{logger.logged} stage runs logged now, {logger.waiting} still wait, {logger.running} still run"
    print(f"MLflow: {counts}.")
    with suppress(OSError):
        page = page_file().read_text(encoding="utf-8")
        print(f"Compare the runs: mlflow ui, then http://127.0.0.1:5000{page}")
    return 1 if logger.waiting else 0


if __name__ == "__main__":
    sys.exit(main())
