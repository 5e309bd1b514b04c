"""The databases that ecggen knows by name: facts, each with the place it was taken from.

`ecggen.prepare.labels.databases` looks them up; docs/databases.md is written from here. What could not be
checked is marked "not verified". Most counts are those of github.com/vlbthambawita/ECGBench
(docs/_datasets), which recounts every release from its own headers and tables.
"""

from __future__ import annotations

from ecggen.prepare.labels.database import CHALLENGE_LEADS, STANDARD_LEADS, UPPER_LEADS, Database

_PHYSIONET = "https://physionet.org/content/"
_COUNTED = "https://github.com/vlbthambawita/ECGBench/tree/main/docs/_datasets"
_CODES = "SNOMED CT codes in the header's Dx, as the Challenge's abbreviations"
_NO_PATIENTS = "not published: each record counts as a person of its own"
_SEED = "none published; by patient, drawn with window.split_seed"
_REAL, _MADE = "real records (a part)", "made files in its layout"


def _cohort(key: str, title: str, folder: str, **other: object) -> Database:
    """One source of the PhysioNet/CinC Challenge 2021, which has no release of its own on PhysioNet."""
    facts: dict[str, object] = {
        "key": key,
        "title": title,
        "part_of": "challenge-2021",
        "layout": f"training/{folder}/gN/NAME.hea and NAME.mat (MATLAB v4, 16 bit)",
        "leads": CHALLENGE_LEADS,
        "units": "mV (1000 steps per mV)",
        "labels": {"snomed": _CODES, "dx": "the same entries as written"},
        "default_labels": "snomed",
        "patient": _NO_PATIENTS,
        "split": _SEED,
        "licence": "CC BY 4.0",
        "cohorts": (key,),
        "sources": (f"{_PHYSIONET}challenge-2021/1.0.3/", _COUNTED),
    }
    return Database(**(facts | other))  # type: ignore[arg-type]


PTB_XL = Database(
    key="ptb-xl",
    title="PTB-XL",
    slug="ptb-xl",
    version="1.0.3",
    aliases=("ptbxl", "ptb_xl"),
    layout="records100/NNNNN/NNNNN_lr and records500/NNNNN/NNNNN_hr; ptbxl_database.csv, scp_statements.csv",
    files=("ptbxl_database.csv", "scp_statements.csv"),
    leads=UPPER_LEADS,
    fs=(100.0, 500.0),
    length="10 s",
    units="mV",
    records="21,799 at two rates, of 18,869 patients",
    labels={
        "superclass": "NORM, MI, STTC, CD, HYP: any diagnostic SCP-ECG statement of it, at any likelihood",
        "subclass": "diagnostic_subclass of the diagnostic statements",
        "form": "the statements marked as form",
        "rhythm": "the statements marked as rhythm",
        "snomed": "statements and heart axis through ecggen/prepare/labels/scp_to_snomed.csv",
    },
    default_labels="superclass",
    patient="column patient_id",
    split="column strat_fold: 1 to 8 train, 9 validation, 10 test (9 and 10 were read by a person)",
    licence="CC BY 4.0",
    defects=(
        "a few records break Einthoven's or Goldberger's equations, by over 2 mV in some: flagged algebra",
        "age 300 stands for older than 89",
        "1.0.1 had 38 more records, duplicates; the Challenge's copy (HR00001 ...) is that one",
    ),
    cohorts=("ptb-xl",),
    sources=(f"{_PHYSIONET}ptb-xl/1.0.3/", "https://doi.org/10.1038/s41597-020-0495-6", _COUNTED),
    tested=_REAL,
)

PTBDB = Database(
    key="ptbdb",
    title="PTB Diagnostic ECG Database",
    slug="ptbdb",
    version="1.0.0",
    aliases=("ptb-diagnostic",),
    layout="patientNNN/sNNNN_re or sNNNNlre: .hea, .dat (12 leads), .xyz (Frank leads)",
    leads=(*(name.lower() for name in STANDARD_LEADS), "vx", "vy", "vz"),
    fs=(1000.0,),
    length="32 to 120 s",
    units="mV (2000 steps per mV)",
    records="549 of 290 people",
    labels={"dx": "the header's Reason for admission"},
    default_labels="dx",
    patient="the folder (patientNNN)",
    split=_SEED,
    licence="ODC-By 1.0",
    defects=(
        "27 records have no diagnosis",
        "dates in the headers are day/month/year",
        "the only database here with measured Frank leads",
    ),
    cohorts=("ptbdb",),
    sources=(f"{_PHYSIONET}ptbdb/1.0.0/", _COUNTED),
    tested=_REAL,
)

LUDB = Database(
    key="ludb",
    title="Lobachevsky University Electrocardiography Database",
    slug="ludb",
    version="1.0.1",
    layout="data/N: .hea, .dat and one annotation file per lead (.i ... .v6); ludb.csv",
    files=("ludb.csv",),
    leads=tuple(name.lower() for name in STANDARD_LEADS),
    fs=(500.0,),
    length="10 s",
    units="mV, a gain of its own for each lead of each record",
    records="200 of 200 people",
    labels={"dx": "all findings of ludb.csv: rhythm, axis, conduction, hypertrophy, ischemia ..."},
    default_labels="dx",
    patient="each record is a person",
    split=_SEED,
    licence="ODC-By 1.0",
    defects=(
        "scaled per lead as published: Einthoven's equations fail by up to 0.7 mV, so every record is "
        "flagged algebra; take the word out of window.exclude to use it for timing",
        "cells of ludb.csv end in a line break and hold several findings",
    ),
    flags=("algebra",),
    cohorts=("ludb",),
    sources=(f"{_PHYSIONET}ludb/1.0.1/", "https://doi.org/10.1109/ACCESS.2020.3029211", _COUNTED),
    tested=_REAL,
)

MITDB = Database(
    key="mitdb",
    title="MIT-BIH Arrhythmia Database",
    slug="mitdb",
    version="1.0.0",
    aliases=("mit-bih",),
    layout="NNN: .hea, .dat (format 212), .atr (beats)",
    leads=("MLII", "V1"),
    fs=(360.0,),
    length="30 min",
    units="mV (200 steps per mV, 11 bit)",
    records="48 of 47 people",
    labels={"beats": "classes N, S, V, F, Q of ANSI/AAMI EC57 present in a window, from the .atr files"},
    default_labels="beats",
    patient="the tape in the header's first comment: 201 and 202 are one person",
    split=_SEED,
    licence="ODC-By 1.0",
    defects=(
        "two leads; MLII is a modified lead II from the chest and does not count as lead II, so most records "
        "give one precordial lead; 102 and 104 have V5 and V2, 114 has V5 first",
        "up to 40 ms between the two channels",
        "103, 116 and 223 reach the converter's limits",
        "x_mitdb/ repeats 23 of the records: RECORDS does not list them",
    ),
    cohorts=("mitdb",),
    sources=(f"{_PHYSIONET}mitdb/1.0.0/", _COUNTED),
    tested=_REAL,
)

INCARTDB = Database(
    key="incartdb",
    title="St Petersburg INCART 12-lead Arrhythmia Database",
    slug="incartdb",
    version="1.0.0",
    aliases=("incart", "st-petersburg"),
    layout="INN: .hea, .dat, .atr (beats); files-patients-diagnoses.txt",
    files=("files-patients-diagnoses.txt",),
    leads=UPPER_LEADS,
    fs=(257.0,),
    length="30 min",
    units="mV (no unit in the header, so mV; 240 to 1063 steps per mV, by record)",
    records="75 of 32 people",
    labels={
        "beats": "classes N, S, V, F, Q of ANSI/AAMI EC57 present in a window, from the .atr files",
        "dx": "the header's diagnoses and remarks",
    },
    default_labels="beats",
    patient="'patient N' in the header's comments",
    split=_SEED,
    licence="ODC-By 1.0",
    defects=(
        "I02, I03, I57 and I58 have a lead pinned at the converter's limit",
        "34 records have no diagnosis",
        "nearly all right bundle branch block beats come from one person (I16, I17)",
    ),
    cohorts=("incartdb",),
    sources=(f"{_PHYSIONET}incartdb/1.0.0/", _COUNTED),
    tested=_MADE,
)

ECG_ARRHYTHMIA = Database(
    key="ecg-arrhythmia",
    title="Chapman-Shaoxing-Ningbo",
    slug="ecg-arrhythmia",
    version="1.0.0",
    aliases=("chapman-shaoxing-ningbo", "chapman-ningbo"),
    layout="WFDBRecords/NN/NNN/JSNNNNN: .hea, .mat; ConditionNames_SNOMED-CT.csv",
    files=("ConditionNames_SNOMED-CT.csv",),
    leads=CHALLENGE_LEADS,
    fs=(500.0,),
    length="10 s",
    units="mV (1000 steps per mV)",
    records="45,152 of 45,152 people",
    labels={"snomed": _CODES, "dx": "the same entries as written"},
    default_labels="snomed",
    patient="each record is a person",
    split=_SEED,
    licence="CC BY 4.0",
    defects=(
        "about 5 % of the records have a lead of zeros, mostly from Ningbo: flagged flat",
        "the same recordings as chapman-shaoxing and ningbo of challenge-2021",
    ),
    cohorts=("chapman-shaoxing", "ningbo"),
    sources=(f"{_PHYSIONET}ecg-arrhythmia/1.0.0/", _COUNTED),
    tested=_MADE,
)

BRUGADA = Database(
    key="brugada-huca",
    title="Brugada-HUCA",
    slug="brugada-huca",
    version="1.0.0",
    aliases=("brugada",),
    layout="files/N/N: .hea, .dat; metadata.csv",
    files=("metadata.csv",),
    columns=("patient_id", "basal_pattern", "sudden_death", "brugada"),
    leads=STANDARD_LEADS,
    fs=(100.0,),
    length="12 s",
    units="mV (1000 steps per mV)",
    records="363 of 363 people",
    labels={"dx": "metadata.csv: brugada (0, 1, 2), basal_pattern, sudden_death, in words"},
    default_labels="dx",
    patient="column patient_id",
    split=_SEED,
    licence="CC BY-SA 4.0 (not verified)",
    defects=("RECORDS names one record twice", "everybody was examined for Brugada syndrome: no controls"),
    cohorts=("brugada-huca",),
    sources=(f"{_PHYSIONET}brugada-huca/1.0.0/", _COUNTED),
    tested=_MADE,
)

MIMIC = Database(
    key="mimic-iv-ecg",
    title="MIMIC-IV-ECG",
    slug="mimic-iv-ecg",
    version="1.0",
    aliases=("mimic",),
    layout="files/pNNNN/pNNNNNNNN/sNNNNNNNN/NNNNNNNN: .hea, .dat; record_list.csv, machine_measurements.csv",
    files=("record_list.csv",),
    columns=("subject_id", "study_id", "path"),
    leads=("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"),
    fs=(500.0,),
    length="10 s",
    units="mV (200 steps per mV)",
    records="800,035 of 161,352 people, in 1.6 million files",
    labels={"dx": "the lines of the machine's report (report_0 ... report_17), each one label, as written"},
    default_labels="dx",
    patient="the folder pNNNNNNNN, which is subject_id",
    split=_SEED,
    licence="ODbL 1.0",
    defects=(
        "aVF is stored before aVL",
        "10,554 records have missing samples, 1,950 a lead of zeros",
        "reports are the machine's, not a person's; some lines are no findings (Abnormal ECG, data quality)",
        "dates are shifted; age and sex are in MIMIC-IV, not here",
    ),
    cohorts=("mimic-iv-ecg",),
    sources=(f"{_PHYSIONET}mimic-iv-ecg/1.0/", "https://mimic.mit.edu/docs/IV/modules/ecg/", _COUNTED),
    tested=_MADE,
)

_CHALLENGE_DEFECTS = (
    "recordings of ptb-xl (1.0.1), ptbdb (516), incartdb (74) and CPSC 2018 under other names: not to be "
    "combined with these",
    "ptb and st-petersburg do not say who is who: all of such a cohort count as one person, in one split",
    "INCART's amplitudes do not fit this copy's 16 bits: missing samples there",
)

CHALLENGE_2020 = Database(
    key="challenge-2020",
    title="PhysioNet/CinC Challenge 2020",
    slug="challenge-2020",
    version="1.0.2",
    aliases=("cinc2020",),
    layout="training/SOURCE/gN/NAME: .hea, .mat (MATLAB v4, 16 bit)",
    leads=CHALLENGE_LEADS,
    fs=(257.0, 500.0, 1000.0),
    length="5 s to 30 min",
    units="mV (1000 steps per mV)",
    records="43,101; patients not published",
    labels={"snomed": _CODES, "dx": "the same entries as written"},
    default_labels="snomed",
    patient=_NO_PATIENTS,
    split=_SEED,
    licence="CC BY 4.0",
    defects=(*_CHALLENGE_DEFECTS, "631 headers repeat a code: counted once"),
    cohorts=("cpsc2018", "cpsc2018-extra", "incartdb", "ptbdb", "ptb-xl", "georgia"),
    sources=(f"{_PHYSIONET}challenge-2020/1.0.2/", "https://doi.org/10.1088/1361-6579/abc960", _COUNTED),
    tested=_REAL,
)

CHALLENGE_2021 = Database(
    key="challenge-2021",
    title="PhysioNet/CinC Challenge 2021",
    slug="challenge-2021",
    version="1.0.3",
    aliases=("cinc2021", "challenge"),
    layout="training/SOURCE/gN/NAME: .hea, .mat (MATLAB v4, 16 bit)",
    leads=CHALLENGE_LEADS,
    fs=(257.0, 500.0, 1000.0),
    length="5 s to 30 min",
    units="mV (1000 steps per mV)",
    records="88,253; patients not published",
    labels={"snomed": _CODES, "dx": "the same entries as written"},
    default_labels="snomed",
    patient=_NO_PATIENTS,
    split=_SEED,
    licence="CC BY 4.0",
    defects=(
        *_CHALLENGE_DEFECTS,
        "ningbo: 1,480 records with leads of zeros, flagged flat; JS23074 is called S23074",
    ),
    cohorts=(
        *("cpsc2018", "cpsc2018-extra", "incartdb", "ptbdb", "ptb-xl", "georgia"),
        *("chapman-shaoxing", "ningbo"),
    ),
    sources=(
        f"{_PHYSIONET}challenge-2021/1.0.3/",
        "https://doi.org/10.23919/CinC53138.2021.9662687",
        _COUNTED,
    ),
    tested=_REAL,
)

_COHORTS = (
    _cohort(
        "cpsc2018",
        "China Physiological Signal Challenge 2018",
        "cpsc_2018",
        aliases=("cpsc", "cpsc-2018", "cpsc_2018"),
        fs=(500.0,),
        length="6 to 144 s",
        records="6,877; patients not published",
        defects=(
            "some copies have names (RBBB, Normal, AF ...) instead of codes: mapped to the Challenge's codes",
            "PVC is 164884008 here (VEB), not 427172004, and the Challenge does not treat the two as one",
            "about 100 records leave the range of +-10 mV, half of them clipped at 32.767 mV",
        ),
        sources=("http://2018.icbeb.org/Challenge.html", f"{_PHYSIONET}challenge-2021/1.0.3/", _COUNTED),
        tested=_REAL,
    ),
    _cohort(
        "cpsc2018-extra",
        "CPSC 2018, records that it left out",
        "cpsc_2018_extra",
        aliases=("cpsc-extra", "cpsc_2018_extra", "cpsc2018_extra"),
        fs=(500.0,),
        length="8 to 98 s",
        records="3,453; patients not published",
        defects=("whether people are in cpsc2018 as well is not known",),
        tested=_REAL,
    ),
    _cohort(
        "georgia",
        "Georgia 12-lead ECG Challenge Database",
        "georgia",
        aliases=("g12ec",),
        fs=(500.0,),
        length="5 to 10 s",
        records="10,344; patients not published",
        tested=_REAL,
    ),
    _cohort(
        "chapman-shaoxing",
        "Chapman-Shaoxing, the Challenge's part of ecg-arrhythmia",
        "chapman_shaoxing",
        aliases=("chapman", "chapman_shaoxing"),
        fs=(500.0,),
        length="10 s",
        records="10,247 of as many people (JS00001 to JS10646)",
        patient="each record is a person",
        tested=_MADE,
    ),
    _cohort(
        "ningbo",
        "Ningbo, the Challenge's part of ecg-arrhythmia",
        "ningbo",
        fs=(500.0,),
        length="10 s",
        records="34,905 of as many people (from JS10647)",
        patient="each record is a person",
        defects=("1,480 records have leads of zeros: flagged flat",),
        tested=_REAL,
    ),
)

DATABASES: tuple[Database, ...] = (
    *(PTB_XL, PTBDB, LUDB, MITDB, INCARTDB, CHALLENGE_2020, CHALLENGE_2021, *_COHORTS),
    *(ECG_ARRHYTHMIA, BRUGADA, MIMIC),
)
