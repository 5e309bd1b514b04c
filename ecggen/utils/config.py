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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecggen.utils.errors import EcggenError


class ConfigError(EcggenError):
    """A configuration that cannot be used: what, value, what is allowed."""


def _f(default: Any, **allowed: Any) -> Any:
    """A dataclass field; allowed, for the value or each entry of a list: low, high (inclusive), multiple,
    one_of (choices), check (a function of the value: what is wrong, or ""); empty: the list may be empty."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=allowed)
    return field(default=default, metadata=allowed)


def _form(pattern: str, words: str) -> Callable[[str], str]:
    return lambda text: "" if re.fullmatch(pattern, text) else words


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        return f"this is no regular expression ({error}), write one such as '^(S[0-9]+)_'"
    return ""


def _check_lead_set(text: str) -> str:
    from ecggen.leads import INDEPENDENT_INDEX, LeadError, derivable, observed_mask, parse_lead_set

    try:
        mask = observed_mask(parse_lead_set(text))
    except LeadError as error:
        return str(error).rstrip(".")
    whole = (mask | derivable(mask))[list(INDEPENDENT_INDEX)].all()
    return "this leaves no lead to render, leave out one of I, II and V1 to V6 at least" if whole else ""


def _check_ttt_set(text: str) -> str:
    return "" if re.fullmatch(r"-V[1-6]", text) else _check_lead_set(text)


_ADDRESS = r"|(\w+://)?(\[[^]]+\]|[^\s:/]+):\d{1,5}"

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
    patient: str = _f("", check=_check_pattern)  # finds the patient in a record's name; empty = none
    url: str = _f("")  # source physionet: another server with the same layout; empty = PhysioNet
    limit: int = _f(0, low=0)  # first records only; 0 = all
    meta_root: str = _f("data/windows")  # folder of .npy windows that training reads
    fs: float = _f(100.0, low=50, high=2000)  # Hz, of records and windows
    time_len: int = _f(512, low=32, high=100_000)  # samples of a window
    #: Of Dask: its workers prepare and evaluate; empty = none.
    scheduler: str = _f("", check=_form(_ADDRESS, "give the address of a Dask scheduler, tcp://host:port"))
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
    channels: list[int] = _f([32, 48, 64], low=8, multiple=8)  # stem, decoder; each further one halves time
    beat_channels: list[int] = _f([64, 96, 128], low=8, multiple=8)  # network that reads the median beat
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
    device: str = _f("auto", check=_form(r"auto|cpu|cuda(:\d+)?|mps", "use auto, cpu, cuda, cuda:N or mps"))
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
    lead_sets: list[str] = _f(LEAD_SETS, check=_check_lead_set)
    leave_one_out: bool = _f(True)  # limb leads + each single precordial missing in turn
    validation: bool = _f(False)  # the validation split as well
    personal: bool = _f(True)
    #: Of lead_sets, or "-V3": error after each number of inner steps; each costs as much as five others.
    ttt_lead_sets: list[str] = _f(["I", "I+II+V2"], empty=True, check=_check_ttt_set)
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
    supervised: bool = _f(False)  # a network of the same size trained on the labels as well: minutes
    supervised_epochs: int = _f(8, low=1)
    pca: int = _f(128, low=1)
    label_shares: list[float] = _f([], low=1e-6, high=0.999999, empty=True)  # of the labels, such as 0.1
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
    lead_set: str = _f("I+II+V2", check=_check_lead_set)


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
    language = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(path.suffix.lower())
    if language is None:
        raise ConfigError(f"Configuration {path} has suffix {path.suffix!r}: use .yaml, .yml or .json.")
    try:
        text = path.read_text(encoding="utf-8")
        if language == "JSON":
            mapping = json.loads(text)
        else:
            import yaml  # here alone in the core: JSON works without PyYAML

            mapping = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"Cannot read configuration {path}: {error.strerror or error}.") from error
    except Exception as error:  # yaml's own have no common base with those of json
        words = " ".join(str(error).split())
        raise ConfigError(f"Configuration {path} is not valid {language}: {words}.") from error
    if not isinstance(mapping, dict | None):
        kind = type(mapping).__name__
        raise ConfigError(f"Configuration {path} holds a {kind}: a mapping of sections is needed.")
    return mapping or {}


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in mapping, in place; the value is JSON, a list such as [I,I+II], or text."""
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(
            f"Override {override!r}: write section.key=value, for example model.tokenizer_mode=rr."
        )
    *sections, last = key.strip().split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
        if not isinstance(mapping, dict):
            raise ConfigError(f"Override {override!r}: {section!r} is a value, not a section.")
    mapping[last] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [_parse_value(part.strip()) for part in text[1:-1].split(",")]
        return {"true": True, "false": False}.get(text.lower(), text)


def config_from_dict(mapping: dict[str, Any]) -> Config:
    """A checked Config; keys that are absent take their default. Raises ConfigError."""
    config: Config = _check(mapping, Config, {}, "")
    sentence = _conflict(config)
    if sentence:
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


def _check(value: Any, kind: Any, allowed: Mapping[str, Any], name: str) -> Any:
    """value as this kind of field (a type or dataclass) with what is allowed there. Raises ConfigError."""
    entries = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _check_section(value, typing.cast(type, kind), name)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}: a mapping such as {{m: m1}} is needed.")
        return {str(key): _check(item, entries[1], {}, f"{name}.{key}") for key, item in value.items()}
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or (not value and not allowed.get("empty")):
            raise ConfigError(f"{name} is {value!r}: a list with at least one entry is needed.")
        return [_check(item, entries[0], allowed, f"{name}[{i}]") for i, item in enumerate(value)]
    if kind in (int, float) and isinstance(value, str):  # PyYAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    words = _complaint(value, kind, allowed)
    if words:
        raise ConfigError(f"{name} is {value!r}: {words}.")
    return kind(value)


def _check_section(value: Any, section: type, name: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{name or 'The configuration'} is {value!r}: a mapping of keys is needed.")
    kinds = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    values = {}
    for key, item in value.items():
        where = f"{name}.{key}" if name else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"Unknown key {where!r}: allowed here are {', '.join(sorted(fields))}.{hint}")
        values[key] = _check(item, kinds[key], fields[key].metadata, where)
    return section(**values)


def _complaint(value: Any, kind: type, allowed: Mapping[str, Any]) -> str:
    """What is wrong with a single value; "" = nothing."""
    number, low, high = kind in (int, float), allowed.get("low", -math.inf), allowed.get("high", math.inf)
    expected: Any = (int, float) if number else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, expected):
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        return f"{words[kind]} is needed"
    if number and not math.isfinite(value):
        return "a finite number is needed"
    if kind is int and value % 1:
        return "a whole number is needed"
    if number and not low <= value <= high:
        return f"at least {low} is needed" if high == math.inf else f"allowed are values from {low} to {high}"
    if "multiple" in allowed and value % allowed["multiple"]:
        return f"a multiple of {allowed['multiple']} is needed"
    if "one_of" in allowed and value not in allowed["one_of"]:
        return f"use one of {', '.join(allowed['one_of'])}"
    return str(allowed["check"](value)) if "check" in allowed else ""


def _conflict(config: Config) -> str:
    """The sentence for values that do not go together; "" = all do."""
    data, model, pre, window = config.data, config.model, config.preprocess, config.window
    if model.width % model.heads:
        return f"model.width is {model.width}: it must be a multiple of model.heads ({model.heads})."
    if model.beat_len > data.time_len:
        return f"model.beat_len is {model.beat_len}: at most data.time_len ({data.time_len}) is allowed."
    multiple = 2 ** (len(model.channels) - 1)  # each entry but the first halves the time line
    if data.time_len % multiple or model.beat_len % multiple:
        lengths = f"data.time_len ({data.time_len}) and model.beat_len ({model.beat_len})"
        return f"{lengths} must be multiples of {multiple}: each further entry of model.channels halves time."
    if pre.low_hz >= pre.high_hz:
        return f"preprocess.low_hz is {pre.low_hz}: it must lie below high_hz ({pre.high_hz})."
    if window.validation_share + window.test_share >= 1:
        return "window.validation_share + window.test_share must stay below 1: nothing is left to train on."
    if "@" in data.url.partition("://")[2].partition("/")[0]:  # not repeated
        words = "set PHYSIONET_USERNAME and PHYSIONET_PASSWORD in the environment, or write a ~/.netrc"
        return f"data.url holds a user name or password, which would be stored with every run: {words}."
    lacking = {
        "physionet": not data.database and "set data.database to a name or slug/version, such as ptb-xl",
        "wfdb": not data.path and "set data.path to a folder of WFDB records",
        "table": not data.path.lower().endswith(".csv") and "set data.path to a CSV file that lists records",
        "several": not data.sources and "data.sources is empty, list sources such as wfdb:/my/records",
    }.get(data.source)
    if lacking:
        return f"data.source is {data.source} and data.path is {data.path!r}: {lacking}."
    if data.sources and data.source not in ("several", "synthetic"):  # synthetic is only the default
        words = f"add {data.source}:... to the list and set data.source=several"
        return f"data.sources is a list and data.source is {data.source}: use one of the two, or {words}."
    return ""
