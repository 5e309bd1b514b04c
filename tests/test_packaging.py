"""pyproject.toml, constraints.txt and the imports agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.source import ROOT, packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Import name -> name on the package index, where they differ.
NAMES = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
#: Used as programs or by the type checker, never imported.
PROGRAMS = {"dvc", "ruff", "mypy", "pytest-timeout", "pytest-xdist", "types-pyyaml", "scipy-stubs"}


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    parsed = [Requirement(line) for line in lines]
    return {requirement.name.lower(): requirement for requirement in parsed}


def imported(*folders: str) -> set[str]:
    """Names on the package index of what the files of folders import."""
    ours = {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    ours |= {"ecggen", "stages", "tests", "benchmarks"}
    names = packages(*(path for folder in folders for path in (ROOT / folder).rglob("*.py")))
    return {NAMES.get(name, name) for name in names - set(sys.stdlib_module_names) - ours}


def test_everything_imported_is_declared() -> None:
    assert imported("ecggen", "stages") - {"mpl_toolkits"} <= set(requirements())


def test_tests_import_what_is_declared() -> None:
    assert imported("tests") - {"packaging", "tomli", "tomllib"} <= set(requirements("dev"))
    assert imported("benchmarks") <= set(requirements("dev", "peers"))


def test_everything_declared_is_used() -> None:
    used = imported("ecggen", "stages", "tests", "benchmarks") | PROGRAMS
    assert set(requirements("dev", "peers")) <= used


def test_every_dependency_has_bounds() -> None:
    loose = [
        name
        for name, requirement in requirements().items()
        if not {"<", "<="} & {part.operator for part in requirement.specifier}
        or ">=" not in {part.operator for part in requirement.specifier}
    ]
    assert loose == []


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (only,) = pin.specifier
            assert only.operator == "==", line
            assert "+" not in only.version, "a build suffix would keep other builds out"
            pins[pin.name.lower()] = only.version
    assert not [name for name in pins if "nvidia" in name or name in {"triton", "ecggen"}]
    for name, requirement in requirements("dev", "peers").items():
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} against {requirement}"


def test_package_data_is_declared() -> None:
    """What lies beside the code travels with it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    declared = ["configs/**/*.yaml", "data/**/*.json", "prepare/**/*.csv", "prepare/*.yaml"]
    assert data["package-data"]["ecggen"] == [*declared, "report/*.j2", "report/*.js", "py.typed"]
    others = {
        path.suffix or path.name
        for path in (ROOT / "ecggen").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert others <= {".py", ".csv", ".json", ".yaml", ".j2", ".js", ".typed"}


def test_git_keeps_the_code_named_data(tmp_path: Path) -> None:
    """The ignore rules hide files made by the pipeline, not the packages of the same name."""
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text(encoding="utf-8"))
    git = ["git", "-C", str(tmp_path)]
    try:
        subprocess.run([*git, "init", "-q"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not there to ask")
    names = [
        "ecggen/data/pipeline.py", "ecggen/models/ecggen.py", "data/README.md", "results/train/facts.csv",
        "results/missing_lead/ttt.csv", "dvc.lock", "docs/picture.png",
        "data/raw", "data/windows", "results/train/checkpoint.pt", "results/report/figures",
        "results/report/report.html", "mlflow.db", "mlartifacts/1/x", ".mlflow.lock", ".venv/bin/python",
        "results/train/step_000500/checkpoint.pt", "results/runs/m1s1k1/facts.csv",
    ]  # fmt: skip
    done = subprocess.run([*git, "check-ignore", *names], capture_output=True, text=True, check=False)
    assert done.stdout.split() == names[7:]


def test_makefile_and_ci_name_what_exists() -> None:
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", make, flags=re.M))
    ci = ROOT / ".ci" / "run"
    assert ci.stat().st_mode & 0o111
    called = set(re.findall(r"^make ([a-z]+)", ci.read_text(encoding="utf-8"), flags=re.M))
    assert called == {"test", "lint", "types", "run"} and called <= targets
