"""A whole pipeline that takes a minute. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
#: Changes of params.yaml.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"time_len": 256},
    "synthetic": {"patients": 16, "seconds": 5.2},
    "window": {"stride": 256, "min_label_count": 2},
    "model": {"width": 16, "depth": 1, "heads": 2, "channels": [8, 16], "state_dim": 8, "basis": 4}
    | {"beat_len": 32},
    "train": {"epochs": 1, "threads": 1, "device": "cpu"},
    "reconstruction": {"bootstrap": 10, "state_records": 4, "ttt_steps": 0},
    "missing_lead": {"bootstrap": 10, "lead_sets": ["I", "I+II+V2"], "leave_one_out": False}
    | {"ttt_steps": 4, "context": 0},
    "linear_probe": {"bootstrap": 10, "pca": 4},
    "transfer": {"bootstrap": 10},
    "report": {"examples": 1},
}


def write_params(path: Path, *changes: dict[str, dict[str, Any]]) -> None:
    """The project's params.yaml with changes, section by section."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for change in changes:
        for section, values in change.items():
            params[section] |= values
    path.write_text(yaml.safe_dump(params))
