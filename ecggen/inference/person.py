"""The W of a person, held for later recordings; `Renderer.personalise` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.training.checkpoint import CheckpointError
from ecggen.utils.files import atomic_path

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Person:
    """W of one person, estimated from a reference recording: state [S], and what it was estimated from."""

    state: Array
    leads: tuple[str, ...]
    seconds: float
    model: str  # fingerprint of the weights that give W its meaning

    def save(self, path: str | Path) -> None:
        """Write to one .npz file, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                state=self.state,
                leads=np.array(self.leads),
                seconds=np.array(self.seconds),
                model=np.array(self.model),
            )


def load_person(path: str | Path) -> Person:
    """Read what `Person.save` wrote. Raises CheckpointError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            leads = tuple(str(name) for name in data["leads"])
            state = data["state"].astype(np.float32)
            return Person(state, leads, float(data["seconds"]), str(data["model"]))
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path} is not a saved person ({error}): write one with person.save(path)."
        ) from error
