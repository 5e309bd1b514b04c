"""The code table and what is mapped to it, against the Challenge's published counts and real records."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from ecggen.prepare.labels import snomed
from ecggen.prepare.labels.tables import read_ptbxl


def test_the_table_is_the_challenges() -> None:
    codes = snomed.concepts()
    assert len(codes) == 133 == len({row["abbreviation"] for row in codes.values()})
    scored = [sum(row[f"scored_{year}"] == "1" for row in codes.values()) for year in (2020, 2021)]
    assert scored == [27, 30]
    assert all(snomed.code(f"{code}.0") == code for code in codes)
    pairs = {code: row["same_as"] for code, row in codes.items() if row["same_as"]}
    assert pairs == {
        "59118001": "713427006",
        "63593006": "284470004",
        "17338001": "427172004",
        "164909002": "733534002",
    }


def test_identifiers_carry_their_check_digit() -> None:
    """SNOMED CT ids end in a Verhoeff check digit: a mistyped code fails."""

    def product(i: int, j: int) -> int:  # in the dihedral group of the pentagon
        if i < 5:
            return (i + j) % 5 if j < 5 else (i + j - 5) % 5 + 5
        return (i - 5 - j) % 5 + 5 if j < 5 else (i - j) % 5

    p = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        p.append([p[-1][k] for k in p[1]])

    def valid(code: str) -> bool:
        check = 0
        for place, digit in enumerate(reversed(code)):
            check = product(check, p[place % 8][int(digit)])
        return check == 0

    assert valid("22298006") and not valid("22298007")  # myocardial infarction, and not
    assert [code for code in (*snomed.concepts(), *snomed.scp_codes().values()) if not valid(code)] == []


def test_names() -> None:
    assert snomed.class_name("59118001") == snomed.class_name("713427006") == "CRBBB"
    assert snomed.class_name("164884008") == "VEB" and snomed.class_name("999999999") == "999999999"
    assert snomed.classes(["Normal", "i-avb", "59118001", "RBBB"]) == (["CRBBB", "IAVB", "NSR"], [])
    assert snomed.classes(["999999999", "odd"]) == (["999999999", "odd"], ["999999999", "odd"])
    assert set(snomed.CPSC_NAMES.values()) <= set(snomed.concepts())


def test_ptbxl_reaches_the_codes_that_the_challenge_counts_in_it() -> None:
    counted = {code for code, concept in snomed.concepts().items() if int(concept["ptb_xl"])}
    assert counted - set(snomed.scp_codes().values()) == {"251200008"}
    assert set(snomed.scp_codes().values()) <= counted


def test_every_real_statement_is_mapped_and_none_too_often(shared_data) -> None:
    """A part of PTB-XL cannot have a code more often than the Challenge counts in the whole."""
    with (shared_data / "ptb-xl" / "scp_statements.csv").open() as stream:
        statements = [row[""] for row in csv.DictReader(stream)]
    assert len(statements) == 71 and set(statements) <= set(snomed.scp_codes())
    infos = read_ptbxl(shared_data / "ptb-xl" / "ptbxl_database.csv")
    records = [info for name, info in infos.items() if name.endswith("_lr")]
    counts = Counter(label for info in records for label in info.statements.get("snomed", ()))
    limit: Counter[str] = Counter()
    for concept in snomed.concepts().values():
        limit[snomed.class_name(concept["code"])] += int(concept["ptb_xl"])
    assert all(counts[label] <= limit[label] for label in counts)
    # ... and about as often: nine of ten folds are there.
    for label, count in limit.items():
        assert count < 300 or 0.8 < counts[label] / count / (len(records) / 21_837) < 1.2, label


@pytest.mark.parametrize("text", ["12345", "59118001x", "", "RBBB"])
def test_what_is_no_code(text: str) -> None:
    assert snomed.code(text) == ""
