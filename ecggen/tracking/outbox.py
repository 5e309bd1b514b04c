"""The outbox: what stages recorded and the tracking store has not taken yet.

One folder per stage run, .ecggen/outbox/ID below the main repository:

    alive           locked by the stage as long as it runs
    journal.jsonl   one JSON object a line, only ever appended to; the first one is the header
    files/N/...     copies of artifacts and figures
    sent.json       how far the sender got (bytes of journal.jsonl), and the runs it made
    failed          why the store did not take it, in words

A stage writes here and nowhere else, so it neither waits for a store nor fails with it. `sender` replays
a folder into MLflow and removes it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ecggen.tracking import locks
from ecggen.tracking.identity import pipeline_root
from ecggen.utils.files import write_json, write_text

FOLDER = Path(".ecggen") / "outbox"
JOURNAL, ALIVE, SENDING, SENT, FAILED = "journal.jsonl", "alive", "sending", "sent.json", "failed"
_LEFT_OVER_S = 60.0  # folders that were never finished, or only half removed, are litter after this


def outbox() -> Path:
    """The outbox of this pipeline; not created."""
    return pipeline_root() / FOLDER


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


class Journal:
    """The writing end: a stage's own folder in the outbox."""

    def __init__(self, root: Path, header: Mapping[str, Any]) -> None:
        """Make the folder, lock it and write the header. Raises OSError."""
        if not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)  # addresses of stores may hold passwords
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"{time.time_ns() // 1000 % 1_000_000:06d}"
        name = f"{stamp}-{header['stage']}-{secrets.token_hex(4)}"
        hidden = root / f".{name}"  # a sender sees the folder when its lock is held, not before
        hidden.mkdir()
        try:
            locks.take(hidden / ALIVE)
            self._stream = (hidden / JOURNAL).open("ab", buffering=0)
            self.path = hidden
            self._files, self._torn = 0, False
            self.add("run", id=name, **header)
            hidden.rename(root / name)
        except OSError:
            locks.drop(hidden / ALIVE)
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        self.path = root / name
        locks.moved(hidden, self.path)

    def add(self, kind: str, **fields: Any) -> None:
        """Append one entry; it is with the operating system when this returns. Raises OSError."""
        line = json.dumps({"kind": kind, "time": now_ms(), **fields}, allow_nan=False).encode() + b"\n"
        if self._torn:  # a line that a full disk cut short must not take the next one with it
            line = b"\n" + line
        self._torn = True
        written = self._stream.write(line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / JOURNAL))
        self._torn = False

    def place(self, name: str) -> Path:
        """A fresh path inside the folder for a file of this name."""
        self._files += 1
        path = self.path / "files" / str(self._files) / name
        path.parent.mkdir(parents=True)
        return path

    def copy(self, source: Path) -> str:
        """Copy a file, or a folder's files; the copy's path inside the journal. Raises OSError."""
        target = self.place(source.name)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, target)
        return target.relative_to(self.path).as_posix()

    def close(self) -> None:
        """Nothing will be added."""
        self._stream.close()
        locks.drop(self.path / ALIVE)


class Waiting:
    """The reading end: a folder in the outbox."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent: dict[str, Any] = {"position": 0}

    @property
    def owned(self) -> bool:
        """Whether its stage is still running."""
        return locks.held(self.path / ALIVE)

    def header(self) -> dict[str, Any]:
        """The first entry; empty where it cannot be read (a disk that was full when it was written)."""
        try:
            with (self.path / JOURNAL).open("rb") as stream:
                found = json.loads(stream.readline())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("kind") == "run" else {}

    def load(self) -> None:
        """Where the last sender got to. A sent.json that cannot be read means: from the start."""
        try:
            found = json.loads((self.path / SENT).read_text(encoding="utf-8"))
            self.sent = found if isinstance(found.get("position"), int) else {"position": 0}
        except (OSError, ValueError, AttributeError):
            self.sent = {"position": 0}

    def save(self, position: int) -> None:
        """Keep how far it is sent."""
        self.sent["position"] = position
        write_json(self.path / SENT, self.sent)

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position behind it, entry) of every whole line that is not sent yet.

        A stage that was killed, or whose disk was full, may leave a line cut short: it is passed over.
        """
        with (self.path / JOURNAL).open("rb") as stream:
            stream.seek(self.sent["position"])
            while (line := stream.readline()).endswith(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield stream.tell(), entry

    def last_written_ms(self) -> int:
        """When the journal was last appended to."""
        return int((self.path / JOURNAL).stat().st_mtime * 1000)

    def failed(self) -> str:
        """Why it could not be sent; empty where that was not tried or went well."""
        try:
            return (self.path / FAILED).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def fail(self, reason: str) -> None:
        """Say why it could not be sent."""
        if self.failed() != reason:
            write_text(self.path / FAILED, reason + "\n")

    def remove(self) -> None:
        """All of it is with the store. Seen from outside it goes at once."""
        gone = self.path.with_name(f".{self.path.name}")
        self.path.rename(gone)
        locks.moved(self.path, gone)
        locks.drop(gone / SENDING)
        shutil.rmtree(gone, ignore_errors=True)


def waiting(root: Path) -> list[Waiting]:
    """Every journal in the outbox, the oldest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        return []
    return [Waiting(root / name) for name in names if not name.startswith(".")]


def remove_litter(root: Path) -> None:
    """Remove folders of processes that were killed while they made, or removed, one."""
    for path in root.glob(".2*"):
        try:
            old = time.time() - path.stat().st_mtime > _LEFT_OVER_S
        except OSError:
            continue
        if old and path.is_dir() and not locks.held(path / ALIVE):
            shutil.rmtree(path, ignore_errors=True)
