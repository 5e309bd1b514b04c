"""What checkpoints hold, and step folders: what a training that was killed goes on from.

step_NNNNNN/checkpoint.pt holds all of a run's state, the best model so far included, so that nothing else has
to survive: DVC deletes a stage's outputs before it runs the stage again. The two newest are kept; one that
was cut short or garbled is passed over for the one before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecggen.data.windows import WindowFolder
from ecggen.models.ecggen import ECGGen
from ecggen.training.checkpoint import (
    CheckpointError,
    code_version,
    load_checkpoint,
    save_checkpoint,
    writing,
)
from ecggen.utils.config import Config, config_to_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import locked, write_json
from ecggen.utils.run_id import list_step_dirs, step_dir

#: Keys of section train that say how a training is carried out. No result depends on them.
CONDUCT = ("nproc", "restarts", "threads", "workers", "checkpoint_every", "checkpoint_minutes")
KEPT = 2  # resumable checkpoints


class ResumeError(EcggenError):
    """A run that cannot be gone on with, or not now."""


def what_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as nested dictionaries, without the keys that no result depends on."""
    return dict(config) | {"train": {k: v for k, v in config["train"].items() if k not in CONDUCT}}


def difference(saved: Mapping[str, Any], config: Mapping[str, Any], fingerprint: str) -> str:
    """Why a saved state is not one of this run, as the end of a sentence; "" where it is."""
    now, then = what_counts(config), what_counts(saved["config"])
    differing = [name for name in ("data", "model", "train") if now[name] != then[name]]
    if differing:
        return f"was trained with another configuration (section {', '.join(differing)})"
    if saved["data"]["fingerprint"] != fingerprint:
        return "was trained on other windows"
    return ""


def other_code(saved: Mapping[str, Any]) -> str:
    """Like `difference`, for the version of the code."""
    return "" if saved["code"] == code_version() else f"was trained by another code ({saved['code']})"


def model_content(
    model: ECGGen, config: Config, folder: WindowFolder, train_windows: int, step: int
) -> dict[str, Any]:
    """What every checkpoint holds: all that rendering needs."""
    meta = folder.meta
    return {
        "config": what_counts(config_to_dict(config)),
        "preprocessing": dict(meta.get("preprocessing", {})),
        "data": {
            "fingerprint": str(meta.get("fingerprint", "")),
            "source": _source_words(meta.get("source", config.data.source)),
            "train_windows": train_windows,
            "label_classes": list(folder.label_classes),
        },
        "fs": float(model.fs),
        "time_len": int(model.time_len),
        "model": model.state_dict(),
        "step": step,
    }


def _source_words(source: Any) -> str:
    """What the windows were made from, in words that a report can print."""
    if isinstance(source, dict):
        return " ".join(str(source[key]) for key in ("kind", "name") if source.get(key))
    return str(source)


def save_step(out: Path, step: int, content: dict[str, Any], log: Mapping[str, Any]) -> None:
    """Write step_NNNNNN/; only the newest KEPT keep their checkpoint, all keep their log."""
    here = step_dir(out, step)
    with writing(here / "log.json"):
        write_json(here / "log.json", log)
    save_checkpoint(here / "checkpoint.pt", content)
    holding = [(at, folder) for at, folder in list_step_dirs(out) if (folder / "checkpoint.pt").is_file()]
    keep = {folder for _, folder in [each for each in holding if each[0] <= step][-KEPT:]}
    for _, folder in holding:  # later ones are of a course that was given up: its state could not be read
        if folder not in keep:
            (folder / "checkpoint.pt").unlink(missing_ok=True)


def latest_step(out: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """(folder, content) of the newest checkpoint that can be read; None without one. Others are named."""
    for _, folder in reversed(list_step_dirs(out)):
        if not (folder / "checkpoint.pt").is_file():
            continue
        try:
            content = load_checkpoint(folder / "checkpoint.pt")
        except CheckpointError as error:
            say(f"passed over: {error}")
            continue
        if "resume" in content:
            return folder, content
        say(f"passed over: {folder / 'checkpoint.pt'} is not resumable.")
    return None


def clear_steps(out: Path) -> None:
    """Remove all step folders."""
    for _, folder in list_step_dirs(out):
        shutil.rmtree(folder)


def clear_unfinished(out: Path) -> None:
    """Remove files that a killed process was still writing; they never got their names."""
    for folder in (out, *(folder for _, folder in list_step_dirs(out))):
        for name in ("checkpoint.pt", "history.csv", "metrics.json", "log.json"):
            for path in folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a run's folder, which two trainings at once would spoil for each other. Raises ResumeError.

    The lock ends with the process. File systems without locks are trusted.
    """
    with writing(out / "checkpoint.pt"):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out) as taken:
        if taken is False:
            raise ResumeError(
                f"Another training is writing to {out}: wait for it or end it, or choose another folder."
            )
        yield
