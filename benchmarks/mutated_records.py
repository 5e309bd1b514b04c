"""Mutated WFDB records: every input of benchmarks/fuzz_records.py, made from its seed and number alone."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from wfdb_by_hand import RANGES, File, Signal, mat_header, write, write_layout, write_master

from ecggen.leads import FRANK, LEADS

NUMBERS = (
    *("0", "1", "-1", "2", "3", "7", "12", "24", "80", "127", "128", "255", "256", "500", "1000", "32767"),
    *("32768", "-32768", "65535", "65536", "2147483647", "2147483648", "-2147483648", "4294967296"),
    *("9223372036854775807", "9223372036854775808", "1000000000000", "99999999999999999999999", "1e3"),
    *("1e-9", "1e308", "1e309", "-0", "0.0", "0.5", "1.", ".5", "nan", "inf", "-inf", "NaN", "0x10", "1_000"),
    *("٣", "²", "١٢", "", "+", "-", ".", "e", "9" * 30, "9" * 5000),
)
NAMES = (
    *("~", "-", ".", "..", "/", "../r", "/etc/passwd", "/dev/zero", "r", "r.hea", "s0", "s0.dat", "m", "a b"),
    *("\x7f", "é", "a" * 300, "C:\\x", "loop", "fifo", "folder", "empty", "*", "%s", "{}", "s0.dat\t"),
)
WORDS = (
    "I",
    "II",
    "v1",
    "aVR",
    "MLII",
    "vx",
    "vy",
    "vz",
    "x",
    "lead",
    "ECG",
    "",
    " ",
    "é",
    "mV",
    "\u2028",
    "#",
    "/",
)
UNITS = ("mV", "uV", "µV", "V", "nV", "mmHg", "", "/", "mV mV", "(1)", "MV")
FORMATS = (
    *RANGES,
    "0",
    "1",
    "212x2",
    "16x1+24",
    "16:3",
    "8x2:1+1",
    "516+1",
    "310x7",
    "999",
    "16+1",
    "80x1000000",
)


@dataclass(frozen=True)
class Case:
    """One record: the files of its folder, and its name."""

    name: str
    files: dict[str, bytes]


def seeds(data: Path | None) -> list[Case]:
    """The records that inputs are made from."""
    made: list[Case] = []
    with tempfile.TemporaryDirectory() as place:
        for number, build in enumerate((_formats, _shapes, _multi)):
            for at, name in enumerate(build(Path(place) / str(number))):
                folder = Path(place) / str(number) / str(at)
                made.append(Case(name, {p.name: p.read_bytes() for p in sorted(folder.iterdir())}))
    for header in _real(data):
        files = {p.name: p.read_bytes() for p in sorted(header.parent.glob(f"{header.stem}.*"))}
        small = {name: body for name, body in files.items() if len(body) < 400_000}
        made.append(Case(header.stem, small))
    return made


def _samples(fmt: str, n: int, seed: int) -> np.ndarray:
    low, high = RANGES[fmt]
    rng = np.random.default_rng(seed)
    if fmt == "8":
        return np.cumsum(rng.integers(-90, 91, n))
    wave = np.sin(np.arange(n) / 9 + seed) + rng.normal(scale=0.1, size=n)
    return np.clip(np.round(wave * min(high, 1000) * 0.6), low, high).astype(np.int64)


def _signals(fmt: str, names: dict[str, int], frames: int, **more) -> list[Signal]:
    return [
        Signal(name, _samples(fmt, frames * k, i), k, 100.0 + i, i, **more)
        for i, (name, k) in enumerate(names.items())
    ]


def _formats(folder: Path) -> Iterator[str]:
    for at, fmt in enumerate(RANGES):
        file = File("r.dat", fmt, _signals(fmt, {"I": 1, "II": 1, "III": 1, "V1": 1, "RESP": 1}, 300))
        write(folder / str(at), "r", 100, [file], comments=["Age: 60", "Dx: A"])
        yield "r"


def _shapes(folder: Path) -> Iterator[str]:
    mat = File("r.mat", "16", _signals("16", dict.fromkeys(LEADS, 1), 250), mat_header(12, 250))
    rates = File("r.dat", "212", _signals("212", {"RESP": 1, "I": 4, "II": 4, "ABP": 2}, 80))
    flac = File("r.flac", "516", _signals("516", {"I": 2, "II": 2}, 150), skip=5)
    frank = File("r.xyz", "80", _signals("80", dict.fromkeys(FRANK, 1), 250))
    skewed = File("r.dat", "16", _signals("16", {"I": 1, "II": 1, "V5": 1}, 300))
    for skew, line in enumerate(skewed.signals):
        line.skew = 3 * skew
    for at, (fs, files) in enumerate(
        ((500, [mat]), (50, [rates]), (100, [flac]), (250, [mat, frank]), (128, [skewed]))
    ):
        write(folder / str(at), "r", fs, files)
        yield "r"


def _multi(folder: Path) -> Iterator[str]:
    for at in range(2):
        place = folder / str(at)
        for number, length in enumerate((120, 90, 140)):
            file = File(
                f"s{number}.dat",
                "16" if number else "212",
                _signals("16", {"I": 1, "II": 1, "V2": 1}, length),
            )
            write(place, f"s{number}", 125, [file])
        if at:
            write_layout(place, "lay", 125, {"II": "mV", "V2": "mV", "RESP": "Ohm"})
            parts = [("lay", 0), ("s0", 120), ("~", 40), ("s1", 90), ("s2", 140)]
        else:
            parts = [("s0", 120), ("s1", 90), ("s2", 140)]
        write_master(place, "m", 125, 3, parts)
        yield "m"


def _real(data: Path | None) -> list[Path]:
    if data is None or not data.is_dir():
        return []
    found = []
    for pattern in (
        "ptbxl/records100/*/*.hea",
        "ludb/data/*.hea",
        "ptbdb/*/*.hea",
        "mitdb/*.hea",
        "challenge/*/*.hea",
    ):
        found += sorted(data.glob(pattern))[:3]
    return found


def mutate(corpus: Sequence[Case], seed: int, number: int) -> Case:
    """Input `number` of a seed."""
    rng = random.Random(seed * 1_000_003 + number)
    case = rng.choice(corpus)
    files = dict(case.files)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        headers = [name for name in files if name.endswith(".hea")]
        if headers and rng.random() < 0.75:
            name = (
                f"{case.name}.hea"
                if rng.random() < 0.6 and f"{case.name}.hea" in files
                else rng.choice(headers)
            )
            change = flip if rng.random() < 0.25 else _grammar
        else:
            name, change = rng.choice(list(files)), flip
        others = [
            x for n, x in rng.choice(corpus).files.items() if n.endswith(".hea") == name.endswith(".hea")
        ]
        files[name] = change(rng, files[name], rng.choice(others or [b""]), corpus)
        if rng.random() < 0.02:
            del files[rng.choice(list(files))]
        if not files:
            files["r.hea"] = b""
    return Case(case.name, files)


def flip(rng: random.Random, body: bytes, other: bytes, corpus: Sequence[Case] = ()) -> bytes:
    """One change that knows nothing of what the bytes mean; other: bytes to splice from."""
    x = bytearray(body)
    kind = rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8))
    if kind == 6 and body[:1].isalnum() and rng.random() < 0.8:
        kind = 1  # a header with zeros is refused before anything else is looked at
    at, end = sorted((rng.randrange(len(x) + 1), rng.randrange(len(x) + 1)))
    end = min(end, at + 4096)
    if kind == 0 and x:
        for _ in range(rng.choice((1, 2, 8, 64))):
            x[rng.randrange(len(x))] ^= 1 << rng.randrange(8)
    elif kind == 1 and x:
        x[rng.randrange(len(x))] = rng.choice((0, 1, 9, 10, 13, 32, 35, 47, 127, 128, 255))
    elif kind == 2:
        del x[at:end]
    elif kind == 3:
        x[at:at] = x[at:end]
    elif kind == 4:
        del x[at:]
    elif kind == 5:
        x[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
    elif kind == 6:
        x[at:end] = bytes(end - at)
    elif kind == 7 and other:
        start = rng.randrange(len(other))
        x[at:end] = other[start : start + end - at]
    else:
        x = bytearray(other[: len(other) // 2] + body[len(body) // 2 :])
    return bytes(x)


def _grammar(rng: random.Random, body: bytes, other: bytes, corpus: Sequence[Case]) -> bytes:
    lines = body.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines)) if rng.random() < 0.7 else 0
    words = lines[at].split(" ")
    kind = rng.randrange(13)
    word = rng.randrange(len(words))
    if kind <= 2:
        words[word] = rng.choice((NUMBERS, NUMBERS, NAMES, WORDS, FORMATS)[rng.randrange(5)])
    elif kind == 3:  # one number inside a field: 16x1+24, 200(0)/mV, r/3
        numbers = list(re.finditer(r"-?[0-9.]+", lines[at]))
        if numbers:
            hit = rng.choice(numbers)
            lines[at] = lines[at][: hit.start()] + rng.choice(NUMBERS) + lines[at][hit.end() :]
            words = lines[at].split(" ")
    elif kind == 4 and len(words) > 1:
        words[1] = rng.choice(FORMATS)
    elif kind == 5 and len(words) > 2:
        gain = f"{rng.choice(NUMBERS)}({rng.choice(NUMBERS)})/{rng.choice(UNITS)}"
        words[2] = rng.choice((gain, gain.partition("/")[0], rng.choice(NUMBERS), f"/{rng.choice(UNITS)}"))
    elif kind == 6:
        words[0] = rng.choice((*NAMES, *(name for case in corpus[:20] for name in case.files)))
    elif kind == 7:
        words.insert(word, rng.choice(("", "\t", "#", rng.choice(NUMBERS), rng.choice(WORDS))))
    elif kind == 8:
        del words[word]
    elif kind == 9:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
        words = lines[at].split(" ")
    elif kind == 10:
        rng.shuffle(lines)
        words = lines[at].split(" ")
    elif kind == 11:
        number = rng.choice(("0", "-1", "1", "2", "3", "12", "100", "1000000", "1000000000000"))
        lines[0] = re.sub(r"\b[0-9]+\b", lambda m: number if rng.random() < 0.4 else m[0], lines[0])
        words = lines[at].split(" ")
    else:
        spliced = other.decode("utf-8", "surrogateescape").split("\n")[:50]
        lines[at : at + rng.randrange(3)] = rng.sample(spliced, min(len(spliced), rng.randrange(1, 4)))
        at = min(at, len(lines) - 1)
        words = lines[at].split(" ")
    lines[at] = " ".join(words)
    if rng.random() < 0.05:
        lines = [line + "  \t" for line in lines]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)
    return text.encode("utf-8", "surrogateescape")


def put(folder: Path, case: Case) -> Path:
    """Write a case into a new folder that also holds a link to itself, a fifo, a folder and an empty file."""
    folder.mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    for name, body in case.files.items():
        (folder / name).write_bytes(body)
    return folder / case.name
