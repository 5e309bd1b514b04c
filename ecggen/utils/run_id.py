"""Names of runs and of the step folders inside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ecggen.utils.errors import EcggenError

_CODE = re.compile(r"[A-Za-z0-9_-]+")
_STEP = re.compile(r"step_(\d{6,})")


class RunIdError(EcggenError):
    """Codes or steps that cannot name a folder."""


def run_id(codes: Mapping[str, str]) -> str:
    """The codes joined in the order of the mapping: {"m": "m1", "s": "s1", "k": "k1"} -> "m1s1k1".

    Raises RunIdError for no code at all, or one that holds more than letters, digits, "_" and "-".
    """
    for key, code in codes.items():
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise RunIdError(
                f"run.{key} is {code!r}: letters, digits, '_' and '-' are needed, for example {key}1."
            )
    name = "".join(codes.values())
    if not name:
        raise RunIdError("run is empty: give at least one code, for example run: {m: m1, s: s1, k: k1}.")
    if name.startswith("-"):  # a folder of that name reads like an option of every command
        raise RunIdError(
            f"The run id {name!r} starts with '-': let the first code start with a letter or digit."
        )
    return name


def step_dir(root: str | Path, step: int) -> Path:
    """The folder of a step: root/step_000500. Not created. Raises RunIdError for a negative step."""
    if step < 0:
        raise RunIdError(f"The step is {step}: at least 0 is needed.")
    return Path(root) / f"step_{step:06d}"


def list_step_dirs(root: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every step folder below root, by step; empty where root does not exist."""
    folders = (path for path in Path(root).glob("step_*") if path.is_dir())
    return sorted((int(match[1]), path) for path in folders if (match := _STEP.fullmatch(path.name)))


def saved_steps(root: str | Path) -> list[tuple[int, Path]]:
    """The same of those that hold a checkpoint.pt: a run that was killed may leave a folder without one."""
    return [(step, path) for step, path in list_step_dirs(root) if (path / "checkpoint.pt").is_file()]
