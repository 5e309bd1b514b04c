"""Columns of a long table in little memory: each distinct value once, and a small number per row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Words(Sequence[str]):
    """A column of strings [n], read only: as a list, or as a NumPy array, when it is asked for.

    codes [n]: which of the distinct words stands in each row; they are numbered as they first appear.
    """

    __slots__ = ("_ends", "_text", "codes")
    __hash__ = None  # type: ignore[assignment] # compared by what it holds, as a list

    def __init__(
        self, codes: NDArray[np.integer], text: bytes | bytearray, ends: NDArray[np.integer]
    ) -> None:
        """text: the distinct words, one after the other; ends: where each ends in it."""
        self.codes, self._text, self._ends = codes, text, ends

    @classmethod
    def of(cls, words: Iterable[str]) -> Words:
        """The column of these words."""
        if isinstance(words, Words):
            return words
        writer = WordsWriter()
        for word in words:
            writer.add(str(word))
        return writer.words()

    @classmethod
    def repeated(cls, word: str, count: int) -> Words:
        """The same word in every row."""
        text = word.encode()
        return cls(np.zeros(count, dtype=np.uint8), text, np.array([len(text)]))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any]) -> Words: ...
    def __getitem__(self, key: Any) -> str | Words:
        codes = self.codes[key]
        return self.word(int(codes)) if codes.ndim == 0 else Words(codes, self._text, self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self.word(code) for code in self.codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Words of {len(self)} rows, {len(self._ends)} different"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        out = np.array(self.distinct(), dtype=str)[self.codes] if len(self) else np.empty(0, dtype=str)
        return out if dtype is None or np.dtype(dtype).kind == "U" else out.astype(dtype)

    def word(self, code: int) -> str:
        """The word of a code."""
        start = int(self._ends[code - 1]) if code else 0
        return self._text[start : int(self._ends[code])].decode()

    def distinct(self) -> list[str]:
        """Every word once, in the order of their codes."""
        return [self.word(code) for code in range(len(self._ends))]

    def code(self, word: str) -> int:
        """The code of a word, -1 if it does not appear. Looks at all distinct words."""
        return next((c for c in range(len(self._ends)) if self.word(c) == word), -1)

    def used(self) -> list[str]:
        """Every word that stands in a row, once: of rows that were chosen, fewer than `distinct`."""
        return [self.word(int(code)) for code in np.unique(self.codes)]

    @property
    def count_distinct(self) -> int:
        """How many codes there are."""
        return len(self._ends)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.codes.nbytes + self._ends.nbytes + len(self._text)


class WordsWriter:
    """Makes a `Words` row by row. Words that repeat the row before cost next to nothing."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._text, self._lengths, self._repeats = bytearray(), array("I"), array("I")
        self._last, self._rising = "", True

    def __len__(self) -> int:
        return sum(self._repeats)

    def add(self, word: str) -> None:
        """Append a row."""
        if self._repeats and word == self._last:
            self._repeats[-1] += 1
            return
        self._rising &= not self._repeats or word > self._last
        own = word.encode()
        self._text += own
        self._lengths.append(len(own))
        self._repeats.append(1)
        self._last = word

    def words(self) -> Words:
        """The column of the rows added; the writer is empty afterwards."""
        text, rising = self._text, self._rising
        ends = np.cumsum(self._lengths, dtype=smallest(len(text) + 1))
        repeats = np.array(self._repeats, dtype=np.int32)
        self._clear()
        words = Words(np.arange(len(ends), dtype=smallest(len(ends))), text, ends)
        if not rising:  # a word may have come back
            words = _without_doubles(words)
        if (repeats == 1).all():
            return words
        return Words(np.repeat(words.codes, repeats), words._text, words._ends)


def _without_doubles(words: Words) -> Words:
    """The same rows, every word stored once; words: with a code of its own for each row."""
    count = len(words)
    keys = _hashes(words)
    keys.sort()  # in place: most often there is no double, and then nothing else is needed
    if (keys[1:] != keys[:-1]).all():
        return words
    del keys
    keys = _hashes(words)
    order = np.argsort(keys).astype(np.int32)
    keys = keys[order]
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    del keys
    # Rows of one hash stand together; the earliest has the word, the others repeat it.
    first = np.empty(count, dtype=np.int32)
    first[order] = np.repeat(np.minimum.reduceat(order, starts), np.diff(starts, append=count))
    del order, starts
    doubles = np.flatnonzero(first != np.arange(count))
    if any(words.word(int(first[i])) != words.word(int(i)) for i in doubles):
        # Two different words with one hash of 64 bits: not to be expected.
        seen: dict[str, int] = {}
        first = np.array([seen.setdefault(word, i) for i, word in enumerate(words)], dtype=np.int32)
    kept = np.flatnonzero(first == np.arange(count))
    number = np.empty(count, dtype=smallest(len(kept)))
    number[kept] = np.arange(len(kept))
    text = bytearray()
    for code in kept:
        text += words.word(int(code)).encode()
    lengths = np.diff(words._ends, prepend=0)[kept]
    return Words(number[first], text, np.cumsum(lengths).astype(smallest(len(text) + 1)))


def _hashes(words: Words) -> NDArray[np.int64]:
    """Of the word of each row; words: with a code of its own for each row."""
    return np.fromiter((hash(words.word(code)) for code in range(len(words))), np.int64, len(words))


class Rows:
    """An array [n, ...] of which the distinct rows are stored once, read only.

    Indexed as an array is (the first index chooses rows), or turned into one by np.asarray.
    """

    def __init__(self, distinct: NDArray[Any], codes: NDArray[np.integer]) -> None:
        """distinct [m, ...]; codes [n]: which of them each row is."""
        self._distinct, self.codes = distinct, codes
        self._distinct.setflags(write=False)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...]"""
        return (len(self.codes), *self._distinct.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self._distinct.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._distinct.ndim

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.codes.nbytes + self._distinct.nbytes

    def __getitem__(self, key: Any) -> Any:
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(rows, np.ndarray) and rows.ndim == self.ndim and rows.dtype == bool:
            return np.asarray(self)[key]  # a mask of single values
        return self._distinct[(self.codes[rows], *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        out = self._distinct[self.codes]
        return out if dtype is None else out.astype(dtype, copy=False)


def smallest(count: int) -> Any:
    """The smallest type of integers that numbers `count` things, from 0."""
    return next(t for t in (np.uint8, np.uint16, np.int32, np.int64) if count - 1 <= np.iinfo(t).max)
