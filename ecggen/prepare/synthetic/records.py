"""The embedded data set as WFDB records, written by one process or by several: the same bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.io.records import write_record
from ecggen.leads import FRANK, lead_indices
from ecggen.prepare.download.source import Source, write_source
from ecggen.prepare.synthetic.population import (
    OTHER_DEVICE,
    Device,
    other_population,
    record_name,
    record_plan,
    simulate,
)
from ecggen.utils.config import SyntheticConfig
from ecggen.utils.display import track
from ecggen.utils.parallel import cores, ordered_map, workers

RECORDS = 12  # of a task
#: Records from which local processes are worth their start, which takes as long as about 100 records.
MANY_RECORDS = 1000


@dataclass(frozen=True)
class Batch:
    """A task: records (patient, number) of the data set of this config, to be written to `folder`."""

    config: SyntheticConfig
    device: Device
    folder: Path
    records: tuple[tuple[int, int], ...]

    def split(self) -> list[Batch]:
        """The same, a task for each record."""
        return [replace(self, records=(record,)) for record in self.records]

    def __str__(self) -> str:
        return f"records {record_name(*self.records[0])} to {record_name(*self.records[-1])}"


def write_dataset(
    config: SyntheticConfig,
    out: str | Path,
    *,
    limit: int = 0,
    device: Device | None = None,
    name: str = "synthetic",
    processes: int = 0,
) -> dict[str, Any]:
    """Write WFDB records to out/records and out/source.json; returns what source.json says.

    limit: the first records only, 0 = all; name: of the data set; processes: of this machine, 0 = one per
    core where records are many. Raises WorkerError where one of them is lost again and again.
    """
    out = Path(out)
    plan = record_plan(config)[: limit or None]
    count = processes or (cores() if len(plan) >= MANY_RECORDS else 1)
    folder, device = (out / "records").absolute(), device or Device()
    parts = (tuple(plan[at : at + RECORDS]) for at in range(0, len(plan), RECORDS))
    tasks = (Batch(config, device, folder, part) for part in parts)
    with workers(processes=count) as pool:
        written = ordered_map(write_batch, tasks, pool, split=Batch.split)
        names = [*track("records", (name for batch in written for name in batch), len(plan))]
    (out / "records" / "RECORDS").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return write_source(out, Source("synthetic", name, out / "records", names, database="synthetic"))


def write_other(
    config: SyntheticConfig, out: str | Path, *, limit: int = 0, processes: int = 0
) -> dict[str, Any]:
    """As write_dataset, for other_population on OTHER_DEVICE."""
    config, device = other_population(config), OTHER_DEVICE
    return write_dataset(config, out, limit=limit, device=device, name="synthetic-other", processes=processes)


def write_batch(batch: Batch) -> list[str]:
    """Simulate and write the records of a task; their names."""
    columns = lead_indices(batch.device.channels)
    channels = (*batch.device.channels, *FRANK)
    names = []
    for patient, number in batch.records:
        record = simulate(batch.config, patient, number, batch.device)
        signals = np.concatenate([record.ecg_mv[:, columns], record.vcg_mv], axis=1)
        # In the manner of PTBDB and of the Challenges.
        comments = [f"Patient: {record.patient}", f"Age: {record.age}", f"Sex: {record.sex}"]
        comments += [f"Dx: {','.join(record.labels)}", "Source: synthetic heart, not a person"]
        fs, unit = batch.config.fs, batch.device.unit
        write_record(batch.folder, record.name, fs, signals, channels, comments, unit=unit)
        names.append(record.name)
    return names
