"""The results of a run as one self-contained HTML page: words, tables, figures, ECGs.

Files in, one page out; no network, no clock, no absolute path, so the same results give the same page. The
words stand in page.html.j2, the loop that can be turned in loop.js.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ecggen.report import ecgs, figures, sections, tables
from ecggen.report.sections import Results
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder, write_text

FIGURE_WORDS = {
    "training": "Loss and validation r of hidden leads by epoch.",
    "missing_lead": "Mean r of hidden independent leads by leads given, with 95 % intervals over patients.",
    "personal": "Mean r of hidden leads when a recording of the same person is known.",
    "ttt": "Hidden leads against inner steps; dashed: the closed form; diamond: the start W0; star: one W "
    "for the record.",
    "probe": "AUROC per class with 95 % intervals over patients.",
    "transfer": "Mean r of hidden leads by leads given: the own test split and other databases.",
}


def build_report(
    results: Path, windows: Path, out: Path, config: Config, renderer: Any | None = None
) -> dict[str, Any]:
    """Write out/report.html and out/figures, PNG files. Returns what is on the page, counted.

    results: folder of the stages' results; windows: the window folder; renderer: as `ecggen.load` returns it
    (None = results/train is loaded if there is a checkpoint). Raises ReportError without any results.
    """
    read = Results.read(results, windows)
    if renderer is None and (results / "train" / "checkpoint.pt").is_file():
        from ecggen.inference.renderer import load  # torch, only where a model is there to be run

        renderer = load(results / "train")
    with fresh_folder(out / "figures") as folder:
        shown: dict[str, Any] = {
            "pictures": {
                name: ecgs.picture(
                    figures.table_figure(name, read.tables[stage][table]),
                    FIGURE_WORDS[name],
                    folder / f"{name}.png",
                )
                for stage, drawn in figures.TABLE_FIGURES.items()
                for name, table in drawn.items()
                if len(read.tables[stage].get(table, ()))
            },
            "ecg": ecgs.test_ecgs(renderer, windows, config, folder),
            "real": ecgs.real_ecg(renderer, config, folder),
            "flagged": ecgs.flagged_pictures(read, windows.parent / "records"),
        }
    page = render_page(read, config, **shown)
    write_text(out / "report.html", page)
    counts = {"sections": page.count("<section "), "examples": len(shown["ecg"].get("examples", ()))}
    return counts | {"real_ecg": shown["real"].get("numbers")}


def render_page(results: Results, config: Config, **shown: Any) -> str:
    """The page as HTML; shown: pictures (name -> Picture), ecg, real, flagged, see ecggen.report.ecgs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = ("listing", "pivot", "only", "of_model", "of_lead_sets", "column", "distinct", "label")
    environment.globals |= {name: getattr(tables, name) for name in (*functions, "number_text")}
    environment.globals |= {"protocol_words": tables.protocol_words, "ttt_steps": sections.ttt_steps}
    return environment.get_template("page.html.j2").render(
        results=results,
        config=config,
        source=sections.source(results, config),
        headline=sections.headline(results, config),
        data_facts=sections.data_facts(results, config),
        counts=sections.counts_in_words(results.meta.get("counts") or {}),
        patient_notes=sections.patient_notes(results),
        training=sections.plain_facts(results.facts["train"]),
        reason_tables=sections.reason_tables(results),
        **({"pictures": {}, "ecg": {}, "flagged": [], "real": {"reason": "No model was given"}} | shown),
    )
