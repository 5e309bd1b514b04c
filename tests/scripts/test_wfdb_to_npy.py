"""The converter as a user runs it: a plain script."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecggen.io.records import write_record
from ecggen.leads import EXPAND, FRANK, INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS
from ecggen.scripts.wfdb_to_npy import main
from ecggen.utils.files import read_csv, read_json


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six records of five patients with Frank leads, one of them broken."""
    folder = tmp_path_factory.mktemp("wfdb")
    for i in range(6):
        rng = np.random.default_rng(i)
        x = rng.normal(size=(8, 1)) * np.sin(np.arange(2500) / 20) + 0.05 * rng.normal(size=(8, 2500))
        x = np.concatenate([EXPAND @ x, x[:3]]).T
        write_record(folder, f"r{i}", 250, x, [*LEADS, *FRANK], [f"Patient: p{i // 2 if i < 2 else i}"])
    (folder / "r5.dat").write_bytes(b"1234")
    return folder


def run(repository: Path, *args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """In a process where ecggen is not importable from the working folder."""
    script = repository / "ecggen" / "scripts" / "wfdb_to_npy.py"
    code = f"import sys, runpy\n{before}\nsys.argv = {[str(script), *args]!r}\n"
    code += f"sys.path[0] = {str(script.parent)!r}\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository.parent, check=False
    )


BLOCK = """
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in NAMES:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_script_without_dvc_and_mlflow(repository, source, tmp_path):
    dst = tmp_path / "npy"
    blocked = "NAMES = {'dvc', 'mlflow', 'torch', 'matplotlib', 'tqdm', 'requests'}" + BLOCK
    args = ("--src", str(source), "--dst", str(dst), "--time_len", "512", "--fs_out", "100")
    process = run(repository, *args, before=blocked)
    assert process.returncode == 0, process.stderr
    for words in ("6 records found, 5 usable, 1 rejected", "r5.dat", "10 windows written"):
        assert words in process.stdout
    windows, frank = np.load(dst / "windows.npy"), np.load(dst / "frank.npy")
    assert windows.shape == (10, 12, 512) and frank.shape == (10, 3, 512)
    np.testing.assert_allclose(frank[:, 0], windows[:, 0], atol=1e-3)
    meta = read_json(dst / "meta.json")
    assert meta["fs"] == 100 and meta["time_len"] == 512 and meta["preprocessing"]["high_hz"] == 40
    assert {"train", "validation", "test"} == {row["split"] for row in read_csv(dst / "index.csv")}
    assert "r5" in {row["record"] for row in read_csv(dst / "rejected.csv")}


def test_without_scipy_numpy_takes_over(source, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / "scipy", tmp_path / "numpy"]
    for folder in folders:
        assert main(["--src", str(source), "--dst", str(folder), "--backend", folder.name]) == 0
    capsys.readouterr()
    assert read_json(folders[1] / "meta.json")["preprocessing"]["backend"] == "numpy"
    a, b = (np.load(folder / "windows.npy") for folder in folders)
    assert 0 < np.abs(a - b).max() < 5e-4
    monkeypatch.setitem(sys.modules, "scipy.signal", None)  # importing it would raise
    assert main(["--src", str(source), "--dst", str(tmp_path / "c"), "--backend", "numpy"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "windows.npy"), b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--src", "nowhere"], "No folder of records at"),
        (["--fs_out", "3"], "data.fs is 3"),
        (["--low", "50"], "low_hz is 50"),
        (["--exclude", "noisy"], "window.exclude has 'noisy'"),
        (["--time_len", "5000"], "shorter than one window"),
        (["--limit", "2"], "at least 3"),
    ],
)
def test_errors_are_one_sentence_and_code_1(source, tmp_path, capsys, change, words):
    assert main(["--src", str(source), "--dst", str(tmp_path / "npy"), *change]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "npy").exists()


def test_other_files_are_never_replaced(source, tmp_path, capsys):
    source = shutil.copytree(source, tmp_path / "wfdb")
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "index.csv").write_text("chapter,years of work")
    (tmp_path / "link").symlink_to(source)
    (source / "sub").mkdir()
    (source / "link").symlink_to(tmp_path / "npy")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    inside = (source / "sub", source / "link" / "..", source / "new")
    for dst in (other, source, tmp_path, tmp_path / "link", *inside):
        assert main(["--src", str(source), "--dst", str(dst)]) == 1
        words = capsys.readouterr().err
        assert "holds other files" in words or "lie one in the other" in words
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for _ in range(2):  # an earlier result may be replaced
        assert main(["--src", str(source), "--dst", str(tmp_path / "npy")]) == 0
    (tmp_path / "npy" / "notes.txt").write_text("mine")
    assert main(["--src", str(source), "--dst", str(tmp_path / "npy")]) == 1
    assert "holds other files, notes.txt for one" in capsys.readouterr().err


def test_records_that_the_result_holds_by_links(source, tmp_path, capsys):
    """A table, or a folder of links, whose records lie in an earlier result."""
    assert main(["--src", str(source), "--dst", str(tmp_path / "npy")]) == 0
    np.save(tmp_path / "npy" / "windows-00001.npy", np.zeros((2, 600)))
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "x.npy").symlink_to(tmp_path / "npy" / "windows-00001.npy")
    (tmp_path / "arrays" / "t.csv").write_text("path,fs,leads,unit\nx.npy,100,I;II,mV\n")
    capsys.readouterr()
    assert main(["--src", str(tmp_path / "arrays" / "t.csv"), "--dst", str(tmp_path / "npy")]) == 1
    assert "perhaps by links" in capsys.readouterr().err
    assert (tmp_path / "npy" / "windows-00001.npy").exists()


def test_real_frank_leads(shared_data, tmp_path, capsys):
    dst = tmp_path / "ptbdb"
    assert main(["--src", str(shared_data / "ptbdb"), "--dst", str(dst), "--split", "test"]) == 0
    windows, frank = np.load(dst / "windows.npy"), np.load(dst / "frank.npy")
    assert len(windows) == len(frank) == 31
    # Independent of our code: the published regression and inverse must find the measured axes.
    for matrix, floor in ((KORS, 0.85), (INVERSE_DOWER, 0.7)):
        vcg = np.einsum("al,nlt->nat", matrix, windows[:, list(INDEPENDENT_INDEX)])
        r = [np.corrcoef(frank[:, axis].ravel(), vcg[:, axis].ravel())[0, 1] for axis in range(3)]
        assert np.mean(r) > floor, r
