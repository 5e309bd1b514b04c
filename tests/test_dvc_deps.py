"""dvc.yaml against the code: DVC does not follow imports, so every imported file must be a dependency."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from ecggen.utils.config import Config, config_to_dict, flatten, load_config
from tests.source import ROOT, imports, packages

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

#: Files that no output depends on, each with its reason.
EXCLUDED = {
    "ecggen/__init__.py": "a version and lazy names; nothing is computed there",
    "ecggen/tracking.py": "writes to MLflow alone, never to an output",
    "stages/__init__.py": "the frame of a stage: errors, signals, records for MLflow",
    "ecggen/report/words.py": "the run in words in the terminal, never an output",
    "ecggen/report/params.py": "what is said of parameters in the terminal, never an output",
    "ecggen/utils/errors.py": "the words of errors",
    "ecggen/utils/threads.py": "how idle threads wait",
    "ecggen/utils/config.py": "params.yaml holds every key, and DVC follows it key by key",
}


def imported_files(path: Path) -> set[str]:
    """Files of the package that one file imports, packages' __init__.py included."""
    files = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] not in ("ecggen", "stages"):
            continue
        for end in range(1, len(parts) + 1):
            base = ROOT.joinpath(*parts[:end])
            candidates = (base / "__init__.py", base.with_suffix(".py"))
            files |= {c.relative_to(ROOT).as_posix() for c in candidates if c.is_file()}
    return files


def is_empty(path: Path) -> bool:
    """Whether a file holds nothing but a docstring and future imports."""
    return all(
        isinstance(node, ast.Expr) or (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def data_files(path: Path) -> set[str]:
    """Tables beside a file that it reads by name."""
    names = re.findall(r'with_name\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    return {path.with_name(name).relative_to(ROOT).as_posix() for name in names}


def required_files(stage: str) -> set[str]:
    """The stage script and every file of the package that its outputs can depend on."""
    left_out = set(EXCLUDED)
    if stage == "train":  # the checkpoint carries the configuration and a fingerprint of the core's source
        left_out -= {file for file in EXCLUDED if file.startswith("ecggen/utils/")}
    script = f"stages/{stage}.py"
    seen: set[str] = set()
    todo = {script}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= imported_files(ROOT / file) - left_out - seen
    code = {file for file in seen if not is_empty(ROOT / file)}
    return code.union(*(data_files(ROOT / file) for file in code))


def declared(stage: str) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in STAGES[stage]["deps"]]


def covered(file: str, deps: list[str]) -> bool:
    return any(file == dep or file.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_a_dependency(stage: str) -> None:
    deps = declared(stage)
    missing = sorted(file for file in required_files(stage) if not covered(file, deps))
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_dependency_on_unused_code(stage: str) -> None:
    required = required_files(stage)
    code = [dep for dep in declared(stage) if dep.startswith(("ecggen", "stages"))]
    unused = [dep for dep in code if not any(covered(file, [dep]) for file in required)]
    assert not unused, f"{stage} would run again for nothing after a change in {unused}"


def test_training_depends_on_the_source_its_checkpoint_is_stamped_with() -> None:
    from ecggen.training.checkpoint import _CORE

    deps = declared("train")
    assert [part for part in _CORE if not covered(f"ecggen/{part}", deps)] == []


def test_excluded_files_exist_and_nothing_hides_an_import() -> None:
    listed = EXCLUDED
    assert [file for file in listed if not (ROOT / file).is_file()] == []
    by_name = [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("ecggen/**/*.py"), *ROOT.glob("stages/*.py")]
        if "import_module(" in path.read_text(encoding="utf-8")
    ]
    assert by_name == ["ecggen/__init__.py"]


def test_tables_are_those_of_the_package() -> None:
    listed = set().union(*(data_files(path) for path in ROOT.glob("ecggen/**/*.py")))
    beside = [
        path for kind in ("**/*.csv", "**/*.json", "prepare/*.yaml") for path in ROOT.glob(f"ecggen/{kind}")
    ]
    assert listed == {path.relative_to(ROOT).as_posix() for path in beside}


def test_stage_names() -> None:
    """Stage = script = results or data folder; no script shadows a module that a stage imports.

    Beside them lies what several share.
    """
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert scripts - {"__init__", "changes", "description", "evaluation", "record"} == set(STAGES)
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m stages.{name}"
    assert not scripts & packages(*ROOT.glob("ecggen/**/*.py"), *ROOT.glob("stages/*.py"))


def outputs(stage: str) -> list[str]:
    entries = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


@pytest.mark.parametrize(
    ("stage", "followers"),
    [
        ("train", {"reconstruction", "missing_lead", "linear_probe", "transfer", "report"}),
        ("missing_lead", {"transfer", "report"}),
        ("transfer_windows", {"transfer", "report"}),
        ("report", set()),
    ],
)
def test_what_runs_again_after_a_stage(stage: str, followers: set[str]) -> None:
    again = {stage}
    for _ in STAGES:
        files = [file for name in again for file in outputs(name)]
        again |= {name for name in STAGES if any(covered(file, declared(name)) for file in files)}
    assert again - {stage} == followers


def test_params_exist_and_are_fine_grained() -> None:
    defaults = config_to_dict(Config())
    known = set(flatten(defaults)) | set(defaults)
    assert set(STAGES["check"]["params"]) == set(defaults), "whatever is changed is checked"
    for name, stage in STAGES.items():
        assert set(stage["params"]) <= known, name
        if name != "check":
            assert "data" not in stage["params"], "one key of section data must not re-run everything"
    # What -S model.tokenizer_mode=rr must not touch.
    for name in ("download", "preprocess", "window", "transfer_windows"):
        assert not [key for key in STAGES[name]["params"] if key.startswith(("model", "train"))]
    for name in ("reconstruction", "missing_lead", "linear_probe", "report"):
        holders = [stage for stage, entry in STAGES.items() if name in entry["params"]]
        assert holders == ["check", name]
    unused = {
        key
        for key in flatten(defaults)
        if not any(
            key == param or key.startswith(f"{param}.")
            for stage in STAGES
            for param in (STAGES[stage]["params"] if stage != "check" else ())
        )
    }
    main_alone = {"data.meta_root", "run.m", "run.s", "run.k"}  # python -m ecggen.main
    who_works = {"data.scheduler", "data.workers"}  # no byte of a result depends on it
    assert unused == main_alone | who_works


def test_params_yaml_holds_every_knob_at_its_default() -> None:
    text = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert flatten(text).keys() == flatten(config_to_dict(Config())).keys()
    assert load_config(ROOT / "params.yaml") == Config()


def test_outputs_are_ignored_by_git_or_kept_in_it() -> None:
    """Cached outputs stay out of git, small ones are not cached; no output lies inside another."""
    outs = {}
    for stage in STAGES.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            outs[path] = options.get("cache", True)
    for path, cached in outs.items():
        assert cached == (not path.endswith((".json", ".csv"))), path
        assert not [other for other in outs if other.startswith(f"{path}/")]
