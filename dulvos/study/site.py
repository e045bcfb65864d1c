"""A page for a browser that shows a study, without a server: `results/<study>/index.html`."""

from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from dulvos.files import write_file
from dulvos.study.comparison import comparison_table
from dulvos.study.rows import Study
from dulvos.study.tables import study_table, to_text

__all__ = ["write_site"]

COLUMNS = ["data", "method", "J&F", "J mean", "F mean", "sequences", "objects", "state"]


def write_site(study: Study) -> Path:
    """Write the page of a study and return its path.

    It shows the study's scores, figures, video, explorer and executed notebooks, as far as they were made,
    and Fig. 3 and Table 1 at CPU scale, from committed rows.
    """
    ablation, davis, comparison = (Study(name, study.results)
                                   for name in ("ablation-davis", "davis", "comparison"))
    copies = [copy for copy in sorted(study.folder.glob("notebooks/*.ipynb"))
              if "." not in copy.stem]  # neither .failed nor .running
    copies += ablation.folder.glob("notebooks/03_ablation.ipynb")
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    for copy in copies:
        page = study.folder / "pages" / f"{copy.stem}.html"
        if not page.is_file() or page.stat().st_mtime < copy.stat().st_mtime:
            write_file(page, exporter.from_notebook_node(nbformat.read(copy, as_version=4))[0])
    template = exporter.environment.from_string(Path(__file__).with_name("site.html").read_text("utf-8"))
    return write_file(study.folder / "index.html", template.render(
        study=study, ablation=ablation, pages=[copy.stem for copy in copies],
        scores=_table(study_table(study.rows())[COLUMNS]), davis=_table(study_table(davis.rows())[COLUMNS]),
        comparison=_table(comparison_table(comparison))))


def _table(table: pd.DataFrame) -> str:
    return to_text(table).to_html(index=False, border=0)
