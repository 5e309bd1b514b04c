"""params.yaml beside what git and DVC hold of it: what a run changes, and what results were made with."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ecggen.utils.config import flatten

Values = dict[str, Any]  # section.key -> value


def committed(folder: Path = Path()) -> Values:
    """params.yaml of the commit that this run started from; empty where git knows none."""
    revision = os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"
    return _flat(git("-C", str(folder), "show", f"{revision}:./params.yaml"))


def git(*arguments: str) -> str:
    """The output of git without its line end; empty where it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.rstrip()
    return ""


def changed(folder: Path = Path()) -> Values:
    """What params.yaml holds and the committed one does not; nothing where git knows none."""
    before = committed(folder)
    now = _flat_file(folder / "params.yaml") if before else {}
    return {key: value for key, value in now.items() if key not in before or before[key] != value}


def outdated(folder: Path = Path()) -> dict[str, list[str]]:
    """Where results were made with other parameters than params.yaml has now: what these are -> stages."""
    now, out = _flat_file(folder / "params.yaml"), dict[str, list[str]]()
    try:
        stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        params = {stage: entry.get("params", {}).get("params.yaml", {}) for stage, entry in stages.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}  # no dvc.lock, or not of these stages
    params.pop("check", None)  # has no results
    for stage, values in params.items():
        for key, value in flatten(values).items():
            if key in now and value != now[key]:
                words = f"{in_words(key, value)}, now {value_in_words(now[key])}"
                out.setdefault(words, []).append(stage)
    return out


def in_words(key: str, value: Any) -> str:
    """One parameter as -S takes it."""
    return f"{key}={value_in_words(value)}"


def value_in_words(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _flat_file(path: Path) -> Values:
    try:
        return _flat(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _flat(text: str) -> Values:
    """Nothing of what is no YAML: the check of the configuration says so."""
    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return flatten(mapping) if isinstance(mapping, dict) else {}
