"""What a pipeline run changes of the committed params.yaml, said once by the first stage that runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ecggen.report.params import Values, changed, in_words
from ecggen.utils.files import FileError, write_text
from stages.record import dvc_process, run_key

SAID = Path(".ecggen/changes_said")  # the key of the run that has said them
MOST = 12  # parameters that are named


def say_changes() -> None:
    """Print what differs, unless an earlier stage of this run has."""
    words = change_words(changed(), set_here(dvc_process()[1]))
    if not words:
        return
    with suppress(OSError, FileError):  # a disk that is full or cannot be written: said elsewhere
        if SAID.is_file() and SAID.read_text(encoding="utf-8") == run_key():
            return
        write_text(SAID, run_key())
    print(words, flush=True)


def change_words(values: Values, here: Sequence[str]) -> str:
    """values: what differs from the committed parameters; here: keys that this experiment has set."""
    parts = []
    if new := [in_words(key, value) for key, value in values.items() if key in here]:
        parts.append(f"{_some(new)} (this experiment)")
    if old := [in_words(key, value) for key, value in values.items() if key not in here]:
        origin = "params.yaml, from an earlier experiment or edited"
        if os.environ.get("DVC_EXP_NAME") and not here:  # a queued one: set when it was queued
            origin = "this experiment"
        back = "" if origin == "this experiment" else "; git checkout params.yaml goes back"
        parts.append(f"{_some(old)} ({origin}{back})")
    return f"changed: {', '.join(parts)}" if parts else ""


def set_here(command: Sequence[str]) -> list[str]:
    """The keys that a dvc command sets: -S key=value, -Skey=value, --set-param key=value."""
    keys = []
    for at, word in enumerate(command):
        for option in ("-S", "--set-param"):
            if word == option and at + 1 < len(command):
                keys.append(command[at + 1])
            elif word.startswith(option) and len(word) > len(option):
                keys.append(word[len(option) :].lstrip("="))
    return [key.partition("=")[0].rpartition(":")[2].lstrip("+~") for key in keys]


def _some(words: list[str]) -> str:
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more
