"""Long columns in little memory behave as the lists and arrays that they stand for."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from ecggen.utils.words import Rows, Words, WordsWriter


@pytest.mark.parametrize("seed", range(6))
def test_a_column_of_words_is_the_list(seed: int) -> None:
    rng = random.Random(seed)
    pool = ["", "a", "é\x00", "日本", "a;b", "x" * 300, *(f"r{i}" for i in range(300 * (seed % 2)))]
    plain = [rng.choice(pool) for _ in range(rng.randrange(1, 900))]
    words = Words.of(plain)
    assert words == plain and list(words) == plain and len(words) == len(plain) and words == Words.of(plain)
    assert words[0] == plain[0] and words[-1] == plain[-1] and words[3:40:2] == plain[3:40:2]
    assert words != plain[1:] and words != [*plain[:-1], "other"] and words != "text"
    chosen = np.array([len(plain) - 1, 0, 0])
    assert list(words[chosen]) == [plain[i] for i in chosen]
    assert words.index(plain[-1]) == plain.index(plain[-1]) and words.count("a") == plain.count("a")
    assert words.distinct() == list(dict.fromkeys(plain))
    assert all(words.word(words.code(text)) == text for text in set(plain)) and words.code("none") == -1
    np.testing.assert_array_equal(np.asarray(words), np.array(plain))
    np.testing.assert_array_equal(np.asarray(words, dtype=str), np.array(plain))
    assert np.asarray(words, dtype=object).dtype == object
    assert (np.asarray(words) == "a").tolist() == [text == "a" for text in plain]
    assert pickle.loads(pickle.dumps(words)) == plain
    with pytest.raises(IndexError):
        words[len(plain)]
    with pytest.raises(TypeError):
        hash(words)


def test_a_column_without_rows_and_one_of_a_single_word() -> None:
    assert len(Words.of([])) == 0 and Words.of([]) == [] and np.asarray(Words.of([])).dtype.kind == "U"
    assert Words.repeated("é", 5) == ["é"] * 5 and Words.repeated("", 3) == [""] * 3
    writer = WordsWriter()
    for word in ("a", "a", "b"):
        writer.add(word)
    assert len(writer) == 3 and writer.words() == ["a", "a", "b"] and len(writer) == 0


def test_words_of_one_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecggen.utils.words.hash", lambda word: len(word), raising=False)
    plain = ["b", "a", "b", "cc", "a", "dd", "cc"]
    assert Words.of(plain) == plain and Words.of(plain).distinct() == ["b", "a", "cc", "dd"]


def test_codes_are_as_small_as_they_can_be() -> None:
    assert Words.of(["train", "test"] * 500).codes.dtype == np.uint8
    assert Words.of([str(i) for i in range(256)]).codes.dtype == np.uint8
    assert Words.of([str(i) for i in range(257)]).codes.dtype == np.uint16
    many = Words.of([str(i) for i in range(70_000)])
    assert many.codes.dtype == np.int32 and many[69_999] == "69999" and many[255] == "255"
    assert many.nbytes < 70_000 * 14


def test_distinct_rows_are_the_array() -> None:
    rng = np.random.default_rng(0)
    table, codes = rng.random((5, 4)) < 0.5, rng.integers(0, 5, 40)
    rows, plain = Rows(table, codes), table[codes]
    mask = rng.random(40) < 0.3
    for key in (7, -1, slice(3, 9), [1, 2], mask, (mask, 2), ([3, 4], slice(1, 3)), (5, 1), plain):
        np.testing.assert_array_equal(rows[key], plain[key])
    assert rows.shape == plain.shape and rows.dtype == plain.dtype and rows.ndim == 2 and len(rows) == 40
    np.testing.assert_array_equal(np.asarray(rows), plain)
    np.testing.assert_array_equal(np.asarray(rows, dtype=np.float32), plain)
    with pytest.raises(ValueError, match="read-only"):
        rows[3][0] = True
