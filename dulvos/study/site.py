"""One page of a study for a browser, without a server: `results/<study>/index.html`."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from dulvos.files import replacing
from dulvos.study.comparison import comparison_table
from dulvos.study.rows import Study
from dulvos.study.tables import study_table, to_text

__all__ = ["write_site"]

TEMPLATE = Path(__file__).with_name("site.html")
EXPLORER = """<h2>Explorer</h2>
<p>Point at a cell: the other pictures show where the same features are.
<a href="explorer.html">On a page of its own</a></p>
<iframe src="explorer.html" title="explorer"></iframe>"""
FIGURES = {"features_masks.mp4": "A first mask, carried through a video by the trained features.",
           "montage.png": "The first mask is given; random and trained features carry it on.",
           "scores_by_sequence.png": "J&F of each video.",
           "training-trained.png": "The losses of the training."}
FIG3 = {"fig3-star.png": "Fig. 3: one setting changed at a time, at CPU scale.",
        "claims.png": "The paper's other claims, at CPU scale."}


def write_site(study: Study) -> Path:
    """Show a study's scores, figures, video, explorer and executed notebooks on a page, and return the page.

    Below them stand Fig. 3 and Table 1 at CPU scale, from committed rows. What was not made is left out.
    """
    ablation, davis = (Study(name, study.results) for name in ("ablation-davis", "davis"))
    copies = [copy for copy in sorted(study.folder.glob("notebooks/*.ipynb")) if "." not in copy.stem]
    copies += ablation.folder.glob("notebooks/03_ablation.ipynb")
    names = [_page(copy, study.folder / "pages") for copy in copies]
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        study=escape(study.name), scores=_scores(study), davis=_scores(davis),
        figures=_figures(study, FIGURES), fig3=_figures(ablation, FIG3),
        explorer=EXPLORER if (study.folder / "explorer.html").is_file() else "",
        comparison=_table(comparison_table(Study("comparison", study.results))),
        pages="\n".join(f'<li><a href="pages/{name}.html">{name}</a></li>' for name in names))
    return _write(study.folder / "index.html", text)


def _page(copy: Path, folder: Path) -> str:
    """Show an executed notebook as a page, unless the page is newer; the page's name."""
    page = folder / f"{copy.stem}.html"
    if not page.is_file() or page.stat().st_mtime < copy.stat().st_mtime:
        exporter = HTMLExporter(template_name="lab", embed_images=True)
        _write(page, exporter.from_notebook_node(nbformat.read(copy, as_version=4))[0])
    return page.stem


def _scores(study: Study) -> str:
    table = study_table(study.rows())
    return _table(table[["data", "method", "J&F", "J mean", "F mean", "sequences", "objects", "state"]])


def _table(table: pd.DataFrame) -> str:
    return to_text(table).to_html(index=False, border=0)


def _figures(study: Study, captions: dict[str, str]) -> str:
    made, end = [], "</figcaption></figure>"
    for name, text in captions.items():
        source = f"../{study.name}/figures/{name}"
        shown = (f'<video src="{source}" autoplay loop muted controls></video>' if name.endswith(".mp4")
                 else f'<img src="{source}" alt="">')
        if (study.folder / "figures" / name).is_file():
            made.append(f"<figure>{shown}<figcaption>{escape(text)}{end}")
    return "\n".join(made)


def _write(path: Path, text: str) -> Path:
    with replacing(path) as stream:
        stream.write(text.encode())
    return path
