"""One process beside the pipeline that sends what its stages record.

Importing MLflow and opening a store takes seconds; the courier does it once for all stages of a run, on
the other core, while the first one works. The first stage starts it, every stage finds it by a lock, and it
leaves when the pipeline's process is gone and nothing more can be sent. What it could not send stays in
the outbox for the next courier, or for `python -m ecggen.tracking send`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ecggen
from ecggen.tracking import locks
from ecggen.tracking.identity import is_running, shown
from ecggen.tracking.outbox import FAILED, JOURNAL, SENDING, Waiting, remove_litter, waiting
from ecggen.tracking.sender import Store, first_line

LOCK, LOG = "courier.lock", "courier.log"
_POLL_S, _QUIET_S = 0.05, 0.2  # between two looks: when something was new, and at most; stages wait for it
_IDLE_S = 60.0  # without anything to send it leaves, however long the pipeline still runs
_LONGEST_PAUSE_S = 60.0  # between two attempts at a store that is away


class Round:
    """Passes over the outbox, with what must be remembered between them."""

    def __init__(self, root: Path, tell: Callable[[str], None] = print) -> None:
        self.root, self.tell = root, tell
        self.pipelines: set[str] = set()  # processes that may still start stages
        self.sent = 0  # journals sent to the end
        self.busy = False  # whether the last pass found anything new
        self._stores: dict[str, Store] = {}
        #: URI of a store that is away, or a journal that it does not take -> attempts, when the next, why
        self._failures: dict[str | Path, tuple[int, float, str]] = {}
        self._seen: dict[Path, tuple[int, bool]] = {}  # journal -> size and owner when it was last sent
        self._told: dict[Path, str] = {}  # journal -> why it waits, as its folder says

    def once(self) -> bool:
        """One pass; True while a later one may find more to send."""
        hope = self.busy = False
        for journal in waiting(self.root):
            owned = journal.owned
            state = (self._size(journal), owned)
            if self._seen.get(journal.path) == state:
                hope |= owned
                continue
            if self._send(journal, owned):
                self._seen[journal.path] = state
            hope |= owned
        return hope

    def _size(self, journal: Waiting) -> int:
        try:
            return (journal.path / JOURNAL).stat().st_size
        except OSError:
            return -1

    def _send(self, journal: Waiting, owned: bool) -> bool:
        """Send one journal's news; False where it has to be tried again."""
        header = journal.header()
        if not header:
            if not owned:  # its first line never reached the disk, or another sender is just done with it
                with suppress(FileNotFoundError):
                    journal.remove()
            return True
        self.pipelines.add(header["pipeline"])
        uri = header["uri"]
        for key in (uri, journal.path):
            _, due, reason = self._failures.get(key, (0, 0.0, ""))
            if time.monotonic() < due:
                self._note(journal, reason)
                return False
        try:
            if not locks.take(journal.path / SENDING):
                return False  # another process sends it
        except FileNotFoundError:
            return True
        try:
            if not journal.path.exists():  # the other sender was done just before
                return True
            self.busy = True
            journal.load()
            if uri not in self._stores:
                self._stores[uri] = Store(uri)
            for refusal in self._stores[uri].send(journal, owned):
                self.tell(f"{shown(uri)} did not take, for {journal.path.name}, {refusal}")
        except Exception as error:  # of whatever layer below MLflow; the journal stays and is sent again
            self._failed(uri, journal, first_line(error))
            return False
        finally:
            locks.drop(journal.path / SENDING)
        for key in (uri, journal.path):
            self._failures.pop(key, None)
        self._told.pop(journal.path, None)
        (journal.path / FAILED).unlink(missing_ok=True)
        self.sent += not journal.path.exists()
        return True

    def _failed(self, uri: str, journal: Waiting, reason: str) -> None:
        """Remember when to try again: the store, or where it answers this journal alone."""
        store = self._stores.get(uri)
        alone = store is not None and store.answers()
        key: str | Path = journal.path if alone else uri
        attempts = self._failures.get(key, (0, 0.0, ""))[0]
        pause = min(2.0**attempts, _LONGEST_PAUSE_S)
        self._failures[key] = (attempts + 1, time.monotonic() + pause, reason)
        self.tell(f"{shown(uri)} {f'did not take {journal.path.name}' if alone else 'is away'}: {reason}")
        self._note(journal, reason)

    def _note(self, journal: Waiting, reason: str) -> None:
        if self._told.get(journal.path) == reason:
            return
        self._told[journal.path] = reason
        with suppress(OSError):  # a full disk; the reason is in the log
            journal.fail(reason)


def serve(root: Path) -> int:
    """Send until the pipeline is gone and nothing more can be sent. Only one courier serves an outbox."""
    told_to_leave = False

    def leave(*_: Any) -> None:
        nonlocal told_to_leave
        told_to_leave = True

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    if hasattr(os, "nice"):
        os.nice(5)  # a training beside it goes first
    while True:
        if not _take(root / LOCK):
            return 0
        remove_litter(root)
        work, idle_since, pause = Round(root, _log), time.monotonic(), _POLL_S
        while True:
            before = work.sent
            hope = work.once()
            if hope or work.sent > before:
                idle_since = time.monotonic()
            running = any(is_running(process) for process in work.pipelines if process)
            if not hope and (told_to_leave or not running or time.monotonic() - idle_since > _IDLE_S):
                break
            pause = _POLL_S if work.busy else min(2 * pause, _QUIET_S)
            time.sleep(pause)
        locks.drop(root / LOCK)
        # A stage that came while the lock was being given back saw a courier and relies on it.
        if not any(journal.owned for journal in waiting(root)):
            return 0


def _take(path: Path) -> bool:
    """Take the lock. `serves` holds it for an instant when it looks: one refusal does not mean a courier."""
    for _ in range(5):
        if locks.take(path):
            return True
        time.sleep(_POLL_S)
    return False


def serves(root: Path) -> bool:
    """Whether a courier is there."""
    return locks.held(root / LOCK)


def start(root: Path) -> subprocess.Popen[bytes] | None:
    """Start a courier that outlives this process, unless one is there. Raises OSError."""
    if serves(root):
        return None
    package = str(Path(ecggen.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    with (root / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ecggen.tracking", "courier", str(root)],
            # Not in the folder of a temporary experiment, which is removed; not in the way of a pipe or a
            # Ctrl-C that are meant for the pipeline.
            cwd=root,
            env=os.environ | {"PYTHONPATH": paths, "DVC_ROOT": str(root.parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _log(words: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), words, flush=True)
