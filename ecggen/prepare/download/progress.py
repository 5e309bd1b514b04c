"""How far a download is: files, bytes, rate, time left."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TextIO

SPAN_S = 30.0  # rate and time left are those of the last half minute
DRAW_S = 0.2  # on a terminal
LINE_S = 60.0  # elsewhere: a line in a log, none for what is quicker


class Progress:
    """Counts of one batch of files. Transfers add bytes from their threads; one thread draws.

    alone: the thread that transfers draws as well, because no other one does.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None, *, alone: bool = False) -> None:
        self.what, self.total, self.alone = what, total, alone
        self.done = self.kept = self.bytes = 0
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._parts: dict[int, float] = {}  # thread -> share of its file that has arrived
        self._lock = threading.Lock()
        self._drawn = time.monotonic()
        self._samples: deque[tuple[float, int, float]] = deque([(self._drawn, 0, 0.0)])

    def add(self, count: int, share: float) -> None:
        """`count` more bytes of this thread's file, of which `share` (0 to 1) is there now."""
        with self._lock:
            self.bytes += count
            self._parts[threading.get_ident()] = share
        if self.alone:
            self.draw()

    def file(self, *, kept: bool) -> None:
        """One more file is there; kept: it was there before."""
        with self._lock:
            self.done += 1
            self.kept += kept

    def idle(self) -> None:
        """This thread's file has ended, well or not."""
        with self._lock:
            self._parts.pop(threading.get_ident(), None)

    def words(self) -> str:
        """One line: `ptb-xl/1.0.3 signals: 1,203 of 21,799 files, 96.2 MB, 3.4 MB/s, 12:31 left`."""
        now = time.monotonic()
        with self._lock:
            fetched = self.done - self.kept + sum(self._parts.values())
            count, done, kept = self.bytes, self.done, self.kept
        self._samples.append((now, count, fetched))
        while len(self._samples) > 2 and now - self._samples[1][0] > SPAN_S:
            self._samples.popleft()
        since, before, files = self._samples[0]
        passed = max(now - since, 1e-3)
        words = [f"{self.what}: {done:,} of {self.total:,} files", size_words(count)]
        words.append(f"{size_words((count - before) / passed)}/s")
        if fetched > files:
            words.append(f"{time_words((self.total - kept - fetched) * passed / (fetched - files))} left")
        return ", ".join(words)

    def draw(self, *, last: bool = False) -> None:
        """Show the line if it is time to."""
        now = time.monotonic()
        if self._terminal:
            if last or now - self._drawn > DRAW_S:
                self._drawn = now
                self._stream.write(f"\r\x1b[K{self.words()}" + ("\n" if last else ""))
                self._stream.flush()
        elif now - self._drawn > LINE_S:
            self._drawn = now
            print(self.words(), file=self._stream, flush=True)


def size_words(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_words(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
