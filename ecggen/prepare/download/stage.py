"""The download stage: fills data/raw with records, or with the word where they are.

data/raw is marked `persist: true` in dvc.yaml: DVC leaves it in place before a run, so a download that broke
off goes on where it stopped. source.json is written last, so a folder that has it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.prepare.download.array_table import ArrayTable, list_table
from ecggen.prepare.download.physionet import MARKER, Physionet, remove
from ecggen.prepare.download.source import (
    NAMES_FILE,
    PARTS,
    SOURCE_FILE,
    Source,
    list_source,
    refuse_links,
    write_parts,
    write_source,
)
from ecggen.prepare.download.specs import (
    OTHER,
    STAGE_FOLDERS,
    SourceError,
    SourceSpec,
    check_sources,
    check_transfer_sources,
    part_keys,
)
from ecggen.prepare.synthetic import records as synthetic_records
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder


def download(config: Config, out: Path) -> dict[str, Any]:
    """Fill `out` from the sources of config.data and return what out/source.json holds.

    One source lies in `out` itself, several in out/parts/KEY. synthetic: writes the embedded data set, or
    the other population; wfdb and table: list what is there, copy nothing; physionet: fetches a database,
    every file checked against its SHA-256. transfer.sources are checked as well, so that a wrong one is
    found now. Raises SourceError; where the configuration is wrong, nothing was touched.
    """
    out = Path(out)
    specs = check_sources(config, [out])
    for spec in check_transfer_sources(config, [out]):
        if spec.kind == "table":
            try:
                ArrayTable(spec.place)
            except SourceError as error:
                raise SourceError(f"transfer.sources names {spec.place!r}: {error}") from None
    if len(specs) > 1:
        return gather(specs, config, out)
    source = _list_local(specs[0], config, out)
    _refuse_foreign(out)
    return _fill(out, specs[0], source, config)


def gather(specs: Sequence[SourceSpec], config: Config, out: Path) -> dict[str, Any]:
    """Fill out/parts/KEY from each of the sources and return what out/source.json holds.

    Raises SourceError, also where two of them hold the same recordings.
    """
    sources = [_list_local(spec, config, out) for spec in specs]
    _refuse_foreign(out)
    # A local folder turns out to hold a database: its records are called after it.
    keys = part_keys(
        replace(spec, database=source.database) if source else spec
        for spec, source in zip(specs, sources, strict=True)
    )
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    (out / SOURCE_FILE).unlink(missing_ok=True)
    for key, spec, source in zip(keys, specs, sources, strict=True):
        _fill(out / PARTS / key, spec, source, config)
    for path in [*out.iterdir(), *(out / PARTS).iterdir()]:
        if path != out / PARTS and path not in [out / PARTS / key for key in keys]:
            remove(path)
    return write_parts(out, keys)


def _refuse_foreign(out: Path) -> None:
    """Raises SourceError where the folder holds what this stage did not put there, and would remove."""
    outputs = {SOURCE_FILE, NAMES_FILE, PARTS}
    if any((out / name).exists() for name in (SOURCE_FILE, PARTS, MARKER)):
        outputs.add("records")
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = next((name for name in entries if name not in outputs and not name.startswith(".")), None)
    if foreign:
        raise SourceError(
            f"{out} holds {foreign}, which this stage did not write and would remove: move it to a folder "
            "outside, and name that with data.source=wfdb and data.path."
        )


def _list_local(spec: SourceSpec, config: Config, out: Path) -> Source | None:
    """The records that are there already; None where they have to be fetched or made."""
    data = config.data
    if spec.kind == "wfdb":
        source = list_source(spec.place, fs=data.fs, limit=data.limit, database=spec.database)
    elif spec.kind == "table":
        source = list_table(spec.place, limit=data.limit)
    else:
        return None
    refuse_links(source, [*STAGE_FOLDERS, out])
    return source


def _fill(raw: Path, spec: SourceSpec, source: Source | None, config: Config) -> dict[str, Any]:
    """Fill `raw` from one source; source: the records, where they are there already."""
    data = config.data
    if spec.kind == "physionet":
        return write_source(raw, Physionet(spec.place, data.url, raw, fs=data.fs, limit=data.limit).run())
    with fresh_folder(raw) as folder:
        if source is not None:
            return write_source(folder, source)
        other = spec.place == OTHER
        write = synthetic_records.write_other if other else synthetic_records.write_dataset
        return write(config.synthetic, folder, limit=data.limit, processes=data.workers)
