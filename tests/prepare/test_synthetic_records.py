"""The embedded data set on disk: wfdb reads it back, and who wrote it cannot be seen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from ecggen.leads import FRANK, LEADS
from ecggen.prepare.synthetic import records as synthetic_records
from ecggen.prepare.synthetic.population import record_name, record_plan, simulate
from ecggen.prepare.synthetic.records import Batch, write_dataset, write_other
from ecggen.utils.config import SyntheticConfig
from ecggen.utils.parallel import Pool

CONFIG = replace(SyntheticConfig(), seconds=3.0)


def test_written_as_wfdb_records(tmp_path: Path) -> None:
    config = replace(CONFIG, patients=6, second_record_share=0.2)
    source = write_dataset(config, tmp_path)
    assert source["records"] == 7 and source["root"] == "records"
    first = (tmp_path / source["names"]).read_text(encoding="utf-8").splitlines()[0]
    read = wfdb.rdrecord(str(tmp_path / "records" / first))
    record = simulate(config, 0)
    assert read.sig_name == [*LEADS, *FRANK] and set(read.units) == {"mV"} and read.fs == config.fs
    np.testing.assert_allclose(read.p_signal[:, :12], record.ecg_mv, atol=6e-4)
    np.testing.assert_allclose(read.p_signal[:, 12:], record.vcg_mv, atol=6e-4)
    assert f"Dx: {','.join(record.labels)}" in read.comments and "Patient: p0001" in read.comments


@pytest.mark.parametrize("write", [write_dataset, write_other])
def test_several_processes_write_the_same_bytes(tmp_path: Path, write: Callable[..., Any]) -> None:
    config = replace(CONFIG, patients=30, second_record_share=0.5)
    source = [write(config, tmp_path / str(count), limit=25, processes=count) for count in (1, 2)]
    assert source[0] == source[1]
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "2")
    ]
    assert files[0] == files[1] and len(files[0]) == 2 * source[0]["records"] + 3


def test_names_are_in_the_order_of_the_plan(tmp_path: Path) -> None:
    config = replace(CONFIG, patients=14, second_record_share=0.5)
    write_dataset(config, tmp_path)
    listed = (tmp_path / "records" / "RECORDS").read_text().split()
    assert listed == [record_name(*record) for record in record_plan(config)]
    assert listed[:1] == [simulate(config, 0).name] and len(listed) == 21


def test_few_records_are_not_worth_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def workers(processes: int) -> nullcontext[Pool]:
        counts.append(processes)
        return nullcontext(Pool())

    monkeypatch.setattr(synthetic_records, "workers", workers)
    monkeypatch.setattr(synthetic_records, "cores", lambda: 5)
    config = replace(CONFIG, patients=7, second_record_share=0.0)
    for many in (8, 7):
        monkeypatch.setattr(synthetic_records, "MANY_RECORDS", many)
        write_dataset(config, tmp_path / str(many))
    assert counts == [1, 5]


def test_a_task_is_split_into_its_records(tmp_path: Path) -> None:
    task = Batch(CONFIG, synthetic_records.OTHER_DEVICE, tmp_path, ((0, 0), (3, 1)))
    assert [part.records for part in task.split()] == [((0, 0),), ((3, 1),)]
    assert all(replace(part, records=task.records) == task for part in task.split())
