"""Names, checksums and what is known to be there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ecggen.prepare.download.checksums import Manifest, checked_name
from ecggen.prepare.download.source import SourceError

ZERO, ONE = "0" * 64, "1" * 64


def manifest(folder: Path, text: str | bytes) -> Manifest:
    data = text.encode() if isinstance(text, str) else text
    (folder / "sums").write_bytes(data)
    made = Manifest(folder / "m.sqlite")
    made.read_sums(folder / "sums", "sums")
    return made


@pytest.mark.parametrize(
    "name",
    [
        *(
            "r1.hea",
            "a/b/c.dat",
            "files/p1000/p10000032/s40689238/40689238.hea",
            "with blank/x y.dat",
            "a..b/c",
        ),
        *("Ü/ä.dat", ".hidden/x", "x" * 200, "WFDBRecords/01/010/JS00001.mat", "a,b=c+d/-x_.y"),
    ],
)
def test_names_that_are_fine(name: str) -> None:
    assert checked_name(name, "here") == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a\\x",
            "..\\x",
            "C:/x",
            "c:x",
            "a/b:stream",
            "//host/x",
            ".",
            "..",
        ),
        *("a\x00b", "a\nb", "a\x1b[2Jb", "a\u202eb", "\ud800", "x.", "x ", " x/y", "a./b", "a /b", ""),
        *("x" * 201, "ä" * 101, "/".join("x" * 40), "y/" * 600 + "x"),
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        checked_name(name, "SHA256SUMS.txt")
    said = str(caught.value)
    assert said.startswith("SHA256SUMS.txt names") and said.isprintable() and len(said) < 300


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\\x", "C:/x", "a\x00b", "x.", "z" * 300])
def test_sums_with_such_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="names"):
        manifest(tmp_path, f"{ZERO} ok\n{ZERO} {name}\n")


def test_forms_of_lines(tmp_path: Path) -> None:
    files = manifest(tmp_path, f"# note\n{ZERO} a\r\n{ONE.upper()} *b\n{ZERO}\t./c/d\nnonsense\n{ZERO} a\n\n")
    assert files.count() == 3
    assert [files.sha256(name) for name in ("a", "b", "c/d", "e")] == [ZERO, ONE, ZERO, ""]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"{ZERO} a\n{ONE} a\n", "gives two checksums for 'a'"),
        (b"0" * 64 + b" \xff\xfe\n", "not text in UTF-8"),
        (b"x" * 5000, "line of more than 4096 bytes"),
    ],
)
def test_sums_that_are_none(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(SourceError, match=match):
        manifest(tmp_path, text)


def test_a_list_that_is_refused_leaves_the_one_before(tmp_path: Path) -> None:
    files = manifest(tmp_path, f"{ZERO} a\n")
    (tmp_path / "sums").write_text(f"{ZERO} b\n{ZERO} ../c\n")
    with pytest.raises(SourceError):
        files.read_sums(tmp_path / "sums", "sums")
    assert files.count() == 1 and files.sha256("a") == ZERO


def test_files_beside_a_record_and_at_the_root(tmp_path: Path) -> None:
    names = [
        "r1.hea",
        "r1.dat",
        "r1.dat.gz",
        "r10.hea",
        "r1/x.hea",
        "r1-x.dat",
        "a/r1.hea",
        "a/r1.xyz",
        "a0",
        "a.b",
    ]
    files = manifest(tmp_path, "".join(f"{ZERO} {name}\n" for name in names))
    assert files.beside("r1") == ["r1.dat", "r1.hea"]
    assert files.beside("a/r1") == ["a/r1.hea", "a/r1.xyz"]
    assert sorted(files.at_root()) == sorted(name for name in names if "/" not in name)


def test_each_wanted_file_once_and_only_those_there_are(tmp_path: Path) -> None:
    files = manifest(tmp_path, f"{ZERO} a\n{ZERO} b\n{ZERO} B\n{ZERO} c\n")
    assert files.want(["b", "a", "b", "nothing"]) == (1, 2)
    first, count = files.want(["a", "c", "B"])
    assert count == 2
    assert [name for name, _, _ in files.wanted_from(tmp_path, first)] == ["c", "B"]
    assert files.wanted("a") and not files.wanted("nothing")
    assert sorted(files.clash() or ()) == ["B", "b"]


def test_a_write_is_noticed_and_an_untouched_file_is_known(tmp_path: Path) -> None:
    data = b"signal"
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "a").write_bytes(data)
    files = manifest(tmp_path, f"{sha256} a\n")
    files.want(["a"])

    def known() -> bool:
        return next(files.wanted_from(tmp_path, 0))[2]

    assert not known()
    files.verified(tmp_path, "a", sha256)
    assert known()
    files.close()
    files = Manifest(tmp_path / "m.sqlite")  # ... and by the next run
    files.want(["a"])
    assert known()
    (tmp_path / "a").write_bytes(b"sIgnal")
    assert not known()
    (tmp_path / "a").write_bytes(data)
    files.verified(tmp_path, "a", sha256)
    os.utime(tmp_path / "a", ns=(0, (tmp_path / "a").stat().st_mtime_ns + 1))
    assert not known()
    files.verified(tmp_path, "a", sha256)
    (tmp_path / "b").write_bytes(data)
    os.utime(tmp_path / "b", ns=(0, (tmp_path / "a").stat().st_mtime_ns))
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert not known()


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "m.sqlite").write_bytes(b"no database" * 1000)
    files = Manifest(tmp_path / "m.sqlite")
    assert files.count() == 0
    files.say("key", "value")
    files.close()
    assert Manifest(tmp_path / "m.sqlite").said("key") == "value"
