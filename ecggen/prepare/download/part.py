"""Files that grow where a download can go on: `name.part` beside `name`, below one folder, never out of it.

Nothing is written through a link: a folder on the way that is one stops the download, a file that is one is
replaced. All errors are SourceError with one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ecggen.prepare.download.source import SourceError
from ecggen.utils.files import sha256_file

SUFFIX = ".part"
TAG_FROM = 1 << 18  # bytes: a smaller file is fetched again sooner than its tag is written and removed


class Part:
    """The beginning of a file, kept until it is whole. Use as a context manager.

    size: bytes there; digest: SHA-256 of them; tag: the server's ETag of the file they belong to, or empty.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.path = root / f"{name}{SUFFIX}"
        self._tag_path = root / f"{name}{SUFFIX}.etag"
        self.size, self.tag, self.digest = 0, "", hashlib.sha256()

    def __enter__(self) -> Part:
        with self._words():
            real_folder(self.root, self.name)
            state = _lstat(self.path)
            if state is not None and (not stat.S_ISREG(state.st_mode) or state.st_nlink > 1):
                _remove(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self.path, flags, 0o644), "r+b", buffering=0)
            while block := self._file.read(1 << 20):
                self.digest.update(block)
                self.size += len(block)
            if is_file(self._tag_path):
                self.tag = self._tag_path.read_text(encoding="latin-1")[:256]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self.size == 0:
            self._discard()

    def begin(self, tag: str, length: int | None) -> None:
        """From the first byte, with the server's tag for it and the length it promises."""
        with self._words():
            if self.size:
                self._file.seek(0)
                self._file.truncate()
                self.size, self.digest = 0, hashlib.sha256()
            self.tag = tag
            _remove(self._tag_path)
            if tag and length is not None and length >= TAG_FROM:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(self._tag_path, flags, 0o644), "w", encoding="latin-1") as stream:
                    stream.write(tag)

    def need(self, count: int) -> None:
        """Raises SourceError if the disk has no room for `count` more bytes."""
        with self._words():
            state = os.statvfs(self.path.parent)
        if count > state.f_bavail * state.f_frsize:
            raise self._full()

    def write(self, block: bytes) -> None:
        """Append."""
        with self._words():
            view = memoryview(block)
            while view:
                count = self._file.write(view)
                self.digest.update(view[:count])
                self.size += count
                view = view[count:]

    def finish(self) -> None:
        """The file is whole: move it to its name."""
        with self._words():
            target = self.root / self.name
            if target.is_dir() and not target.is_symlink():
                raise SourceError(f"{target} is a folder where a file of that name belongs: move it away.")
            self.path.replace(target)
            _remove(self._tag_path)

    def discard(self) -> None:
        """Forget it all."""
        self.begin("", None)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            _remove(self.path)
            _remove(self._tag_path)

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise SourceError(
                f"Cannot write {self.path}: {error.strerror or error}; what has arrived is kept."
            ) from error

    def _full(self) -> SourceError:
        return SourceError(
            f"The disk is full: there is no room for {self.name} in {self.root}; free some and run again, "
            "what has arrived is kept."
        )


def real_folder(root: Path, name: str) -> None:
    """Make the folder of root/name. Raises SourceError where one on the way is a link or no folder."""
    at = root
    for word in name.split("/")[:-1]:
        at = at / word
        state = _lstat(at)
        if state is None:
            at.mkdir(exist_ok=True)
        elif stat.S_ISLNK(state.st_mode):
            raise SourceError(f"{at} is a link: remove it, because downloads stay below {root}.")
        elif not stat.S_ISDIR(state.st_mode):
            raise SourceError(f"{at} is a file where a folder belongs: remove it.")


def is_file(path: Path) -> bool:
    """Whether there is a file of its own, not a link to one."""
    state = _lstat(path)
    return state is not None and stat.S_ISREG(state.st_mode)


def holds(path: Path, sha256: str) -> bool:
    """Whether there is a file of its own with this SHA-256."""
    try:
        return is_file(path) and sha256_file(path) == sha256
    except OSError:
        return False


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
