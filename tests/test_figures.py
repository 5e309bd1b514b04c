"""Figures: arrays and rows in, the same bytes out, and the drawn numbers are the given ones."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from ecggen.leads import DOWER, EXPAND, LEADS, observed_mask
from ecggen.report import figures

FS = 100.0
GIVEN = observed_mask(["I", "II", "V2"])


@pytest.fixture
def example() -> dict[str, np.ndarray]:
    """A turning dipole and its twelve leads [12, 300] in mV."""
    angle = np.linspace(0, 6 * np.pi, 300)
    vcg = np.stack([np.cos(angle), 0.5 * np.sin(angle), 0.3 * np.sin(2 * angle)])
    return {"vcg": vcg, "recorded": EXPAND @ DOWER @ vcg}


def lead_sets(r: float = 0.9) -> list[dict[str, object]]:
    return [
        {"split": split, "method": method, "lead_set": lead_set, "r": r - less - worse}
        | {"r_low": r - less - worse - 0.02, "r_high": r - less - worse + 0.01}
        for split, worse in (("validation", 0.3), ("test", 0))
        for lead_set in ("I", "I+II+V2", "-V3")
        for method, less in (("linear_regression", 0.1), ("model", 0))
    ]


def test_overlay_states_the_r_of_hidden_leads_and_marks_the_given_ones(example) -> None:
    rendered = example["recorded"].copy()
    rendered[LEADS.index("V6")] *= -1
    figure = figures.ecg_sheet(example["recorded"], rendered, GIVEN, FS, "one")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "V6  r -1.000" in words and "V5  r 1.000" in words
    assert {w.split()[0] for w in words if w.endswith("given")} == {"I", "II", "V2"}


def test_overlay_is_drawn_in_millimetres_of_paper(example) -> None:
    recorded = np.zeros((12, 300))
    recorded[0, 100] = 1.0  # 1 mV after 1 s: 10 mm up, 25 mm right of the first sample
    figure = figures.ecg_sheet(recorded, recorded, np.ones(12, dtype=bool), FS, "one")
    axes = figure.axes[0]
    first_lead = next(line for line in axes.lines if line.get_label() == "given").get_xydata()
    assert first_lead[100] - first_lead[0] == pytest.approx([25.0, 10.0])
    box = axes.get_position()
    size = box.width * figure.get_figwidth() * 25.4, box.height * figure.get_figheight() * 25.4
    assert size == pytest.approx([axes.get_xlim()[1], axes.get_ylim()[1]])  # a millimetre is one on paper


def test_band_holds_90_percent_either_side_of_the_rendering(example) -> None:
    std = np.full((12, 300), 0.1)
    figure = figures.ecg_sheet(example["recorded"], example["recorded"], GIVEN, FS, "one", std)
    assert len(figure.axes[0].collections) == 12 - 3  # hidden leads alone
    corners = figure.axes[0].collections[0].get_paths()[0].vertices
    at = corners[np.abs(corners[:, 0] - np.median(corners[:, 0])) < 0.2]
    assert np.ptp(at[:, 1]) == pytest.approx(2 * 1.645 * 0.1 * 10, abs=0.3)


@pytest.mark.parametrize(
    ("view", "axis", "place"),
    [
        ("frontal", 0, (1, 0)),
        ("frontal", 1, (0, -1)),
        ("transverse", 2, (0, 1)),
        ("left sagittal", 2, (1, 0)),
    ],
)
def test_views_of_the_loop_have_the_foot_down_and_the_left_on_the_right(view, axis, place) -> None:
    vcg = np.zeros((3, 2))
    vcg[axis, 1] = 1.0
    figure = figures.loop_view(vcg, [("QRS", slice(0, 2))], view, 0.5 * vcg)
    assert figure.axes[0].lines[-1].get_xydata()[1] == pytest.approx(place)
    assert {text.get_text() for text in figure.axes[0].texts} < set(figures.AXIS_WORDS)


def test_parts_of_a_beat_follow_its_r_peak() -> None:
    parts = figures.one_beat(
        300, FS, np.array([20, 100, 180])
    )  # the middle beat; T ends at .62 of 80 samples
    assert parts == [("P", slice(74, 95)), ("QRS", slice(94, 108)), ("T", slice(107, 151))]
    assert figures.one_beat(300, FS, np.array([5])) == [("QRS", slice(0, 300))]  # no whole beat


def test_a_figure_on_the_page_takes_its_colours_and_cannot_break_it() -> None:
    rows = [row | {"lead_set": "<script>&"} for row in lead_sets()]
    text = figures.svg(figures.table_figure("missing_lead", rows), 'a "b" <c>')
    assert text.startswith("<svg viewBox=") and 'aria-label="a &quot;b&quot; &lt;c&gt;"' in text
    assert "var(--ink)" in text and "#1f2933" not in text and "http" not in text
    assert "<script" not in text and "&lt;script&gt;&amp;" in text


def test_saved_png_is_bit_reproducible_and_says_nothing_of_its_maker(example, tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure = figures.ecg_sheet(example["recorded"], example["recorded"], GIVEN, FS, "one")
        figures.save(figure, tmp_path / f"{name}.png")
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert first.startswith(b"\x89PNG") and b"Software" not in first and b"tIME" not in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_settings_of_the_user_do_not_change_the_picture(tmp_path: Path) -> None:
    figures.save(figures.table_figure("missing_lead", lead_sets()), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 40}):
        figures.save(figures.table_figure("missing_lead", lead_sets()), tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def drawn(axes) -> dict[str, list[float]]:
    """Name of a series -> where its dots lie."""
    return {line.get_label(): list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"}


def test_dots_show_the_test_split_and_lead_sets_in_words() -> None:
    named, left_out = figures.table_figure("missing_lead", lead_sets()).axes
    assert drawn(named) == {"ecggen": [0.9, 0.9], "linear regression": pytest.approx([0.8, 0.8])}
    assert [t.get_text() for t in left_out.get_yticklabels()] == ["all but V3"]


def test_transfer_shows_the_model_on_every_database() -> None:
    rows = [
        row | {"database": name, "r": r} for name, r in (("home", 0.9), ("a", 0.7)) for row in lead_sets()
    ]
    named, single = figures.table_figure("transfer", rows).axes
    assert {name: places[0] for name, places in drawn(named).items()} == {"home": 0.9, "a": 0.7}
    assert [t.get_text() for t in single.get_yticklabels()] == ["all but V3"]


def test_ttt_keeps_steps_and_closed_form_apart() -> None:
    rows = [{"lead_set": "I", "step": str(k), "kind": "ttt", "r": 0.8 + 0.01 * k} for k in (2, 0, 1)]
    rows.append({"lead_set": "I", "step": "", "kind": "closed_form", "r": 0.75})
    lines = figures.table_figure("ttt", rows).axes[0].lines
    np.testing.assert_allclose(lines[0].get_xydata(), [[0, 0.8], [1, 0.81], [2, 0.82]])
    assert lines[1].get_ydata() == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("rows", [[], [{}], [{"r": ""}], [{"epoch": "0", "train_loss": "nan"}]])
def test_empty_and_incomplete_tables_are_drawn(rows, tmp_path: Path) -> None:
    for names in figures.TABLE_FIGURES.values():
        for name in names:
            figures.save(figures.table_figure(name, rows), tmp_path / f"{name}.png")


def test_pyplot_stays_out() -> None:
    import subprocess

    code = "import sys, ecggen.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_strip_shades_what_is_marked_and_nothing_else() -> None:
    ecg = np.random.default_rng(0).normal(size=(3, 500))
    marks = [(frozenset({"II"}), 2.5, 3.0), (frozenset(), 6.0, 99.0)]
    figure = figures.flagged_strip(ecg, ("I", "II", "III"), marks, FS, "noise", start_s=2.0)
    spans = [[(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches] for axes in figure.axes]
    assert spans == [[(6.0, 7.0)], [(2.5, 3.0), (6.0, 7.0)], [(6.0, 7.0)]]
    for axes, line in zip(figure.axes, ecg, strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), line)
        assert axes.lines[0].get_xdata()[0] == 2.0
    assert [axes.get_ylabel() for axes in figure.axes] == ["I", "II", "III"]
