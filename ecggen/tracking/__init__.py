"""MLflow records of pipeline runs: one parent run per pipeline run, one child run per stage.

Stages write journals into an outbox and never touch the store (`stage`, `outbox`); one process beside the
pipeline replays them into MLflow (`courier`, `sender`: the only file that imports mlflow). A store that is
away, locked or full therefore costs no stage and no number: what it did not take waits. Stages of one
pipeline run are separate processes and find their common parent by a key (`identity.run_key`). A stage that
DVC skips keeps the run it made earlier.

Environment: MLFLOW_TRACKING_URI names another store (default: mlflow.db in the main repository),
MLFLOW_EXPERIMENT_NAME another experiment, ECGGEN_RUN_KEY another key of the pipeline run,
ECGGEN_TRACKING_WAIT the seconds that each stage waits at its end for the store (default: 3 after the last
stage, one that failed, or one run by hand; none where dvc goes on, the courier works meanwhile), and
ECGGEN_TRACKING=off switches the records off (for tests and for stages run by hand).
"""

from __future__ import annotations

from ecggen.tracking.identity import KEY_TAG, TrackingError, pipeline_root, run_key, tracking_uri
from ecggen.tracking.stage import StageRun, flat_numbers, run_stage, stage_run

__all__ = [
    "KEY_TAG",
    "StageRun",
    "TrackingError",
    "flat_numbers",
    "pipeline_root",
    "run_key",
    "run_stage",
    "stage_run",
    "tracking_uri",
]
