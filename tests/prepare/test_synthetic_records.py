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

RULES = replace(SyntheticConfig(), seconds=3.0)


def test_written_as_wfdb_records(tmp_path: Path) -> None:
    rules = replace(RULES, patients=6, second_record_share=0.2)
    said = write_dataset(rules, tmp_path)
    assert said["records"] == 7 and said["root"] == "records"
    first = (tmp_path / said["names"]).read_text(encoding="utf-8").splitlines()[0]
    read = wfdb.rdrecord(str(tmp_path / "records" / first))
    made = simulate(rules, 0)
    assert read.sig_name == [*LEADS, *FRANK] and set(read.units) == {"mV"} and read.fs == rules.fs
    np.testing.assert_allclose(read.p_signal[:, :12], made.ecg_mv, atol=6e-4)
    np.testing.assert_allclose(read.p_signal[:, 12:], made.vcg_mv, atol=6e-4)
    assert f"Dx: {','.join(made.labels)}" in read.comments and "Patient: p0001" in read.comments


@pytest.mark.parametrize("write", [write_dataset, write_other])
def test_several_processes_write_the_same_bytes(tmp_path: Path, write: Callable[..., Any]) -> None:
    rules = replace(RULES, patients=30, second_record_share=0.5)
    said = [write(rules, tmp_path / str(count), limit=25, processes=count) for count in (1, 2)]
    assert said[0] == said[1]
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob("*.*")} for root in _roots(tmp_path)]
    assert files[0] == files[1] and len(files[0]) == 2 * said[0]["records"] + 2
    listed = [(root / "records" / "RECORDS").read_text().split() for root in _roots(tmp_path)]
    assert listed[0] == listed[1] and len(listed[0]) == said[0]["records"]


def _roots(folder: Path) -> list[Path]:
    return [folder / "1", folder / "2"]


def test_names_are_in_the_order_of_the_plan(tmp_path: Path) -> None:
    rules = replace(RULES, patients=14, second_record_share=0.5)
    write_dataset(rules, tmp_path)
    listed = (tmp_path / "records" / "RECORDS").read_text().split()
    assert listed == [record_name(*record) for record in record_plan(rules)]
    assert listed[:1] == [simulate(rules, 0).name] and len(listed) == 21


def test_few_records_are_not_worth_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def workers(processes: int) -> nullcontext[Pool]:
        counts.append(processes)
        return nullcontext(Pool())

    monkeypatch.setattr(synthetic_records, "workers", workers)
    monkeypatch.setattr(synthetic_records, "cores", lambda: 5)
    rules = replace(RULES, patients=7, second_record_share=0.0)
    for many in (8, 7):
        monkeypatch.setattr(synthetic_records, "MANY_RECORDS", many)
        write_dataset(rules, tmp_path / str(many))
    assert counts == [1, 5]


def test_a_task_is_split_into_its_records(tmp_path: Path) -> None:
    task = Batch(RULES, synthetic_records.OTHER_DEVICE, tmp_path, ((0, 0), (3, 1)))
    assert [part.records for part in task.split()] == [((0, 0),), ((3, 1),)]
    assert all(replace(part, records=task.records) == task for part in task.split())
