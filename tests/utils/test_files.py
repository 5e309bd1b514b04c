"""Files are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecggen.utils.files import (
    FileError,
    atomic_path,
    fresh_folder,
    locked,
    read_csv,
    read_json,
    save_npy,
    sha256_file,
    write_csv,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_or_folder_and_no_litter(tmp_path):
    path, folder = tmp_path / "x.json", tmp_path / "out"
    write_json(path, {"old": 1})
    with fresh_folder(folder) as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), atomic_path(path) as half, fresh_folder(folder) as half_folder:
        half.write_text("half")
        (half_folder / "new").touch()
        raise RuntimeError
    assert read_json(path) == {"old": 1} and [p.name for p in folder.iterdir()] == ["old"]
    with fresh_folder(folder) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert sorted(tmp_path.iterdir()) == [folder, path]


def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with fresh_folder(tmp_path / "out") as temporary:
        (temporary / "old").touch()
    replace = Path.replace

    def fail(self, target):
        if self.name == ".out.partial":
            raise PermissionError(errno.EACCES, "no", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError), fresh_folder(tmp_path / "out"):
        pass
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/old"]


def test_json_is_sorted_and_has_no_nan(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"b": np.float32(0.5), "a": float("nan"), "c": [np.int64(3), True, (1, np.inf)]})
    lines = path.read_text().splitlines()
    assert lines[:3] == ["{", '  "a": null,', '  "b": 0.5,']
    assert read_json(path) == {"a": None, "b": 0.5, "c": [3, True, [1, None]]}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(FileError, match="Cannot read"):
        read_json(tmp_path / "none.json")


def test_csv(tmp_path):
    path = tmp_path / "t.csv"
    rows = [{"a": 1 / 3, "b": "x;y"}, {"a": float("nan"), "c": "not a column"}]
    write_csv(path, rows, ["b", "a"])
    assert path.read_text() == "b,a\nx;y,0.333333\n,\n"
    assert read_csv(path) == [{"b": "x;y", "a": "0.333333"}, {"b": "", "a": ""}]
    with pytest.raises(FileError, match="Cannot read"):
        read_csv(tmp_path / "none.csv")


def test_npy_and_checksum(tmp_path):
    path = tmp_path / "x.npy"
    save_npy(path, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(np.load(path), [[0, 1, 2], [3, 4, 5]])
    assert path.stat().st_mode & 0o777 == 0o644
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path):
    code = (
        "import os\n"
        "from ecggen.utils.files import atomic_path, fresh_folder\n"
        "with atomic_path('a.json') as a, fresh_folder('b') as b:\n"
        "    a.touch()\n"
        "    (b / 'inside').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert {path.name for path in tmp_path.iterdir()} == {".a.json.partial.json", ".b.partial", ".b.lock"}
    write_json(tmp_path / "a.json", {})
    with fresh_folder(tmp_path / "b") as folder:
        assert list(folder.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b"}


def test_a_folder_that_another_process_is_writing_is_left_alone(tmp_path):
    with fresh_folder(tmp_path / "b") as folder:
        (folder / "x").touch()
        with pytest.raises(FileError, match="written by another process"), fresh_folder(tmp_path / "b"):
            pass
        with locked(tmp_path / "b") as free:
            assert not free
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["x"]
    with locked(tmp_path / "b") as free:
        assert free
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EIO, "broken"), errno.EIO),
        (PermissionError(errno.EACCES, "no", ".x.npy.partial.npy"), errno.EACCES),
        (OSError("1000 requested and 12 written"), errno.ENOSPC),  # as NumPy says it
    ],
)
def test_errors_of_writing_name_the_file(tmp_path, error, number):
    path = tmp_path / "x.npy"
    with pytest.raises(OSError) as caught, atomic_path(path):
        raise error
    assert (caught.value.errno, caught.value.filename) == (number, str(path))


def test_other_errors_keep_their_names(tmp_path):
    with pytest.raises(OSError) as caught, fresh_folder(tmp_path / "y"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert caught.value.filename is None
