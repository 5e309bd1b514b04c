"""What a run changes of the committed parameters, and results of other ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ecggen.report.params import changed, outdated
from stages import changes
from stages.changes import change_words, say_changes, set_here

COMMITTED = "model:\n  tokenizer_mode: equidistant\ntrain:\n  epochs: 16\n"
CHANGED = "model:\n  tokenizer_mode: rr\ntrain:\n  epochs: 1\n"
BACK = "(params.yaml, from an earlier experiment or edited; git checkout params.yaml goes back)"


def git(*words: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *names, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project below the root of a git repository, with committed parameters."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    Path("params.yaml").write_text(COMMITTED)
    git("-C", "..", "init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return Path()


def test_what_differs_from_the_commit(repository: Path) -> None:
    assert changed() == {}
    Path("params.yaml").write_text(CHANGED)
    assert changed() == {"model.tokenizer_mode": "rr", "train.epochs": 1}
    git("checkout", "-q", "--detach")
    assert changed() == {"model.tokenizer_mode": "rr", "train.epochs": 1}
    Path("params.yaml").write_text("train: [")
    assert changed() == {}, "the check of the configuration says what is wrong"


def test_without_a_committed_file_nothing_differs(repository: Path, tmp_path: Path) -> None:
    git("rm", "-q", "--cached", "params.yaml")
    git("commit", "-qm", "untracked")
    Path("params.yaml").write_text(CHANGED)
    assert changed() == {}
    (tmp_path / ".git").rename(tmp_path / "no_git")
    assert changed() == {}


@pytest.mark.parametrize(
    ("command", "experiment", "words"),
    [
        (["repro"], "", f"changed: model.tokenizer_mode=rr, train.epochs=1 {BACK}"),
        (
            ["exp", "run", "-S", "params.yaml:model.tokenizer_mode=rr"],
            "x",
            f"changed: model.tokenizer_mode=rr (this experiment), train.epochs=1 {BACK}",
        ),
        (
            ["exp", "run", "--set-param=train.epochs=1", "-Smodel.tokenizer_mode=rr"],
            "x",
            "changed: model.tokenizer_mode=rr, train.epochs=1 (this experiment)",
        ),
        (["queue-worker"], "x", "changed: model.tokenizer_mode=rr, train.epochs=1 (this experiment)"),
    ],
)
def test_the_words_say_where_a_change_comes_from(
    monkeypatch: pytest.MonkeyPatch, command: list[str], experiment: str, words: str
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    values = {"model.tokenizer_mode": "rr", "train.epochs": 1}
    assert change_words(values, set_here(["python", "dvc", *command])) == words
    assert change_words({}, set_here(command)) == ""


def test_a_run_says_it_once(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(CHANGED)
    for key, lines in (("first", 1), ("first", 0), ("second", 1)):
        monkeypatch.setattr(changes, "run_key", lambda key=key: key)
        say_changes()
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_many_changes_are_counted() -> None:
    words = change_words({f"a.{n}": n for n in range(20)}, [])
    assert "a.11=11 and 8 more" in words and "a.12" not in words


LOCK = """
stages:
  check: {params: {params.yaml: {train: {epochs: 3}}}}
  window: {params: {params.yaml: {data.fs: 100.0}}}
  train: {params: {params.yaml: {data.fs: 100.0, train: {epochs: 3, gone: 1}}}}
  report: {}
"""


def test_results_of_other_parameters_are_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {fs: 250}\ntrain: {epochs: 16}\n")
    assert outdated(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text(LOCK)
    expected = {"data.fs=100.0, now 250": ["window", "train"], "train.epochs=3, now 16": ["train"]}
    assert outdated(tmp_path) == expected
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD")
    assert outdated(tmp_path) == {}
