"""The core runs on PyTorch, NumPy and the standard library; each edge package has its one place; imports
point one way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import PACKAGE, ROOT, imports, packages

#: What torch and numpy themselves import.
THEIR_OWN = (
    "sympy mpmath networkx jinja2 markupsafe fsspec filelock typing_extensions setuptools optree "
    "triton nvidia cuda torchgen functorch mkl"
)

BLOCKED_RUN = """
import sys
allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "ecggen", *sys.argv[1].split()}
class Wall:
    # In front of all finders: any other package looks as if it were not installed.
    finders = list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        # An underscore in front: compiled parts of the standard library, and the hook of an editable install.
        if top not in allowed and not top.startswith("_"):
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)
sys.meta_path[:] = [Wall()]
try:
    import yaml
except ModuleNotFoundError:
    pass
else:
    sys.exit("the wall does not hold")
from ecggen.main import main
code = main(sys.argv[2:])
edge = {"yaml", "scipy", "wfdb", "mlflow", "dvc", "pandas", "tqdm", "matplotlib", "pydicom"}
foreign = edge & {name.partition(".")[0] for name in sys.modules}
sys.exit(f"imported all the same: {foreign}" if foreign else code)
"""

#: Package -> the only files that may import it.
ONLY_IN = {
    "mlflow": {"tracking.py"},
    "psutil": {"tracking.py"},
    "wfdb": {"io/writer.py"},
    "soundfile": {"io/signals.py"},
    "scipy": {"data/signal.py", "io/signals.py"},
    "distributed": {"utils/parallel.py"},
    "sklearn": {"eval/logistic.py"},
    "matplotlib": {"report/figures.py"},
    "jinja2": {"report/page.py"},
    "pandas": {"eval/personal.py"}
    | {
        f"report/{name}.py"
        for name in ["charts", "ecgs", "figures", "sections", "summary", "tables", "words"]
    },
    "requests": {"prepare/download/transfer.py"},
    "urllib3": {"prepare/download/transfer.py"},
    "tqdm": {"prepare/download/transfer.py"},
    "yaml": {"utils/config.py", "prepare/databases.py", "report/params.py"},
}

#: Rooms from the bottom up; a file imports from its own room and from those below.
ROOMS = (
    ("utils", "leads"),
    ("data",),
    ("models",),
    ("training", "trainer"),
    ("inference",),
    ("io", "prepare", "eval"),
    ("report",),
    ("tracking",),
    ("main", "scripts"),
)
CORE = ("leads", "utils", "data", "models", "training", "trainer", "inference", "eval")
#: NumPy alone at import: the synthetic fallback of python -m ecggen.main.
OPEN_TO_MAIN = ("ecggen.prepare.synthetic", "ecggen.report.words")


def room(module: str) -> str:
    return module.split(".")[1]


def test_core_trains_where_every_other_package_is_blocked(tmp_path: Path) -> None:
    """On the synthetic windows that stand in where data/windows is absent."""
    small = {"width": 16, "depth": 1, "heads": 2, "channels": [8, 8, 8], "state_dim": 8, "basis": 4}
    options = {"epochs": 1, "batch_size": 4, "max_windows": 8, "device": "cpu", "threads": 1}
    config = {"synthetic": {"patients": 6}, "model": small, "train": options}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", BLOCKED_RUN, THEIR_OWN]
    command += ["--config", "config.json", "--mode", "train", "--out", "runs", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (facts,) = tmp_path.glob("runs/*/facts.csv")
    assert "steps,2\n" in facts.read_text()


@pytest.mark.parametrize("package", ONLY_IN)
def test_edge_packages_have_one_place(package: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if package in packages(path)
    }
    assert users <= ONLY_IN[package]


@pytest.mark.parametrize("package", ["mlflow", "wfdb", "scipy", "matplotlib", "pydicom", "distributed"])
def test_stages_import_the_package_alone(package: str) -> None:
    users = [path.name for path in (ROOT / "stages").glob("*.py") if package in set(imports(path))]
    assert users == []


def test_every_file_has_its_room() -> None:
    known = {name for rank in ROOMS for name in rank}
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert {name for name in rooms if not name.startswith("_")} - known <= {"configs", "py"}


def test_imports_point_one_way() -> None:
    ranks = {name: rank for rank, names in enumerate(ROOMS) for name in names}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if where == "__init__":
            continue
        for name in imports(path):
            target = room(name) if name.startswith("ecggen.") else ""
            if target in ranks and ranks[target] > ranks[where]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_core_does_not_import_the_edge() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if where not in (*CORE, "main"):
            continue
        allowed = OPEN_TO_MAIN if where == "main" else ()
        for name in imports(path):
            edge = name.startswith(("ecggen.prepare", "ecggen.io", "ecggen.tracking", "ecggen.report"))
            if edge and name != "ecggen.prepare" and not name.startswith(allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []
