"""The embedded data set on disk: wfdb reads it back, and who wrote it cannot be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import wfdb

from ecggen.leads import FRANK, LEADS
from ecggen.prepare.synthetic.population import record_name, record_plan, simulate
from ecggen.prepare.synthetic.records import write_dataset, write_other
from ecggen.utils.config import SyntheticConfig

CONFIG = replace(SyntheticConfig(), seconds=3.0, patients=14, second_record_share=0.5)


def test_written_as_wfdb_records_in_the_order_of_the_plan(tmp_path: Path) -> None:
    source = write_dataset(CONFIG, tmp_path)
    names = [record_name(*record) for record in record_plan(CONFIG)]
    assert source["records"] == 21 == len(names) and source["root"] == "records"
    for listed in ("records/RECORDS", source["names"]):
        assert (tmp_path / listed).read_text(encoding="utf-8").split() == names
    back, record = wfdb.rdrecord(str(tmp_path / "records" / names[0])), simulate(CONFIG, 0)
    assert back.sig_name == [*LEADS, *FRANK] and set(back.units) == {"mV"} and back.fs == CONFIG.fs
    both = np.concatenate([record.ecg_mv, record.vcg_mv], axis=1)
    np.testing.assert_allclose(back.p_signal, both, atol=6e-4)
    assert f"Dx: {','.join(record.labels)}" in back.comments and "Patient: p0001" in back.comments


def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    sources = [
        write_other(replace(CONFIG, patients=40), tmp_path / str(count), limit=13, processes=count)
        for count in (1, 2)
    ]
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "2")
    ]
    assert sources[0] == sources[1] and files[0] == files[1]
    assert len(files[0]) == 2 * sources[0]["records"] + 3
