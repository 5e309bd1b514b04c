"""Checkpoints: one file with weights, configuration, preprocessing, code version and, for resuming, the rest.

Loaded with `weights_only=True`: a checkpoint can hold numbers and text, never code. A training writes
step_NNNNNN/checkpoint.pt with all of a run's state, the best model so far included, so that nothing else has
to survive: DVC deletes a stage's outputs before it runs the stage again. The two newest are kept; one that
was cut short or garbled is passed over for the one before it.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import ecggen
from ecggen.data.pipeline import WindowFolder
from ecggen.models.ecggen import ECGGen
from ecggen.utils.config import Config, config_to_dict
from ecggen.utils.errors import EcggenError, disk_words
from ecggen.utils.files import atomic_path, locked, write_json
from ecggen.utils.parallel import hash_of_package
from ecggen.utils.run_id import list_step_dirs, saved_steps, step_dir

FORMAT = 1
#: Keys of section train that say how a training is carried out. No result depends on them.
CONDUCT = ("nproc", "restarts", "threads", "workers", "checkpoint_every", "checkpoint_minutes")
RESUMABLE = 2  # newest checkpoints that are not removed
_CORE = ("leads.py", "trainer.py", "training", "data", "models", "utils")


class CheckpointError(EcggenError):
    """A checkpoint that cannot be used."""


class ResumeError(EcggenError):
    """A run that cannot be continued, or not now."""


@functools.cache
def code_version() -> str:
    """Version and a fingerprint of the core's source, read once: what is edited later does not run here."""
    return f"{ecggen.__version__}+{hash_of_package('.py', parts=_CORE)}"


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write atomically and to the disk itself; the same content gives the same bytes. Raises CheckpointError
    where the file system does not take it; an earlier file is then still there."""
    # Through a buffer: torch names the archive inside after the file otherwise, and that name varies.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "code": code_version(), **content}, buffer)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())  # else a power cut leaves an empty file of this name
    except OSError as error:
        raise CheckpointError(disk_words(error, path, buffer.getbuffer().nbytes)) from error


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file, or the one inside a results folder. Raises CheckpointError."""
    path = Path(path)
    for candidate in (path, path / "checkpoint.pt", path / "train" / "checkpoint.pt"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"No checkpoint at {path}: train first, or name a checkpoint file or a results folder that holds one."
    )


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read and check a checkpoint. Raises CheckpointError."""
    file = find_checkpoint(path)
    try:
        with zipfile.ZipFile(file) as archive:  # torch itself does not compare the sums in the archive
            garbled = archive.testzip()
        if garbled is not None:
            raise zipfile.BadZipFile(f"checksum of {garbled}")
        content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} is not a readable checkpoint ({reason}): train again or restore it."
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{file} was not written by ecggen: name a checkpoint.pt of a training run.")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{file} has checkpoint format {content['format']!r}, this version reads {FORMAT}: use the "
            f"ecggen version that wrote it ({content.get('code', 'unknown')}) or train again."
        )
    return content


def result_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as nested dictionaries, without the keys that no result depends on."""
    return dict(config) | {"train": {k: v for k, v in config["train"].items() if k not in CONDUCT}}


def model_content(
    model: ECGGen, config: Config, folder: WindowFolder, train_windows: int, step: int
) -> dict[str, Any]:
    """What every checkpoint holds: all that rendering needs."""
    source = folder.meta.get("source", config.data.source)
    if isinstance(source, dict):  # in words that a report can print
        source = " ".join(str(source[key]) for key in ("kind", "name") if source.get(key))
    return {
        "config": result_config(config_to_dict(config)),
        "preprocessing": dict(folder.meta.get("preprocessing", {})),
        "data": {
            "fingerprint": str(folder.meta.get("fingerprint", "")),
            "source": str(source),
            "train_windows": train_windows,
            "label_classes": list(folder.label_classes),
        },
        "fs": float(model.fs),
        "time_len": int(model.time_len),
        "model": model.state_dict(),
        "step": step,
    }


def save_step(out: Path, step: int, content: dict[str, Any], log: Mapping[str, Any]) -> None:
    """Write step_NNNNNN/; only the newest RESUMABLE keep their checkpoint, all keep their log."""
    here = step_dir(out, step)
    write_json(here / "log.json", log)
    save_checkpoint(here / "checkpoint.pt", content)
    newest = [number for number, _ in saved_steps(out) if number <= step][-RESUMABLE:]
    for number, folder in saved_steps(out):
        if number not in newest:  # later ones could not be read, else `step` would not be written
            (folder / "checkpoint.pt").unlink()


def load_step(
    out: Path, config: Config, fingerprint: str, say: Callable[[str], None], *, pick_up: bool
) -> dict[str, Any] | None:
    """The newest step that can be read; None without one. Unreadable ones are named.

    One of another configuration, or of windows with another fingerprint, raises ResumeError. With pick_up,
    one of those or of another version of the code is named, all steps are removed, and None is returned.
    """
    for _, folder in reversed(saved_steps(out)):
        try:
            content = load_checkpoint(folder / "checkpoint.pt")
        except CheckpointError as error:
            say(f"passed over: {error}")
            continue
        now, then = result_config(config_to_dict(config)), result_config(content["config"])
        sections = [name for name in ("data", "model", "train") if now[name] != then[name]]
        if sections:
            reason = f"was trained with another configuration (section {', '.join(sections)})"
        elif content["data"]["fingerprint"] != fingerprint:
            reason = "was trained on other windows"
        elif pick_up and content["code"] != code_version():
            reason = f"was trained by another code ({content['code']})"
        else:
            return content
        if not pick_up:
            raise ResumeError(
                f"{folder} {reason}: resume with the same one on the same windows, or start a new run with "
                "other codes in `run`."
            )
        say(f"starting anew: {folder} {reason}")
        break
    if pick_up:
        clear_steps(out)
    return None


def clear_steps(out: Path) -> None:
    """Remove all step folders."""
    for _, folder in list_step_dirs(out):
        shutil.rmtree(folder)


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Hold a run's folder, which two trainings at once would spoil for each other. Raises ResumeError."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as free:
        if not free:
            raise ResumeError(
                f"Another training is writing to {out}: wait for it or end it, or choose another folder."
            )
        yield
