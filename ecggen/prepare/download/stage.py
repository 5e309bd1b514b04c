"""The download stage: fills data/raw with records, or with the word where they are.

data/raw is marked `persist: true` in dvc.yaml: DVC leaves it in place before a run, so a download that broke
off goes on where it stopped. source.json is removed first and written last, so a folder that has it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.prepare.download.array_table import list_table
from ecggen.prepare.download.physionet import Physionet
from ecggen.prepare.download.source import (
    PARTS,
    SOURCE_FILE,
    Source,
    SourceSpec,
    configured_sources,
    list_source,
    write_parts,
    write_source,
)
from ecggen.prepare.download.specs import OTHER, part_keys
from ecggen.prepare.synthetic import records as synthetic_records
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder


def download(config: Config, out: Path) -> dict[str, Any]:
    """Fill `out` from the sources of config.data and return what out/source.json says.

    One source lies in `out` itself, several in out/parts/KEY. Raises SourceError; then there is no
    source.json.
    """
    out = Path(out)
    specs = configured_sources(config.data)
    return prepare_source(specs[0], config, out) if len(specs) == 1 else gather(specs, config, out)


def gather(specs: Sequence[SourceSpec], config: Config, out: Path) -> dict[str, Any]:
    """Fill out/parts/KEY from each of the sources and return what out/source.json says.

    Raises SourceError, also where two of them hold the same recordings; then there is no source.json.
    """
    (out / SOURCE_FILE).unlink(missing_ok=True)
    listed = [_listed(spec, config) for spec in specs]
    # A local folder turns out to hold a database: its records are called after it.
    keys = part_keys(
        replace(spec, database=source.database) if source else spec
        for spec, source in zip(specs, listed, strict=True)
    )
    _keep_only(out, keys)
    for key, spec, source in zip(keys, specs, listed, strict=True):
        _fill(out / PARTS / key, spec, source, config)
    return write_parts(out, keys)


def prepare_source(spec: SourceSpec, config: Config, raw: Path) -> dict[str, Any]:
    """Fill `raw` from one source and return what raw/source.json says.

    synthetic: writes the embedded data set, or the other population; wfdb and table: list what is there,
    copy nothing; physionet: fetches a database, every file checked against its SHA-256. Raises SourceError;
    then there is no source.json.
    """
    (Path(raw) / SOURCE_FILE).unlink(missing_ok=True)
    return _fill(Path(raw), spec, _listed(spec, config), config)


def _listed(spec: SourceSpec, config: Config) -> Source | None:
    """The records that are there already; None where they have to be fetched or made."""
    data = config.data
    if spec.kind == "wfdb":
        return list_source(spec.place, fs=data.fs, limit=data.limit, database=spec.database)
    return list_table(spec.place, limit=data.limit) if spec.kind == "table" else None


def _fill(raw: Path, spec: SourceSpec, source: Source | None, config: Config) -> dict[str, Any]:
    """Fill `raw` from one source; `source`: as `_listed` says."""
    data = config.data
    (raw / SOURCE_FILE).unlink(missing_ok=True)
    if spec.kind == "physionet":
        database = Physionet(spec.place, data.url, raw, fs=data.fs, limit=data.limit)
        return write_source(raw, database.run())
    with fresh_folder(raw) as folder:
        if source is not None:
            return write_source(folder, source)
        other = spec.place == OTHER
        write = synthetic_records.write_other if other else synthetic_records.write_dataset
        return write(config.synthetic, folder, limit=data.limit, processes=data.workers)


def _keep_only(out: Path, keys: list[str]) -> None:
    """Empty `out` of everything but the parts that are wanted: these go on where they stopped."""
    for path in [*out.glob("*"), *out.glob(".*"), *(out / PARTS).glob("*")]:
        if path == out / PARTS or (path.parent == out / PARTS and path.name in keys):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
