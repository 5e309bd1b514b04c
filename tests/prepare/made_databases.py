"""Small folders in the layout of each database: its names, lead order, units, tables and comments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecggen.io.records import write_record
from ecggen.leads import EXPAND, LEADS, canonical_lead
from ecggen.prepare.databases import get
from ecggen.prepare.download.source import Source, list_source, write_source
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.utils.config import DataConfig, PreprocessConfig


def heart(n: int, fs: float, seed: int = 3, frank: bool = False) -> np.ndarray:
    """[n, 12 or 15] mV: beats, a slow drift, noise; limb algebra exact, Frank leads as I, II and V1."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / fs
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    sources = rng.normal(size=(8, 1)) * beats + 0.01 * rng.normal(size=(8, n))
    sources += 0.3 * np.sin(2 * np.pi * t / 7 + np.arange(8)[:, None])
    return np.concatenate([EXPAND @ sources, sources[:3]] if frank else [EXPAND @ sources]).T


def ecg(leads: tuple[str, ...], fs: float, seconds: float = 6.0, seed: int = 0) -> np.ndarray:
    """[n, C] mV in the order of `leads`: the limb algebra holds, each lead is its own; others are noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(fs * seconds)) / fs
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    twelve = EXPAND @ (rng.uniform(0.3, 1.2, size=(8, 1)) * beats + 0.01 * rng.normal(size=(8, len(t))))
    rows = {lead: twelve[i] for i, lead in enumerate(LEADS)}
    return np.stack(
        [rows.get(canonical_lead(name) or "", 0.1 * rng.normal(size=len(t)) + beats) for name in leads],
        axis=1,
    )


def write(key: str, root: Path, name: str, comments: tuple[str, ...] = (), seed: int = 0) -> None:
    """One record of a database at root/name; the last part of its name is the record's own."""
    base = get(key)
    path, fs = root / name, base.fs[-1]
    write_record(path.parent, path.name, fs, ecg(base.leads, fs, seed=seed), base.leads, comments)


def preprocess_folder(folder: Path, data: DataConfig | None = None, source: Source | None = None) -> dict:
    """The records of a folder, or of a source, in records/ beside the folder. Returns the counts."""
    raw = folder.parent / "raw"
    raw.mkdir(exist_ok=True)
    write_source(raw, source or list_source(folder))
    return preprocess(raw, folder.parent / "records", data or DataConfig(), PreprocessConfig())


def annotate(path: Path, samples: list[int], symbols: list[str], fs: float) -> None:
    """path.atr"""
    import wfdb

    wfdb.wrann(path.name, "atr", np.array(samples), symbols, fs=fs, write_dir=str(path.parent))


def make(key: str, root: Path) -> list[str]:
    """Write the database's miniature to root; returns its record names in the order they are listed."""
    names = _MAKERS[key](root)
    for folder in {root / Path(name).parent for name in names}:
        (folder / "notes.txt").write_text("not a record\n")
    return names


def _ptb_xl(root: Path) -> list[str]:
    rows = [
        "ecg_id,patient_id,age,sex,recording_date,scp_codes,heart_axis,strat_fold,filename_lr,filename_hr"
    ]
    names = []
    codes = ["{'NORM': 100.0, 'SR': 0.0}", "{'IMI': 50.0, 'PVC': 0, 'AFIB': 0}", "{'CLBBB': 100, 'SR': 0.0}"]
    for i, code in enumerate(codes, start=1):
        name = f"records500/00000/{i:05d}_hr"
        write("ptb-xl", root, name, seed=i)
        low = name.replace("500", "100").replace("hr", "lr")
        rows.append(f'{i},{i // 2}.0,56.0,1,1990-01-0{i} 10:00:00,"{code}",LAD,{i + 7},{low},{name}')
        names.append(name)
    (root / "ptbxl_database.csv").write_text("\n".join(rows) + "\n")
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NORM,normal ECG,1.0,,,NORM,NORM\nIMI,inferior MI,1.0,,,MI,IMI\nCLBBB,block,1.0,,,CD,CLBBB\n"
        "PVC,ventricular premature complex,,1.0,,,\nSR,sinus rhythm,,,1.0,,\nAFIB,fibrillation,,,1.0,,\n"
    )
    return names


def _ptbdb(root: Path) -> list[str]:
    known = ("age: 81", "sex: female", "ECG date: 17/10/1990", "Reason for admission: Healthy control")
    names = ["patient001/s0010_re", "patient001/s0014lre", "patient002/s0015lre"]
    for i, name in enumerate(names):
        write("ptbdb", root, name, known if i else ("Reason for admission: n/a",), seed=i)
    return names


def _ludb(root: Path) -> list[str]:
    for i in (1, 2):
        write("ludb", root, f"data/{i}", ("<age>: 51", "<sex>: F", "<diagnoses>:"), seed=i)
    (root / "ludb.csv").write_text(
        "ID,Sex,Age,Rhythms,Electric axis of the heart,Hypertrophies\n"
        '1,"F\n","51\n",Sinus bradycardia,,"Left atrial hypertrophy\nLeft ventricular hypertrophy"\n'
        '2,"M\n",">89\n",Sinus rhythm,Electric axis of the heart: normal,\n'
    )
    return ["data/1", "data/2"]


def _mitdb(root: Path) -> list[str]:
    comments = {"100": "69 M 1085 1629 x1", "201": "68 M 1960 1629 x1", "202": "68 M 1960 1629 x1"}
    for i, (name, line) in enumerate(comments.items()):
        write("mitdb", root, name, (line, "Aldomet, Inderal"), seed=i)
        annotate(root / name, [100, 500, 900, 1500, 2000], ["+", "N", "V", "~", "/"], 360)
    (root / "RECORDS").write_text("".join(f"{name}\n" for name in comments))
    return list(comments)


def _incartdb(root: Path) -> list[str]:
    first = ("<age>: 65 <sex>: F <diagnoses> Coronary artery disease, arterial hypertension", "patient 1")
    lines = {"I01": first, "I02": first, "I08": ("<age>: 51 <sex>: F ", "patient 4")}
    for i, (name, comments) in enumerate(lines.items()):
        write("incartdb", root, name, (*comments, "PVCs, noise"), seed=i)
        annotate(root / name, [300, 700], ["N", "A"], 257)
    (root / "files-patients-diagnoses.txt").write_text("patient 1\nI01 I02\n")
    (root / "RECORDS").write_text("I01\nI02\nI08\n")
    return list(lines)


def _challenge(root: Path) -> list[str]:
    names = {
        "training/cpsc_2018/g1/A0001": "59118001",
        "training/georgia/g1/E00001": "426783006,284470004,284470004",
        "training/ningbo/g1/JS20001": "999999999",
        "training/ptb/g1/S0001": "164865005",
        "training/ptb/g1/S0002": "164865005",
        "training/ptb-xl/g1/HR00001": "251146004,426783006",
    }
    for i, (name, codes) in enumerate(names.items()):
        write("challenge-2021", root, name, ("Age: 74", "Sex: Male", f"Dx: {codes}", "Rx: Unknown"), seed=i)
        folder = (root / name).parent
        with (folder / "RECORDS").open("a") as stream:
            stream.write(f"{Path(name).name}\n")
    folders = dict.fromkeys(str(Path(name).parent) for name in names)
    (root / "RECORDS").write_text("".join(f"{folder}/\n" for folder in folders))
    return list(names)


def _cohort(key: str, stems: tuple[str, ...], codes: str, root: Path) -> list[str]:
    for i, stem in enumerate(stems):
        write(key, root, f"g1/{stem}", ("Age: -1", "Sex: Female", f"Dx: {codes}"), seed=i)
    return [f"g1/{stem}" for stem in sorted(stems)]


def _arrhythmia(root: Path) -> list[str]:
    names = ["WFDBRecords/01/010/JS00001", "WFDBRecords/46/460/JS45551"]
    for i, name in enumerate(names):
        comments = ("Age: 85", "Sex: Male", "Dx: 164889003,59118001,164934002")
        write("ecg-arrhythmia", root, name, comments, seed=i)
        (root / name).parent.joinpath("RECORDS").write_text(f"{Path(name).name}\n")
    (root / "RECORDS").write_text("WFDBRecords/01/010/\nWFDBRecords/46/460/\n")
    (root / "ConditionNames_SNOMED-CT.csv").write_text("Acronym Name,Full Name,Snomed_CT\n")
    return names


def _brugada(root: Path) -> list[str]:
    names = [f"files/{n}/{n}" for n in ("188981", "251972", "596382")]
    for i, name in enumerate(names):
        write("brugada-huca", root, name, seed=i)
    (root / "RECORDS").write_text("".join(f"{name}\n" for name in [*names, names[-1]]))
    (root / "metadata.csv").write_text(
        "patient_id,basal_pattern,sudden_death,brugada\n188981,1,0,1\n251972,0,0,0\n596382,0,1,2\n"
    )
    return names


def _mimic(root: Path) -> list[str]:
    studies = {40689238: 10000032, 44458630: 10000032, 49036311: 10000117}
    names = [f"files/p1000/p{person}/s{study}/{study}" for study, person in studies.items()]
    lines = ["subject_id,study_id,file_name,ecg_time,path"]
    reports = ["subject_id,study_id,report_0,report_1"]
    for i, name in enumerate(names):
        write("mimic-iv-ecg", root, name, seed=i)
        person, study = name.split("/")[2][1:], Path(name).name
        lines.append(f"{person},{study},{study},2180-07-23 08:44:00,{name}")
        reports.append(f"{person},{study},Sinus rhythm,{'Possible infarct - age undetermined.' if i else ''}")
    (root / "record_list.csv").write_text("\n".join(lines) + "\n")
    (root / "machine_measurements.csv").write_text("\n".join(reports) + "\n")
    return names


_MAKERS = {
    "ptb-xl": _ptb_xl,
    "ptbdb": _ptbdb,
    "ludb": _ludb,
    "mitdb": _mitdb,
    "incartdb": _incartdb,
    "challenge-2021": _challenge,
    "challenge-2020": _challenge,
    "cpsc2018": lambda root: _cohort("cpsc2018", ("A0001", "A0002"), "RBBB,I-AVB", root),
    "cpsc2018-extra": lambda root: _cohort("cpsc2018-extra", ("Q0001", "Q0002"), "164867002", root),
    "georgia": lambda root: _cohort("georgia", ("E00001", "E00002"), "284470004", root),
    "chapman-shaoxing": lambda root: _cohort("chapman-shaoxing", ("JS00001", "JS10646"), "426177001", root),
    "ningbo": lambda root: _cohort("ningbo", ("JS10647", "S23074"), "55827005", root),
    "ecg-arrhythmia": _arrhythmia,
    "brugada-huca": _brugada,
    "mimic-iv-ecg": _mimic,
}
