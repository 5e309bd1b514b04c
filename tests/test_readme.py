"""The README is not ahead of the code: its commands, flags, keys, stages, files and names exist."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ecggen.prepare.download.specs import parse_source
from ecggen.utils.config import Config, config_from_dict, config_to_dict, flatten

ROOT = Path(__file__).resolve().parents[1]
README_PATH = ROOT / "README.md"
README = README_PATH.read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
SETTINGS = [words[i + 1] for words in COMMANDS for i, word in enumerate(words[:-1]) if word == "-S"]


def help_of(*command: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
        env=environment,
    )
    return done.stdout


def test_every_command_is_of_a_known_kind() -> None:
    kinds = {words[0] for words in COMMANDS}
    assert kinds == {"make", "dvc", "git", "python", "mlflow"}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in COMMANDS if words[0] == "make"}
    assert targets == {"run", "quick", "compare", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


@pytest.mark.parametrize("setting", sorted(set(SETTINGS)))
def test_settings_are_valid(setting: str) -> None:
    key, _, value = setting.partition("=")
    known = flatten(config_to_dict(Config()))
    assert key in known
    kind = type(known[key])
    mapping: dict = {}
    at = mapping
    *sections, last = key.split(".")
    for section in sections:
        at = at.setdefault(section, {})
    if kind is list:
        at[last] = value.strip("[]").split(",")
        assert all(parse_source(line).kind for line in at[last])
    else:
        at[last] = value == "true" if kind is bool else kind(value)
    partner = {
        "data.source=wfdb": ("path", "/x"),
        "data.source=physionet": ("database", "a/1"),
        "data.source=table": ("path", "/x.csv"),
    }.get(setting)
    if partner:
        mapping["data"][partner[0]] = partner[1]
    config_from_dict(mapping)


def test_keys_in_the_text_exist() -> None:
    known = flatten(config_to_dict(Config()))
    sections = "|".join(config_to_dict(Config()))
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", README))
    assert named and all(key in known for key in named), named - set(known)


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "python"], ids=" ".join)
def test_scripts_take_the_flags(words: list[str]) -> None:
    program = words[1:3] if words[1] == "-m" else words[1:2]
    text = help_of(sys.executable, *program)
    flags = [word for word in words[1 + len(program) :] if word.startswith("--")]
    assert flags and all(re.search(rf"{flag}\b", text) for flag in flags)
    for word in words:
        if word.endswith((".yaml", ".py")):
            assert (ROOT / word).is_file()


def test_dvc_takes_the_commands_and_flags() -> None:
    seen = set()
    for words in (words for words in COMMANDS if words[0] == "dvc"):
        verbs = words[1:3] if words[1] in ("exp", "metrics", "queue") else words[1:2]
        seen.add((tuple(verbs), frozenset(word for word in words[1:] if word.startswith("-"))))
    texts = {verbs: help_of(sys.executable, "-m", "dvc", *verbs) for verbs in {verbs for verbs, _ in seen}}
    for verbs, flags in seen:
        assert all(re.search(rf"(?<![\w-]){flag}\b", texts[verbs]) for flag in flags), (verbs, flags)


def test_files_in_the_text_exist() -> None:
    for page in [README_PATH, *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not absent, (page.name, absent)


def test_benchmarks_in_the_text_exist() -> None:
    for page in [README_PATH, *(ROOT / "docs").glob("*.md")]:
        scripts = set(re.findall(r"benchmarks/\w+\.py", page.read_text(encoding="utf-8")))
        assert not [script for script in scripts if not (ROOT / script).is_file()], page.name


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_python_block_uses_what_exists() -> None:
    block = re.search(r"```python\n(.*?)```", README, flags=re.S)
    assert block
    compile(block[1], "README.md", "exec")
    ecggen = importlib.import_module("ecggen")
    inference = importlib.import_module("ecggen.inference.renderer")
    for name in re.findall(r"ecggen\.(\w+)\(", block[1]):
        assert callable(getattr(ecggen, name))
    for name in re.findall(r"model\.(\w+)\(", block[1]):
        assert callable(getattr(inference.Renderer, name))
    fields = set(inference.Rendered.__dataclass_fields__)
    assert set(re.findall(r"out\.(\w+)", block[1])) <= fields
    assert hasattr(inference.Person, "save")


def test_stages_in_the_picture_are_the_pipeline() -> None:
    import yaml

    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    picture = (ROOT / "docs" / "pipeline.svg").read_text(encoding="utf-8")
    names = set(re.findall(r'class="stage".*?<text class="name"[^>]*>(\w+)<', picture, flags=re.S))
    assert names == stages


def test_no_results_are_promised_without_numbers() -> None:
    assert "TODO" not in README and "TBD" not in README
    assert "esearch use only" in README and (ROOT / "LICENSE").is_file()
