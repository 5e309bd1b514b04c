"""Checkpoints: one file with weights, configuration, preprocessing, code version and, for resuming, the rest.

Loaded with `weights_only=True`: a checkpoint can hold numbers and text, never code.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import ecggen
from ecggen.utils.errors import EcggenError, disk_words
from ecggen.utils.files import atomic_path

FORMAT = 1
_CORE = ("leads.py", "trainer.py", "training", "data", "models", "utils")


class CheckpointError(EcggenError):
    """A checkpoint that cannot be used."""


@functools.cache
def code_version() -> str:
    """Version and a fingerprint of the core's source, the same wherever the same code runs.

    As it was when this process first asked: what is edited later does not run here.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for part in _CORE:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return f"{ecggen.__version__}+{digest.hexdigest()[:12]}"


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write atomically and to the disk itself; the same content gives the same bytes. Raises CheckpointError
    where the file system does not take it; what lay there before then still lies there."""
    # Through a buffer: torch names the archive inside after the file otherwise, and that name varies.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "code": code_version(), **content}, buffer)
    with writing(path, buffer.getbuffer().nbytes), atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())  # else a power cut leaves an empty file of this name


@contextmanager
def writing(path: str | Path, size: int = 0) -> Iterator[None]:
    """Turn a failure to write `path` (about `size` bytes) into one sentence: CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(disk_words(error, path, size)) from error


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file, or the one inside a results folder. Raises CheckpointError."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / "checkpoint.pt", path / "train" / "checkpoint.pt"):
            if candidate.is_file():
                return candidate
        raise CheckpointError(f"No checkpoint.pt in {path}: train first, or name the checkpoint file.")
    raise CheckpointError(
        f"No checkpoint at {path}: name a checkpoint file or a results folder that holds one."
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
