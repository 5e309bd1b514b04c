"""A source in one line."""

from __future__ import annotations

import pytest

from ecggen.prepare.download.specs import SourceSpec, configured_sources, parse_source, part_keys
from ecggen.utils.config import ConfigError, DataConfig, config_from_dict
from ecggen.utils.errors import EcggenError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("synthetic", SourceSpec("synthetic", "", "synthetic")),
        ("wfdb:/my/records", SourceSpec("wfdb", "/my/records")),
        (" WFDB : rel/ative ", SourceSpec("wfdb", "rel/ative")),
        ("wfdb:C:/records", SourceSpec("wfdb", "C:/records")),
        ("table:mine.csv", SourceSpec("table", "mine.csv")),
        ("physionet:ludb", SourceSpec("physionet", "ludb/1.0.1", "ludb")),
        ("physionet:ptb-xl/1.0.1", SourceSpec("physionet", "ptb-xl/1.0.1", "ptb-xl")),
        ("physionet:other/2.0", SourceSpec("physionet", "other/2.0")),
        ("georgia:/my/georgia", SourceSpec("wfdb", "/my/georgia", "georgia")),
        ("PTBXL:/my/ptb", SourceSpec("wfdb", "/my/ptb", "ptb-xl")),
    ],
)
def test_lines(text, spec):
    assert parse_source(text) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no place"),
        ("/my/records", "has no place"),
        ("wfdb:", "has no place"),
        ("ptb-xl", r"physionet:ptb-xl downloads it"),
        ("synthetic:7", "takes nothing after it"),
        ("gorgia:/x", r"Unknown database 'gorgia'.*mean 'georgia'"),
        ("physionet:georgia", "part of challenge-2021"),
        ("physionet:nothing", "write slug/version"),
    ],
)
def test_refusals(text, words):
    with pytest.raises(EcggenError, match=words) as error:
        parse_source(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        ({}, SourceSpec("synthetic", "", "synthetic")),
        ({"source": "wfdb", "path": "/a"}, SourceSpec("wfdb", "/a")),
        ({"source": "wfdb", "path": "/a", "database": "MIMIC"}, SourceSpec("wfdb", "/a", "mimic-iv-ecg")),
        ({"source": "physionet", "database": "ptb-xl"}, SourceSpec("physionet", "ptb-xl/1.0.3", "ptb-xl")),
        ({"source": "table", "path": "a.csv"}, SourceSpec("table", "a.csv")),
    ],
)
def test_what_a_configuration_names(data, spec):
    assert configured_sources(DataConfig(**data)) == [spec]


def test_an_unknown_database_of_a_configuration():
    with pytest.raises(EcggenError, match="Unknown database 'x'"):
        configured_sources(DataConfig(source="wfdb", path="/a", database="x"))


def test_keys_are_short_and_different():
    lines = ["physionet:ptb-xl", "wfdb:/one/My records/", "wfdb:/two/my records"]
    lines += ["table:/x/mine.csv", "physionet:o/1"]
    assert part_keys(map(parse_source, lines)) == ["ptb-xl", "my-records", "my-records-2", "mine", "o"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "several"}, r"data\.sources is empty"),
        ({"source": "table", "path": "x.txt"}, "a CSV file"),
        ({"source": "wfdb", "path": "/a", "sources": ["synthetic"]}, "use one of the two"),
        ({"sources": "wfdb:/a"}, "a list"),
    ],
)
def test_configurations_that_contradict_themselves(data, words):
    with pytest.raises(ConfigError, match=words):
        config_from_dict({"data": data})


@pytest.mark.parametrize(
    "override",
    [
        "data.sources=[wfdb:/a,physionet:ludb]",
        "data.sources=[ptb-xl:/my/ptb-xl,table:/x/y z.csv]",
        "data.sources=['wfdb:~/a','physionet:ptb-xl/1.0.3']",
    ],
)
def test_the_list_passes_through_dvc(override, repository, tmp_path):
    """As `dvc exp run -S` writes it into params.yaml; a place with ~ or brackets needs quotes of its own."""
    from dvc.utils.hydra import apply_overrides

    from ecggen.utils.config import load_config

    path = tmp_path / "params.yaml"
    path.write_text((repository / "params.yaml").read_text())
    apply_overrides(path, [override])
    specs = configured_sources(load_config(path).data)
    assert len(specs) == 2 and specs[0].place in ("/a", "/my/ptb-xl", "~/a")
