"""Generated Markdown."""

import pytest

from ecggen.utils.markdown import interval, section, short, table


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.1234, False, ".123"),
        (-0.5, False, "-.500"),
        (0.01, True, "+.010"),
        (10.0, False, "10.000"),
        (1, True, "+1.000"),
    ],
)
def test_numbers_lose_the_zero_in_front_and_nothing_else(value: float, signed: bool, text: str) -> None:
    assert short(value, signed) == text


def test_a_table_has_a_line_per_row() -> None:
    made = table(["a", "b"], [["1", interval((0.5, 0.25, 0.75))]])
    assert made == "| a | b |\n| --- | --- |\n| 1 | .500 [.250, .750] |\n"
    with pytest.raises(ValueError, match="1 cells below 2"):
        table(["a", "b"], [["1"]])


def test_a_section_can_be_run_again() -> None:
    assert section("T", ["x.py", "a b"]) == "## T\n\n```sh\npython x.py 'a b'\n```\n"
