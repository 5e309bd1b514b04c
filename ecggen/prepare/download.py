"""The download stage: fills data/raw with records, or with the word where they are.

data/raw is marked `persist: true` in dvc.yaml: DVC leaves it in place before a run, so a download that broke
off goes on where it stopped. source.json is removed first and written last, so a folder that has it is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ecggen.prepare import synthetic
from ecggen.prepare.physionet import Physionet
from ecggen.prepare.source import SOURCE_FILE, list_source, write_source
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder


def download(config: Config, out: Path) -> dict[str, Any]:
    """Fill `out` from config.data.source and return what out/source.json says.

    synthetic: writes the embedded data set; wfdb: lists a local folder, copies nothing; physionet: fetches a
    database, every file checked against its SHA-256. Raises SourceError; then there is no source.json.
    """
    out, data = Path(out), config.data
    (out / SOURCE_FILE).unlink(missing_ok=True)
    if data.source == "physionet":
        database = Physionet(data.database, data.url, out, fs=data.fs, limit=data.limit)
        return write_source(out, database.run())
    if data.source == "wfdb":
        source = list_source(data.path, fs=data.fs, limit=data.limit)
    with fresh_folder(out) as folder:
        if data.source == "wfdb":
            return write_source(folder, source)
        return synthetic.write_dataset(config.synthetic, folder, limit=data.limit)
