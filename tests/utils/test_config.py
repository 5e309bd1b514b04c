"""Configuration: what is refused, in which words, and that all files agree with the schema."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import yaml

from ecggen.utils.config import (
    Config,
    ConfigError,
    apply_override,
    config_from_dict,
    config_of_checkpoint,
    config_to_dict,
    flatten,
    load_config,
    read_mapping,
)


def test_defaults_are_valid_and_survive_a_round_trip():
    config = config_from_dict({})
    assert config == Config()
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"modell": {}}, ["Unknown key 'modell'", "allowed here are", "Did you mean 'model'"]),
        ({"model": {"beat_length": 64}}, ["model.beat_length", "Did you mean 'beat_len'"]),
        ({"model": {"ttt": {"step": 3}}}, ["model.ttt.step", "Did you mean 'steps'"]),
        ({"model": 3}, ["model is 3", "a mapping"]),
        ({"train": {"epochs": "many"}}, ["train.epochs is 'many'", "a whole number"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs is 2.5", "a whole number"]),
        ({"train": {"epochs": True}}, ["train.epochs", "a whole number"]),
        ({"model": {"residual": 1}}, ["model.residual", "true or false"]),
        ({"model": {"residual": "yes"}}, ["model.residual", "true or false"]),
        ({"data": {"path": 5}}, ["data.path", "text"]),
        ({"train": {"lr": float("nan")}}, ["train.lr", "finite"]),
        ({"train": {"lr": "inf"}}, ["train.lr is inf", "finite"]),
        ({"train": {"device": "tpu"}}, ["train.device is 'tpu'", "auto, cpu, cuda, cuda:N or mps"]),
        ({"train": {"lr": None}}, ["train.lr is None", "a number"]),
        ({"train": {"epochs": 0}}, ["train.epochs is 0", "from 1 to"]),
        ({"train": {"reg": {"smooth": -1}}}, ["train.reg.smooth is -1", "at least 0"]),
        ({"data": {"fs": 10}}, ["data.fs is 10", "from 50 to 2000"]),
        ({"model": {"tokenizer_mode": "beats"}}, ["model.tokenizer_mode", "equidistant, rr"]),
        ({"model": {"channels": []}}, ["model.channels", "at least one"]),
        ({"model": {"channels": [32, "x"]}}, ["model.channels[1]", "a whole number"]),
        ({"run": {"m": 1}}, ["run.m is 1", "text"]),
        ({"run": "m1"}, ["run is 'm1'", "a mapping"]),
        ({"model": {"width": 130}}, ["multiple of model.heads"]),
        ({"model": {"beat_len": 1024}}, ["at most data.time_len"]),
        ({"data": {"time_len": 510}}, ["multiples of 4"]),
        ({"data": {"scheduler": "my cluster"}}, ["data.scheduler is 'my cluster'"]),
        ({"data": {"scheduler": "tcp://host"}}, ["tcp://host:port"]),
        ({"model": {"beat_len": 66}}, ["multiples of 4"]),
        ({"model": {"channels": [30]}}, ["model.channels[0] is 30: a multiple of 8"]),
        ({"linear_probe": {"label_shares": [1]}}, ["linear_probe.label_shares[0] is 1", "values from"]),
        ({"data": {"patient": "(S"}}, ["data.patient is '(S': this is no regular expression"]),
        ({"preprocess": {"low_hz": 50}}, ["below high_hz"]),
        ({"window": {"validation_share": 0.5, "test_share": 0.5}}, ["below 1"]),
        ({"data": {"source": "physionet"}}, ["data.database"]),
        ({"missing_lead": {"lead_sets": ["I", "V9"]}}, ["missing_lead.lead_sets[1] is 'V9': Unknown lead"]),
        ({"missing_lead": {"lead_sets": ["I+III+V1+V2+V3+V4+V5+V6"]}}, ["leaves no lead to render"]),
        ({"report": {"lead_set": "I+I"}}, ["report.lead_set is 'I+I': Lead I is named twice"]),
        ({"data": {"source": "wfdb"}}, ["data.path"]),
    ],
)
def test_refusals_name_the_key_the_value_and_what_is_allowed(mapping, words):
    with pytest.raises(ConfigError) as error:
        config_from_dict(mapping)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_reach_every_depth_and_keep_zero_and_false(tmp_path):
    expected = {
        "model.tokenizer_mode=rr": "rr",
        "model.ttt.steps=0": 0,
        "model.residual=false": False,
        "model.angle=False": False,
        "train.reg.smooth=0": 0.0,
        "train.lr=1e-3": 1e-3,
        "train.device=cuda:1": "cuda:1",
        'run={"m": "m2"}': "m2",
        'missing_lead.lead_sets=["I", "I+II"]': ["I", "I+II"],
        "window.exclude=[gap,noise:V1]": ["gap", "noise:V1"],
    }
    path = write(tmp_path / "c.json", json.dumps({"model": {"width": 64, "residual": True}}))
    values = flatten(config_to_dict(load_config(path, expected)))
    for override, value in expected.items():
        assert values[override.partition("=")[0].replace("run", "run.m")] == value, override
    assert values["model.width"] == 64  # what the file says stands


@pytest.mark.parametrize("override", ["model.width", "=3", "model.width.deep=3"])
def test_overrides_that_are_not_one(override):
    with pytest.raises(ConfigError, match="Override"):
        apply_override({"model": {"width": 64}}, override)


def test_a_checkpoint_of_another_version_keeps_what_its_weights_depend_on():
    old = config_to_dict(Config())
    old["window"]["shard_windows"] = 65536
    old["gone"] = {"key": 1}
    old["model"]["width"] = 64
    assert config_of_checkpoint(old) == config_from_dict({"model": {"width": 64}})
    old["model"]["gone"] = 1
    with pytest.raises(ConfigError, match=r"Unknown key 'model\.gone'"):
        config_of_checkpoint(old)


def test_json_and_yaml_mean_the_same(tmp_path):
    mapping = {
        "model": {"tokenizer_mode": "rr", "channels": [16, 24]},
        "train": {"lr": 0.001},
        "run": {"m": "m2"},
    }
    as_json = load_config(write(tmp_path / "c.json", json.dumps(mapping)))
    as_yaml = load_config(write(tmp_path / "c.yml", yaml.safe_dump(mapping)))
    assert as_json == as_yaml != Config() == load_config(write(tmp_path / "empty.yaml", "# nothing\n"))
    # YAML 1.1 reads 2e-3 as text.
    config = load_config(write(tmp_path / "e.yaml", "train: {lr: 2e-3, warmup: 5E-2, epochs: 1e1}"))
    assert (config.train.lr, config.train.warmup, config.train.epochs) == (0.002, 0.05, 10)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("c.yaml", b"model: [", "not valid YAML"),
        ("c.yaml", b"data: {path: \xe9}", "not valid YAML"),
        ("c.json", b"{", "not valid JSON"),
        ("c.yaml", b"- a\n- b\n", "a mapping of sections"),
        ("c.toml", b"", "use .yaml, .yml or .json"),
        ("c.yaml", None, "Cannot read configuration"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=word) as error:
        read_mapping(tmp_path / name)
    assert "\n" not in str(error.value)


def test_every_configuration_in_the_repository_loads(repository):
    paths = [*sorted((repository / "ecggen" / "configs").rglob("*.yaml")), repository / "params.yaml"]
    assert len(paths) >= 2
    for path in paths:
        load_config(path)


def test_the_quick_arguments_are_valid():
    repository = Path(__file__).resolve().parents[2]
    lines = (repository / "quick.args").read_text(encoding="utf-8").splitlines()
    settings = [line.removeprefix("-S ") for line in lines]
    assert all(line.startswith("-S ") for line in lines)
    before, after = (
        flatten(config_to_dict(load_config(repository / "params.yaml", each))) for each in ([], settings)
    )
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {setting.partition("=")[0] for setting in settings}


@pytest.mark.parametrize("name", ["params.yaml", "ecggen/configs/train/v1.yaml"])
def test_the_files_hold_the_defaults(repository, name):
    """One truth per number: what the files say is what a file without the key would get."""
    defaults = flatten(config_to_dict(Config()))
    for key, value in flatten(read_mapping(repository / name)).items():
        assert value == defaults[key], key


def test_v1_shows_every_key_of_model_and_training(repository):
    shown = flatten(read_mapping(repository / "ecggen/configs/train/v1.yaml"))
    known = flatten(config_to_dict(Config()))
    sections = ("model.", "train.", "reconstruction.", "missing_lead.", "linear_probe.", "run.")
    assert {key for key in known if key.startswith(sections)} <= shown.keys()


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"window": {"exclude": ["nonsense"]}}, "window.exclude has 'nonsense': use any of flat"),
        ({"data": {"fs": 100}, "preprocess": {"low_hz": 45, "high_hz": 60}}, "must lie below 45 Hz"),
    ],
)
def test_what_later_stages_would_refuse_is_found_by_the_first(tmp_path, monkeypatch, capsys, mapping, words):
    from stages import run_stage

    check = importlib.import_module("stages.check")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECGGEN_TRACKING", "off")
    (tmp_path / "params.yaml").write_text(json.dumps(mapping))
    assert run_stage("check", check.stage) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
