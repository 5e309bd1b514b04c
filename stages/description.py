"""A pipeline run in MLflow's words: its name, its description, and the command that makes it again."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecggen.eval.verdict import ABOVE, BELOW, UNDECIDED
from ecggen.report.params import changed, committed, in_words, value_in_words
from ecggen.utils.config import Config, config_to_dict, flatten

if TYPE_CHECKING:
    from ecggen.report.summary import Number

MOST = 6  # parameters that a name holds
#: The name says these in a word.
_PLACE = ("data.source", "data.database", "data.path", "data.sources", "data.url")
Values = Mapping[str, Any]


def changed_parameters(config: Config) -> dict[str, Any]:
    """What differs from the committed params.yaml; where git has none, from the values of the package."""
    if committed():
        return changed()
    defaults = flatten(config_to_dict(Config()))
    return {
        key: value for key, value in flatten(config_to_dict(config)).items() if defaults.get(key) != value
    }


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key by its last words, as few as tell it from every other parameter."""
    others = [tuple(key.split(".")) for key in flatten(config_to_dict(Config()))]
    out = {}
    for key in keys:
        words = tuple(key.split("."))
        ends = (words[-count:] for count in range(1, len(words)))
        ours = (end for end in ends if sum(other[-len(end) :] == end for other in others) == 1)
        out[key] = ".".join(next(ours, words))
    return out


def run_name(config: Config, changes: Values) -> str:
    """What differs, else "defaults"; seed and database where these do not differ."""
    named = {key: value for key, value in changes.items() if key not in _PLACE}
    short = short_keys(named)
    words = [f"{short[key]}={_shortened(value_in_words(value))}" for key, value in named.items()]
    if more := words[MOST:]:
        words[MOST:] = [f"and {len(more)} more"]
    seed = [] if "train.seed" in named else [f"seed {config.train.seed}"]
    return ", ".join([" ".join(words) or "defaults", *seed, _database(config)])


def _database(config: Config) -> str:
    data = config.data
    if data.sources:
        return "+".join(entry.partition(":")[0] for entry in data.sources)
    if data.database or not data.path:
        return data.database or data.source
    return Path(data.path).name


def _shortened(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def command(changes: Values, commit: str, edited: Sequence[str] = ()) -> str:
    """The Markdown of how to make the run again. edited: files whose changes no commit holds."""
    settings = [f"-S {shlex.quote(in_words(key, value))}" for key, value in changes.items()]
    lines = [f"git checkout {commit[:12]}"] if commit else []
    lines.append(" ".join(["dvc exp run", *settings]) if settings and commit else "dvc repro")
    out = ["**Make it again**", "", "```sh", *lines, "```"]
    if settings and not commit:
        out += ["", f"with {', '.join(in_words(*item) for item in changes.items())} in params.yaml."]
    if edited:
        out += ["", f"The commit is not all: {', '.join(edited)} had changes that were not committed."]
    return "\n".join(out)


def uncommitted(porcelain: str) -> list[str]:
    """Files of `git status --porcelain` but those that an experiment changes itself."""
    files = [line[2:].strip().rpartition(" -> ")[2] for line in porcelain.splitlines()]
    return [file for file in files if not re.search(r"(^|/)(params\.yaml|dvc\.lock|results/.*)$", file)]


def verdict_and_table(numbers: Sequence[Number]) -> str:
    """The Markdown of two sentences and a table."""
    sentences = [
        _sentence(numbers, "r_", "margin", "With nothing known of the person"),
        _sentence(numbers, "person_", "person_margin", "With a reference of the person"),
    ]
    rows = ["| | value | 95 % interval | patients | | |", "|---|---|---|---|---|---|"]
    for one in numbers:
        interval = f"{one.low:.3f} to {one.high:.3f}" if math.isfinite(one.low) else ""
        patients = f"{one.n_patients:.0f}" if math.isfinite(one.n_patients) else ""
        value = one.short if one.name == "train_s" else f"{one.value:.3f}"
        rows.append(f"| {one.name} | {value} | {interval} | {patients} | {one.verdict} | {one.words} |")
    return "\n".join([" ".join(filter(None, sentences)), "", *rows])


def _sentence(numbers: Sequence[Number], start: str, margin: str, words: str) -> str:
    """What a margin shows of the largest lead set; nothing where it was not measured."""
    scores = [one for one in numbers if one.name.startswith(start) and one.name != margin]
    less = next((one for one in numbers if one.name == margin), None)
    if less is None or not scores:
        return ""
    lead_set, best = scores[-1].name.removeprefix(start), less.words.rpartition(" less that of ")[2]
    shown = f"{words}, hidden leads are rendered from {lead_set} with r {scores[-1].value:.3f}"
    against = {
        ABOVE: f"{less.value:.3f} above {best}",
        BELOW: f"{-less.value:.3f} below {best}",
        UNDECIDED: f"no difference from {best} is shown",
    }
    return f"{shown}: {against.get(less.verdict, less.verdict)}."
