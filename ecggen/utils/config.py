"""Configuration as a checked value: YAML or JSON in, frozen dataclasses out.

One schema serves `params.yaml` (the pipeline) and `ecggen/configs/train/*.yaml` (`python -m ecggen.main`).
Every key has a default, so a file names only what it changes. An unknown key, a wrong type or a value out
of range raises ConfigError with what is allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecggen.utils.errors import EcggenError


class ConfigError(EcggenError):
    """A configuration that cannot be used: what, value, what is allowed."""


def _f(default: Any, **allowed: Any) -> Any:
    """A dataclass field; allowed: low, high (inclusive), one_of (choices), empty (a list may be empty)."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=allowed)
    return field(default=default, metadata=allowed)


#: Of patients. Nobody is in two of them.
SPLITS = ("train", "validation", "test")
LABEL_CHOICES = ("auto", "superclass", "subclass", "form", "rhythm", "snomed", "beats", "dx")


@dataclass(frozen=True)
class DataConfig:
    """Where the records come from and what a window is."""

    source: str = _f("synthetic", one_of=("synthetic", "physionet", "wfdb", "table", "several"))
    path: str = _f("")  # source wfdb: folder of local records; source table: CSV file that lists arrays
    database: str = _f("")  # physionet: name or slug/version; wfdb: what the folder holds, empty = recognised
    sources: list[str] = _f([], empty=True)  # several at once, each KIND:PLACE (docs/databases.md)
    patient: str = _f("")  # regular expression that finds the patient in a record's name; empty = none
    url: str = _f("")  # source physionet: another server with the same layout; empty = PhysioNet
    limit: int = _f(0, low=0)  # first records only; 0 = all
    meta_root: str = _f("data/windows")  # folder of .npy windows that training reads
    fs: float = _f(100.0, low=50, high=2000)  # Hz, of records and windows
    time_len: int = _f(512, low=32, high=100_000)  # samples of a window
    scheduler: str = _f("")  # of Dask, tcp://host:port: its workers prepare and evaluate; empty = none
    workers: int = _f(0, low=0, high=1024)  # local processes otherwise; 0 = one per core if records are many


@dataclass(frozen=True)
class SyntheticConfig:
    """The embedded data set: a synthetic heart with a known VCG, written as WFDB records."""

    seed: int = _f(7, low=0)
    patients: int = _f(240, low=6, high=1_000_000)
    second_record_share: float = _f(0.25, low=0, high=1)  # patients with two records
    seconds: float = _f(10.0, low=2, high=3600)
    fs: float = _f(250.0, low=100, high=2000)  # Hz, of the records written
    noise_mv: float = _f(0.02, low=0, high=1)  # standard deviation of muscle noise


@dataclass(frozen=True)
class PreprocessConfig:
    """Reading, filtering and quality rules."""

    low_hz: float = _f(0.67, low=0, high=100)  # 0 = no high-pass
    high_hz: float = _f(40.0, low=1, high=1000)
    order: int = _f(3, low=1, high=10)  # Butterworth order, applied forwards and backwards
    max_gap_s: float = _f(0.2, low=0, high=10)  # shorter runs of NaN are interpolated, longer ones rejected
    min_seconds: float = _f(2.0, low=0.1, high=3600)  # shorter records are rejected
    flat_mv: float = _f(0.005, low=0, high=1)  # a lead whose range stays below this is flat
    flat_seconds: float = _f(2.0, low=0.1, high=60)  # ... for at least this long
    saturated_share: float = _f(0.02, low=0, high=1)  # share of samples stuck at a lead's extreme
    max_algebra_mv: float = _f(0.5, low=0, high=100)  # limb leads further from Einthoven are flagged
    max_abs_mv: float = _f(20.0, low=0.5, high=1000)  # no heart reaches this: wrong units or an artefact
    max_noise_mv: float = _f(0.035, low=0, high=100)  # standard deviation between beats, 20 to 45 Hz
    max_motion_mv: float = _f(1.0, low=0, high=100)  # range that the other leads do not explain
    swap_evidence: float = _f(10.0, low=0, high=1e6)  # log likelihood ratio of a swap or an inverted lead


@dataclass(frozen=True)
class WindowConfig:
    """Cutting records into windows and patients into splits."""

    stride: int = _f(512, low=1, high=1_000_000)  # samples; the last window is shifted to the record's end
    scale: str = _f("rms", one_of=("rms", "none"))  # one robust scale per window, stored, not applied on disk
    validation_share: float = _f(0.15, low=0.01, high=0.8)  # of patients, where the data has no folds
    test_share: float = _f(0.2, low=0.01, high=0.8)
    split_seed: int = _f(1, low=0)
    split: str = _f("auto", one_of=("auto", *SPLITS))  # not auto: all windows there
    labels: str = _f("auto", one_of=LABEL_CHOICES)  # label system; auto = the database's own
    min_label_count: int = _f(10, low=1)  # classes with fewer training patients are not probed
    exclude: list[str] = _f(["saturated", "algebra", "amplitude"], empty=True)  # flags that keep a window out


@dataclass(frozen=True)
class TTTConfig:
    """Test-time training of the state W on the observed leads."""

    steps: int = _f(5, low=0, high=100)
    order: str = _f("second", one_of=("second", "first"))
    step_size: float = _f(1.0, low=1e-6, high=100)  # start of the learned per-dimension step sizes
    prior: float = _f(0.01, low=0, high=1000)  # lambda of lambda * |W - W0|^2
    amortised: bool = _f(False)  # add a guess from the support recording to W0
    inner_dropout: float = _f(0.5, low=0, high=1)  # chance that a training view hides an observed lead
    views: int = _f(4, low=1, high=8)  # evaluation: reduced views of the support the inner loss averages over


@dataclass(frozen=True)
class ModelConfig:
    """Architecture."""

    tokenizer_mode: str = _f("equidistant", one_of=("equidistant", "rr"))
    beat_len: int = _f(64, low=8, high=4096)  # P, samples of a token
    width: int = _f(128, low=8, high=4096)  # D
    depth: int = _f(3, low=0, high=48)
    heads: int = _f(4, low=1, high=64)
    dropout: float = _f(0.0, low=0, high=0.9)
    channels: list[int] = _f([32, 48, 64])  # stem and decoder, one per halving of the time line
    beat_channels: list[int] = _f([64, 96, 128])  # of the network that reads the median beat
    state_kind: str = _f("vector", one_of=("vector", "mlp"))
    state_dim: int = _f(128, low=1, high=65_536)  # S
    basis: int = _f(12, low=1, high=512)  # K, temporal basis functions of a token
    residual: bool = _f(True)
    angle: bool = _f(True)  # AngleCalib: rotation and gains of the lead field, from W
    head: str = _f("linear", one_of=("linear", "mlp"))
    head_hidden: int = _f(64, low=1, high=65_536)
    ttt: TTTConfig = field(default_factory=TTTConfig)


@dataclass(frozen=True)
class RegConfig:
    """Weights of the regularisers (0 = off)."""

    smooth: float = _f(0.01, low=0)  # second differences of the VCG
    energy: float = _f(0.001, low=0)  # mean square of the VCG
    closed: float = _f(0.001, low=0)  # beats start and end at the same point
    ortho: float = _f(0.01, low=0)  # Gram matrix of the basis against the identity
    drift: float = _f(0.001, low=0)  # |W - W0|^2
    residual: float = _f(0.02, low=0)  # mean square of the residual leads
    gauge: float = _f(0.1, low=0)  # axis alignment: distance of the VCG from Kors' regression of the leads
    field: float = _f(0.001, low=0)  # deviation of the lead field from Dower


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    seed: int = _f(1, low=0)
    epochs: int = _f(16, low=1, high=100_000)
    batch_size: int = _f(32, low=1, high=65_536)
    optimiser: str = _f("muon", one_of=("muon", "adamw"))  # muon: hidden matrices; the rest is AdamW's
    lr: float = _f(5e-3, low=1e-8, high=10)
    weight_decay: float = _f(0.01, low=0, high=10)
    warmup: float = _f(0.05, low=0, high=0.9)  # share of all steps
    clip: float = _f(1.0, low=1e-6)
    precision: str = _f("auto", one_of=("auto", "fp32", "bf16", "fp16"))
    device: str = _f("auto")  # auto, cpu, cuda, cuda:1, mps
    threads: int = _f(0, low=0, high=1024)  # torch threads, of each process; 0 = torch's choice, shared out
    shards: int = _f(2, low=1, high=64)  # parts of a batch that a CPU computes side by side, a thread each
    nproc: int = _f(1, low=0, high=64)  # processes on this machine (torchrun); 0 = one per GPU
    restarts: int = _f(3, low=0, high=1000)  # of these, after one of them was lost
    workers: int = _f(0, low=0, high=256)  # loader processes, of each
    patience: int = _f(36, low=1)  # epochs without a better validation score
    checkpoint_every: int = _f(0, low=0)  # steps; every epoch in any case
    checkpoint_minutes: float = _f(10.0, low=0)  # ... and as often within long epochs; 0 = not by the clock
    personal_share: float = _f(0.35, low=0, high=1)  # samples with W from another window of the patient
    stranger_share: float = _f(0.05, low=0, high=1)  # of these, mismatched references: of another patient
    field_jitter: float = _f(0.1, low=0, high=1)  # sigma of random lead-field changes, radians and log gain
    reference_jitter: float = _f(0.3, low=0, high=1)  # at most this much more between reference and recording
    warp: float = _f(0.1, low=0, high=0.5)  # sigma of the log time scaling of windows without a reference
    observed_weight: float = _f(0.1, low=0, high=1)  # weight of observed leads in the loss
    correlation_weight: float = _f(1.0, low=0)  # of 1 - r
    dipole_weight: float = _f(1.0, low=0)  # of the loss without the residual head
    memory_weight: float = _f(0.3, low=0)  # of the loss of what W remembers alone
    max_windows: int = _f(0, low=0)  # training windows used; 0 = all
    reg: RegConfig = field(default_factory=RegConfig)


LEAD_SETS = ["I", "II", "I+II", "I+II+V2", "I+II+V3", "I+II+V1+V4", "II+V2+V5"]


@dataclass(frozen=True)
class ReconstructionConfig:
    """All leads given: how much of them the dipole and the residual carry."""

    batch_size: int = _f(128, low=1)
    bootstrap: int = _f(500, low=10, high=100_000)
    seed: int = _f(11, low=0)
    ttt_steps: int = _f(24, low=0, high=1000)  # the dipole after so many inner steps as well; 0 = not
    state_records: int = _f(400, low=2)  # records of the state-stability measurement, at most


@dataclass(frozen=True)
class MissingLeadConfig:
    """Leads hidden and rendered, alone and with a personal reference."""

    batch_size: int = _f(128, low=1)
    lead_sets: list[str] = _f(LEAD_SETS)
    leave_one_out: bool = _f(True)  # limb leads + each single precordial missing in turn
    personal: bool = _f(True)
    ttt_steps: int = _f(20, low=0, high=1000)  # errors after 0, 1 ... trained inner steps, doubled up to this
    context: int = _f(3, low=0, high=50)  # k of the linear regression with +-k samples of context
    bootstrap: int = _f(500, low=10, high=100_000)
    seed: int = _f(12, low=0)


@dataclass(frozen=True)
class LinearProbeConfig:
    """Frozen features against labels."""

    batch_size: int = _f(128, low=1)
    bootstrap: int = _f(500, low=10, high=100_000)
    seed: int = _f(13, low=0)
    supervised: bool = _f(True)  # the supervised network of the same size, as a control
    supervised_epochs: int = _f(8, low=1)
    pca: int = _f(128, low=1)
    label_shares: list[float] = _f([0.01, 0.1])  # of the training labels, probed as well
    share_draws: int = _f(3, low=1, high=1000)  # draws of records for each share


@dataclass(frozen=True)
class TransferConfig:
    """The trained model on other databases; lead sets and protocol are those of missing_lead."""

    sources: list[str] = _f(["synthetic:other"], empty=True)  # KIND:PLACE each, for example wfdb:/my/records
    batch_size: int = _f(128, low=1)
    bootstrap: int = _f(500, low=10, high=100_000)
    seed: int = _f(14, low=0)


@dataclass(frozen=True)
class ReportConfig:
    """The HTML page."""

    examples: int = _f(3, low=1, high=50)
    lead_set: str = _f("I+II+V2")


@dataclass(frozen=True)
class Config:
    """Everything."""

    data: DataConfig = field(default_factory=DataConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    missing_lead: MissingLeadConfig = field(default_factory=MissingLeadConfig)
    linear_probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    run: dict[str, str] = field(default_factory=lambda: {"m": "m1", "s": "s1", "k": "k1"})


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a .yaml, .yml or .json file. Raises ConfigError."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"Configuration {path} has suffix {suffix!r}: use .yaml, .yml or .json.")
    try:
        text = path.read_text(encoding="utf-8")
        mapping = json.loads(text) if suffix == ".json" else _parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"Cannot read configuration {path}: {error.strerror or error}.") from error
    except ImportError as error:
        raise ConfigError(f"Reading {path} needs PyYAML: pip install pyyaml, or use a .json file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Configuration {path} is not UTF-8 text: save it as UTF-8.") from error
    except ValueError as error:
        language, words = "JSON" if suffix == ".json" else "YAML", " ".join(str(error).split())
        raise ConfigError(f"Configuration {path} is not valid {language}: {words}.") from error
    if not isinstance(mapping, dict | None):
        kind = type(mapping).__name__
        raise ConfigError(f"Configuration {path} holds a {kind}: a mapping of sections is needed.")
    return mapping or {}


def _parse_yaml(text: str) -> Any:
    import yaml  # here alone in the core: JSON works without PyYAML

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in mapping, in place; the value is JSON, a list such as [I,I+II], or text."""
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(
            f"Override {override!r}: write section.key=value, for example model.tokenizer_mode=rr."
        )
    parts = key.strip().split(".")
    at = mapping
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"Override {override!r}: {part!r} is a value, not a section.")
    at[parts[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [_parse_value(part.strip()) for part in text[1:-1].split(",")]
        return {"true": True, "false": False}.get(text.lower(), text)


def config_from_dict(mapping: dict[str, Any]) -> Config:
    """A checked Config; keys that are absent take their default. Raises ConfigError."""
    config: Config = _build(Config, mapping, "")
    check_lead_sets("missing_lead.lead_sets", config.missing_lead.lead_sets)
    check_lead_sets("report.lead_set", [config.report.lead_set])
    for sentence in _conflicts(config):
        raise ConfigError(sentence)
    return config


def config_of_checkpoint(mapping: dict[str, Any]) -> Config:
    """The Config of a checkpoint, which another version of ecggen may have written.

    Keys that this version has no more are left out, but for those of the model, on which the weights depend:
    then ConfigError is raised, as for values that are not allowed.
    """
    known = config_to_dict(Config())
    sections = {name: values for name, values in mapping.items() if name in known}
    for name, values in sections.items():
        if name not in ("model", "run") and isinstance(values, dict):
            sections[name] = {key: value for key, value in values.items() if key in known[name]}
    return config_from_dict(sections)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a file, apply `section.key=value` overrides, check. Raises ConfigError."""
    mapping = read_mapping(path)
    for override in overrides:
        apply_override(mapping, override)
    return config_from_dict(mapping)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries (of a Config or of one of its sections)."""
    return dataclasses.asdict(config)


def flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 8}} -> {"model.width": 8}."""
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def _build(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'The configuration'} is {value!r}: a mapping of keys is needed.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, item in value.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"Unknown key {name!r}: allowed here are {', '.join(sorted(fields))}.{hint}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _build(typing.cast(type, hints[key]), item, name)
        else:
            values[key] = _check_value(item, hints[key], fields[key].metadata, name)
    return cls(**values)


def _check_value(value: Any, hint: Any, allowed: Mapping[str, Any], name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is list:
        if not isinstance(value, list) or (not value and not allowed.get("empty")):
            raise ConfigError(f"{name} is {value!r}: a list with at least one entry is needed.")
        (inner,) = typing.get_args(hint)
        return [_check_scalar(item, inner, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}: a mapping such as {{m: m1}} is needed.")
        return {str(k): _check_scalar(v, str, f"{name}.{k}") for k, v in value.items()}
    checked = _check_scalar(value, hint, name)
    choices, low, high = allowed.get("one_of"), allowed.get("low", -math.inf), allowed.get("high", math.inf)
    if choices and checked not in choices:
        raise ConfigError(f"{name} is {checked!r}: use one of {', '.join(choices)}.")
    if hint in (int, float) and not low <= checked <= high:
        words = (
            f"at least {low} is needed" if high == math.inf else f"allowed are values from {low} to {high}"
        )
        raise ConfigError(f"{name} is {checked!r}: {words}.")
    return checked


def _check_scalar(value: Any, hint: Any, name: str) -> Any:
    if hint in (float, int) and isinstance(value, str):  # PyYAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and hint in (float, int) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}: a finite number is needed.")
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    raise ConfigError(f"{name} is {value!r} ({type(value).__name__}): {words[hint]} is needed.")


def check_lead_sets(key: str, texts: Iterable[str]) -> None:
    """Raise ConfigError where a lead set such as "I+II+V2" has an unknown lead or hides nothing."""
    from ecggen.leads import INDEPENDENT_INDEX, LeadError, derivable, observed_mask, parse_lead_set

    for text in texts:
        try:
            mask = observed_mask(parse_lead_set(text))
        except LeadError as error:
            raise ConfigError(f"{key} holds {text!r}. {error}") from error
        if (mask | derivable(mask))[list(INDEPENDENT_INDEX)].all():
            raise ConfigError(
                f"{key} holds {text!r}, which leaves no lead to render: leave out at least one of I, II and "
                "V1 to V6 that the others do not fix."
            )


def _conflicts(config: Config) -> Iterator[str]:
    """A sentence for each value that is not allowed because of its form or of another key."""
    data, model, pre, window = config.data, config.model, config.preprocess, config.window
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", config.train.device):
        yield f"train.device is {config.train.device!r}: use auto, cpu, cuda, cuda:N or mps."
    try:
        re.compile(data.patient)
    except re.error as error:
        yield (
            f"data.patient is {data.patient!r}, which is no regular expression ({error}): write one such as "
            "'^(S[0-9]+)_', whose first group is the patient."
        )
    if "@" in data.url.partition("://")[2].partition("/")[0]:  # not echoed
        yield (
            "data.url holds a user name or password, which would be stored with every run: set "
            "PHYSIONET_USERNAME and PHYSIONET_PASSWORD in the environment, or write a ~/.netrc."
        )
    if data.scheduler and not re.fullmatch(r"(\w+://)?(\[[^]]+\]|[^\s:/]+):\d{1,5}", data.scheduler):
        yield (
            f"data.scheduler is {data.scheduler!r}: give the address of a Dask scheduler, tcp://host:port, "
            "or leave it empty."
        )
    if model.width % model.heads:
        yield f"model.width is {model.width}: it must be a multiple of model.heads ({model.heads})."
    if model.beat_len > data.time_len:
        allowed = f"at most data.time_len ({data.time_len} samples) is allowed"
        yield f"model.beat_len is {model.beat_len}: {allowed}."
    halvings = len(model.channels) - 1
    if data.time_len % 2**halvings or model.beat_len % 2**halvings:
        yield (
            f"data.time_len ({data.time_len}) and model.beat_len ({model.beat_len}) must be multiples of "
            f"{2**halvings}, because model.channels halves the time line {halvings} times."
        )
    for name, widths in (("channels", model.channels), ("beat_channels", model.beat_channels)):
        if any(width < 8 or width % 8 for width in widths):
            yield f"model.{name} is {widths}: multiples of 8 are needed."
    if not all(0 < share < 1 for share in config.linear_probe.label_shares):
        shares = config.linear_probe.label_shares
        yield f"linear_probe.label_shares is {shares}: between 0 and 1 is allowed."
    if pre.low_hz >= pre.high_hz:
        yield f"preprocess.low_hz is {pre.low_hz}: it must lie below high_hz ({pre.high_hz})."
    if window.validation_share + window.test_share >= 1:
        yield "window.validation_share + window.test_share must stay below 1: nothing is left to train on."
    yield from _conflicts_of_source(data)


def _conflicts_of_source(data: DataConfig) -> Iterator[str]:
    csv = data.path.lower().endswith(".csv")
    needs = {
        "physionet": (data.database, "set data.database to a name or slug/version, for example ptb-xl."),
        "wfdb": (data.path, "set data.path to a folder of WFDB records."),
        "table": (csv, f"data.path is {data.path!r}: set it to a CSV file that lists the records."),
        "several": (data.sources, "data.sources is empty: list sources such as wfdb:/my/records."),
    }
    value, words = needs.get(data.source, (True, ""))
    if not value:
        yield f"data.source is {data.source}: {words}"
    if data.sources and data.source not in ("several", "synthetic"):  # synthetic is only the default
        yield (
            f"data.sources lists {len(data.sources)} and data.source is {data.source}: use one of the two, "
            f"or add {data.source}:... to the list and set data.source=several."
        )
