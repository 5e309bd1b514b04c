"""The report: self-contained, reproducible, escaped, and its numbers are those of the tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ecggen.data.quality.flags import FLAGS
from ecggen.leads import DOWER, EXPAND, LEADS, lead_indices
from ecggen.report import ecgs
from ecggen.report.ecgs import FLAG_WORDS, dicom_sample, flagged_pictures, read_dicom_sample
from ecggen.report.page import build_report, render_page
from ecggen.report.sections import ReportError, Results
from ecggen.report.tables import number_text
from ecggen.utils.config import Config
from ecggen.utils.files import write_csv, write_facts, write_json
from tests.eval import small_folder

NASTY = "<script>alert('x')</script> & \"q\""


class DowerRenderer(small_folder.DowerRenderer):
    """Stands for a trained model: the least-squares dipole of the given leads through Dower's field."""

    preprocessing = {"low_hz": 0.67, "high_hz": 40.0, "order": 3}  # noqa: RUF012
    leads: tuple[str, ...] = ()

    def render(self, signal_mv, fs, leads):
        self.leads = tuple(leads)
        vcg = np.linalg.pinv((EXPAND @ DOWER)[lead_indices(leads)]) @ signal_mv
        ecg = EXPAND @ DOWER @ vcg
        return SimpleNamespace(ecg_mv=ecg, rendered_mv=ecg, vcg_mv=vcg, std_mv=np.full_like(ecg, 0.1))

    def shared_state(self, ecg, observed):
        return self.states(ecg, np.asarray(observed)[None])[0]


#: What the paired interval of a difference shows.
DIFFERENCES = {
    "above": (0.05, 0.041, 0.06),
    "below": (-0.05, -0.06, -0.04),
    "no difference shown": (0.0, -0.01, 0.02),
}
DIFFERENCES["too few patients"] = DIFFERENCES["above"]
MARGIN = ("best_baseline", "margin", "margin_low", "margin_high", "verdict")


def write_results(folder: Path, patients: int = 77, word: str = "above") -> None:
    rows = [
        {"split": "test", "method": method, "lead_set": lead_set, "r": r, "r_low": r - 0.01}
        | {"r_high": r + 0.01, "rmse_mv": 0.1234, "rank": 3, "condition": condition, "n_patients": patients}
        | (dict(zip(MARGIN, ("linear_regression", *DIFFERENCES[word], word), strict=True)) if not at else {})
        for lead_set, condition in (("I", float("inf")), ("I+II+V2", 2.2), ("-V3", 1.5))
        for at, (method, r) in enumerate((("model", 0.9512), ("linear_regression", 0.9011), (NASTY, 0.3)))
    ]
    write_csv(folder / "missing_lead" / "lead_sets.csv", rows, list(rows[0]))
    ttt = [{"lead_set": "I", "step": k, "kind": "ttt", "r": 0.8 + k / 100, "rmse_mv": 0.2} for k in range(3)]
    write_csv(folder / "missing_lead" / "ttt.csv", ttt, list(ttt[0]))
    write_csv(folder / "train" / "history.csv", [{"epoch": 1, "train_loss": 0.5}], ["epoch", "train_loss"])
    write_facts(folder / "train" / "facts.csv", {"epochs": 3, "place": "/home/somebody/x"})


def write_windows(folder: Path, source: str = "synthetic") -> None:
    source_words = {"kind": source, "name": f"/home/somebody/{source}"}
    counts = {"windows": 12, "windows_by_split": {"train": 10, "test": 2}}
    meta = {"fs": 100.0, "time_len": 512, "counts": counts, "source": source_words, "fingerprint": "abc123"}
    write_json(folder / "meta.json", meta)
    rejected = [{"record": f"r{k}", "window": "", "reason": NASTY} for k in range(3)]
    write_csv(folder / "rejected.csv", rejected, ["record", "window", "reason"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(page, returned counts, folder, renderer)."""
    folder = tmp_path_factory.mktemp("report")
    write_results(folder / "results")
    write_windows(folder / "data" / "windows")
    renderer = DowerRenderer()
    out = folder / "results" / "report"
    counts = build_report(folder / "results", folder / "data" / "windows", out, Config(), renderer)
    return (out / "report.html").read_text(encoding="utf-8"), counts, folder, renderer


class Checker(HTMLParser):
    """Open tags, addresses and tag names of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_escaped_and_needs_nothing_else(built) -> None:
    page, _, folder, _ = built
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.names & {"link", "iframe", "object", "img"}
    assert all(a.startswith("#") for a in checker.addresses)
    text = page
    assert "http" not in text and NASTY not in text and "@import" not in text and "&lt;script&gt;" in text
    assert str(folder) not in text and "/home/" not in text, "no place on somebody's disk"
    assert not re.search(r"\b20[2-9]\d-\d\d-\d\d\b|\d\d:\d\d:\d\d", text), "no clock"
    anchors = {a[1:] for a in checker.addresses if a.startswith("#")}
    assert anchors == set(re.findall(r'<section id="(\w+)"', page)) - {"headline"}


def test_numbers_stand_with_intervals_and_the_best_is_marked(built) -> None:
    page, *_ = built
    assert "<b>0.951</b> [0.941, 0.961]" in page  # in the headline
    assert '<td class="model best">0.951 ★<br><small>[0.941, 0.961]</small></td>' in page
    assert "<td>0.901<br><small>[0.891, 0.911]</small></td>" in page
    assert "∞" in page and "all but V3" in page and "77 test patients" in page
    assert "above its best baseline, linear regression (difference 0.050 [0.041, 0.060])." in page


@pytest.mark.parametrize(
    ("patients", "word", "shown"),
    [
        (77, "below", ", below its best baseline, linear regression (difference"),
        (77, "no difference shown", "; no difference from its best baseline, linear regression, is shown"),
        (9, "too few patients", "holds 9 patients with I+II+V2: too few to say"),
    ],
)
def test_the_headline_says_what_the_interval_shows(tmp_path: Path, patients, word, shown) -> None:
    write_results(tmp_path / "results", patients, word)
    write_csv(
        tmp_path / "results/linear_probe/probe.csv",
        [{"split": "test", "method": "model", "class": "macro", "auroc": 0.4, "n_patients": patients}
         | dict(zip(MARGIN, ("pca", 0, -0.1, 0.1, word), strict=True))],
        ("split", "method", "class", "auroc", "n_patients", *MARGIN),
    )  # fmt: skip
    page = render_page(Results.read(tmp_path / "results", tmp_path / "windows"), Config())
    headline = re.sub(
        r"\s+", " ", page[page.index('<p class="lead">') : page.index('<section id="missing">')]
    )
    assert shown in headline
    few = word == "too few patients"
    assert ("<b>0.951</b>" in headline) == ("<b>0.400</b>" in headline) == (not few)
    assert headline.count("9 test patients: too few to state a number") == 2 * few


def test_page_says_what_it_holds_and_lacks(built) -> None:
    texts = ("the embedded synthetic data set", "abc123", "Research use only", "One record proves nothing")
    texts += ("nothing was probed", "Personal rendering: not measured.", "hold no Frank leads")
    assert [text for text in texts if text not in built[0]] == []


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))


def write_judged(folder: Path) -> None:
    """Records with flags, two of which keep a window out, as the stages leave them."""
    records = [f"db/r{k},p{k},{1500 * k},1500,{'one' if k < 2 else 'two'}" for k in range(4)]
    write_lines(folder / "records/records.csv", "record,patient,offset,n_samples,database", *records)
    spans = ("db/r0,noise,V3,3,4", "db/r1,noise,V2,9,11", "db/r1,algebra,,2,3", "db/r2,swap,RA-LA,0,15")
    write_lines(folder / "records/spans.csv", "record,flag,lead,start_s,stop_s", *spans)
    signals = np.random.default_rng(0).normal(size=(6000, 12)).astype(np.float32)
    np.save(folder / "records/signals.npy", signals)
    index = ("db/r0,p0,train,noise:V3", "db/r0,p0,train,", "db/r2,p2,test,swap:RA-LA", "db/r1,p1,test,")
    write_lines(folder / "windows/index.csv", "record,patient,split,reasons", *index)
    gone = ("db/r1,1,algebra;noise:V2", "db/r3,0,algebra", "db/r9,,Record r9 is <broken>.")
    write_lines(folder / "windows/rejected.csv", "record,window,reason", *gone)
    counts = {"records_listed": 5, "records_unreadable": 1, "windows": 4, "windows_rejected": 2}
    write_json(folder / "windows/meta.json", {"fs": 100.0, "counts": counts})


def cells(page: str, caption: str) -> list[list[str]]:
    """The rows of the table with this caption."""
    body = page[page.index(f"<caption>{caption}</caption>") :]
    body = body[body.index("<thead>") : body.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def quality_page(folder: Path) -> str:
    write_facts(folder / "results/train/facts.csv", {"epochs": 1})
    read = Results.read(folder / "results", folder / "data/windows")
    return render_page(read, Config(), flagged=flagged_pictures(read, folder / "data/records"))


def test_what_was_dropped_is_counted_listed_and_shown(tmp_path: Path) -> None:
    write_judged(tmp_path / "data")
    page = quality_page(tmp_path)
    page = page[page.index('<section id="rejected">') :]
    assert "Of 5 records listed, 1 cannot be used; of 6 windows, 2 are left out." in page
    assert "window.exclude (saturated, algebra, amplitude)" in page
    assert cells(page, "Dropped, by split") == [
        ["Reason", "All", "test", "in no split", "Most often"],
        ["algebra", "2", "1", "1", ""],
        ["Record r9 is &lt;broken&gt;.", "1", "0", "1", ""],
        ["noise", "1", "1", "0", "V2 1"],
    ]
    assert cells(page, "Kept with a flag, by split") == [
        ["Reason", "All", "train", "test", "Most often"],
        ["noise", "1", "1", "0", "V3 1"],
        ["swap", "1", "0", "1", "RA-LA 1"],
    ]
    assert cells(page, "Kept with a flag, by database") == [
        ["Reason", "All", "one", "two", "Most often"],
        ["noise", "1", "1", "0", "V3 1"],
        ["swap", "1", "0", "1", "RA-LA 1"],
    ]
    assert cells(page, "Dropped, by database")[1] == ["algebra", "2", "1", "1", ""]
    # A dropped recording is shown rather than one that was kept.
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [c.split(":")[0] for c in captions] == ["algebra", "noise", "swap"]
    assert "Record db/r1, dropped" in captions[0] and "Record db/r1, dropped" in captions[1]
    assert captions[1].startswith("noise:V2") and "Record db/r2, kept with the flag" in captions[2]
    assert page.count("<figure><svg") == 3
    # Signals of another run are not shown.
    np.save(tmp_path / "data/records/signals.npy", np.zeros((1500, 12), dtype=np.float32))
    read = Results.read(tmp_path / "results", tmp_path / "data/windows")
    assert flagged_pictures(read, tmp_path / "data/records") == []


def test_every_flag_that_holds_for_a_time_has_words() -> None:
    assert FLAG_WORDS.keys() == FLAGS.keys() - {"missing"}


def test_what_was_not_understood_is_listed(tmp_path: Path) -> None:
    """Names of channels, files of labels, and records that nothing gives to a patient."""
    records = tmp_path / "data/records"
    write_lines(records / "unknown_leads.csv", "name,records,example", "<X9>,3,r1")
    write_lines(records / "rejected_labels.csv", "record,file,reason", "r2,r2.atr,no end mark")
    alone = {"db": {"records": 6, "patients_from": {"record": 5, "header": 1}}, "b": {"records": 1}}
    write_json(records / "meta.json", {"by_database": alone})
    page = quality_page(tmp_path)
    assert "&lt;X9&gt;" in page and "whose 5 of 6 records are" in page
    assert "Rejected labels: 1." in page and "r2.atr" in page and "no end mark" in page
    write_json(tmp_path / "data/windows/meta.json", {"counts": {"by_database": alone, "windows": 2}})
    assert "whose 5 of 6 records are" in quality_page(tmp_path)


def test_dicom_sample_is_read_in_its_own_units() -> None:
    import pydicom

    path = dicom_sample()
    assert path is not None
    signal, fs = read_dicom_sample(path)
    assert signal.shape == (12, 10_000) and fs == 1000.0
    # An independent path: digital values times the stated sensitivity (1.25 uV).
    group = pydicom.dcmread(path).WaveformSequence[0]
    digital = np.frombuffer(group.WaveformData, dtype="<i2").reshape(-1, 12).T
    np.testing.assert_allclose(signal, digital * 1.25e-3, atol=1e-12)
    # Einthoven and Goldberger hold up to the device's rounding: names and units are right.
    assert np.abs(signal[2] - (signal[1] - signal[0])).max() < 0.01
    assert np.abs(signal[3] + (signal[0] + signal[1]) / 2).max() < 0.01


def test_real_ecg_is_rendered_from_the_configured_leads(built) -> None:
    page, counts, folder, renderer = built
    sample = counts["real_ecg"]
    assert renderer.leads == ("I", "II", "V2") and sample["lead_set"] == "I+II+V2"
    assert set(sample["r"]) == set(LEADS) - {"I", "II", "V2"}
    hidden = [sample["r"][lead] for lead in ("V1", "V3", "V4", "V5", "V6")]
    assert sample["r_mean"] == pytest.approx(np.mean(hidden), abs=1e-4)
    assert 0.7 < sample["r_mean"] < 0.999  # Dower's field on a real heart; not the recording itself
    assert f"V6 {sample['r']['V6']:.3f}" in page
    assert (folder / "results" / "report" / "figures" / "sample.png").is_file()


def test_missing_sample_becomes_a_sentence(built, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ecgs, "dicom_sample", lambda: None)
    counts = build_report(built[2] / "results", tmp_path / "none", tmp_path, Config(), DowerRenderer())
    assert counts["real_ecg"] is None
    assert "not installed: no real ECG was rendered" in (tmp_path / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def typical(tmp_path_factory) -> tuple[str, Path]:
    """(page, folder of its figures) of a run that has windows of the test split, with Frank leads."""
    folder = tmp_path_factory.mktemp("typical")
    write_results(folder / "results")
    windows, out = folder / "data/windows", folder / "results/report"
    write_windows(windows)
    (windows / "windows.npy").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ecggen.data.pipeline.read_window_folder", small_folder.make_folder)
        build_report(folder / "results", windows, out, Config(), DowerRenderer())
    return (out / "report.html").read_text("utf-8"), out / "figures"


def test_first_screen_shows_one_ecg_with_and_without_the_person(typical) -> None:
    page, folder = typical
    first = page[page.index('<section id="headline">') : page.index('<section id="missing">')]
    labels = re.findall(
        r'role="img" aria-label="Record (\S+)\. From I\+II\+V2, person (\w+): r 0\.\d+"', first
    )
    assert [known for _, known in labels] == ["unknown", "known"] and len({name for name, _ in labels}) == 1
    assert "90 % band" in first and "hidden, as recorded" in first
    names = {"ecg.png", "ecg_personal.png", "sample.png", "missing_lead.png", "training.png", "ttt.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert page.count('role="img"') == page.count("<svg "), "every picture says what it shows"


PROBE = """<script>
const canvas = document.querySelector("canvas"), pictures = [canvas.toDataURL()];
const after = (target, event) => { target.dispatchEvent(event); pictures.push(canvas.toDataURL()); };
canvas.dispatchEvent(new PointerEvent("pointerdown", {clientX: 10, clientY: 10, bubbles: true}));
after(window, new PointerEvent("pointermove", {clientX: 60, clientY: 20}));
window.dispatchEvent(new PointerEvent("pointerup"));
after(window, new PointerEvent("pointermove", {clientX: 90, clientY: 20}));
after(canvas, new KeyboardEvent("keydown", {key: "ArrowLeft"}));
after(canvas, new KeyboardEvent("keydown", {key: "Home"}));
dispatchEvent(new Event("beforeprint"));
const folded = document.querySelectorAll("details:not([open])").length;
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const seen = {troubles, folded, wide, same: pictures.map((each) => pictures.indexOf(each))};
document.body.dataset.seen = JSON.stringify(seen);
</script>"""
WATCH = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'"><script>
const troubles = [];
addEventListener("error", (event) => troubles.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => troubles.push(event.blockedURI));
</script>"""


def test_in_a_browser_the_loop_turns_without_an_error_or_a_request(typical, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium: the page's script was not run (Debian: apt install chromium)")
    page = typical[0].replace("<head>", "<head>" + WATCH).replace("</body>", PROBE + "</body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += [
        "--enable-logging=stderr",
        "--window-size=800,600",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-2000:]
    values = json.loads(seen[1].replace("&quot;", '"'))
    assert values == {"troubles": [], "folded": 0, "wide": 0, "same": [0, 1, 1, 3, 0]}
    assert "CONSOLE" not in done.stderr, done.stderr


def test_same_results_give_the_same_page_wherever_they_lie(tmp_path: Path) -> None:
    pages = []
    for root in (tmp_path / "one", tmp_path / "another"):
        write_results(root / "results")
        write_windows(root / "windows", "wfdb")
        build_report(root / "results", root / "windows", root / "out", Config())
        pages.append((root / "out" / "report.html").read_bytes())
        assert {path.name for path in (root / "out").iterdir()} == {"report.html", "figures"}
    assert pages[0] == pages[1]


def test_no_results_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="dvc repro"):
        build_report(tmp_path, tmp_path, tmp_path / "out", Config())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.12345, 3, "0.123"), (-0.5, 1, "−0.5"), (np.nan, 3, "–"), (12345, 0, "12\u202f345"), (np.inf, 1, "∞")],  # noqa: RUF001
)
def test_numbers_are_written_alike(value, digits, text) -> None:
    assert number_text(value, digits) == text


def section(folder: Path, name: str, stage: str, facts: dict) -> str:
    """One section of the page with the tables of one stage."""
    write_facts(folder / stage / "facts.csv", facts)
    page = render_page(Results.read(folder, folder / "windows"), Config())
    start = page.index(f'<section id="{name}">')
    return page[start : page.index("</section>", start)]


def test_what_the_inner_steps_give_a_personal_state_is_shown_with_its_interval(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "missing_lead/personal.csv",
        "lead_set,protocol,r,method,personal_gain,gain_low,gain_high,n_undated",
        "I,records,.9,model_personal,0,0,0,4",
        "I,records,.9,model_one_pass,.0123,.0103,.0143,4",
    )
    page = section(tmp_path, "personal", "missing_lead", {})
    gains = page[page.index("How much higher r of “ecggen personal” is") :]
    row = gains[gains.index("<td") : gains.index("</tr>", gains.index("<td"))]
    assert all(text in row for text in ("ecggen one pass", "0.012", "0.010", "0.014")), row
    assert "Of 4 windows or fewer, no date is known" in page


def test_each_other_database_has_its_own_table(tmp_path: Path) -> None:
    folder = tmp_path / "transfer"
    write_lines(
        folder / "missing_lead.csv",
        "train,database,method,lead_set,r,home_r,difference,difference_low,difference_high,within",
        "home,home,model,-V3,.95,.95,,,,",
        "home,one,model,-V3,.93,.95,-.02,-.06,.0204,not shown",
        "home,<script>,model,-V3,.9,.95,-.05,-.06,.02,no",
    )
    write_lines(
        folder / "databases.csv",
        "train,database,records_listed,records_unreadable,windows_rejected_by_reason,not_compared",
        "home,one,10,2,algebra 3; flat 1,people",
    )
    write_lines(folder / "worst_records.csv", "database,record,labels,r", "one,00162,AF;PVC,.512")
    facts = {"train": "home", "margin": 0.03, "not_probed": {"one": "its records carry no labels"}}
    page = section(tmp_path, "transfer", "transfer", facts)
    assert page.count("<h3>home to ") == 2 and "<script>" not in page
    one = page[page.index("<h3>home to one</h3>") : page.index("<h3>home to &lt;")]
    texts = ("all but V3", "0.930", "−0.020", "[−0.060, 0.020]", "not shown", "00162", "AF;PVC", "0.512")  # noqa: RUF001
    assert all(text in one for text in texts), one
    assert "Linear probe: its records carry no labels." in one
    assert "at most 0.03 lower" in page and "algebra 3; flat 1" in page and "people" in page


def test_without_other_databases_the_section_is_one_sentence(tmp_path: Path) -> None:
    page = section(tmp_path, "transfer", "transfer", {"train": "home", "skipped": "x"})
    assert "<p>The model was tested on no other database: none is named in transfer.sources.</p>" in page
    assert page.count("<p") == 1
