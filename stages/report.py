"""Puts everything that was found out on one page, which opens without a server or a network.

Reads:  metrics/*.json; plots/train_head/history.csv, plots/fine_tune/ — history.csv, layers.csv;
        plots/<model>/ — confusion.csv, roc.csv, precision_recall.csv, reliability.csv;
        data/gallery/<model>/ — gallery.json and JPEG files; data/rejected.csv;
        data/raw/dataset_info.json; params.yaml, all of it; Git's commit.
Writes: reports/index.html — one file of at most 20 MB: text, tables, charts, galleries.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.common import files, params, paths
from stages.common.report import evidence, pictures, views
from stages.common.run import UserError, run

TEMPLATE_FOLDER = Path(__file__).parent / "common" / "report"
PAGE_BYTES = 20_000_000  # what mail and code hosts still take
GALLERY_SLACK_BYTES = 10_000  # the words around the gallery differ with what is in it

Statement = Annotated[
    str | None, Field(min_length=1, description="null, or a text that is not empty")
]


@params.params_dataclass
class ReportParams:
    """Section `report`: what only a person knows; None is told as not stated."""

    title: Statement
    intended_use: Statement
    limits: Statement
    license: Statement
    contact: Statement


def render(
    view: Mapping[str, Any],
    galleries: Mapping[str, Sequence[evidence.Picture]],
    page_bytes: int = PAGE_BYTES,
) -> bytes:
    """The page as UTF-8, with as many pictures as its size allows.

    Args:
        view: from views.page.
        galleries: model to its pictures.
        page_bytes: the most that the page may have.

    Raises:
        UserError: the page is larger even without pictures.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    figures = {name: chart.figure for name, chart in views.all_charts(view).items()}

    def page(gallery: Mapping[str, Any]) -> bytes:
        data = {"figures": figures, "gallery": gallery, "model_names": view["model_names"]}
        return template.render(view, data=data, plotly=get_plotlyjs()).encode()

    room = page_bytes - len(page(pictures.fit({}, 0))) - GALLERY_SLACK_BYTES
    if room < 0:
        raise UserError(
            f"the page would have more than {page_bytes:,} bytes without any picture; most likely "
            "a column with many values makes many slices: see evaluate in params.yaml"
        )
    return page(pictures.fit(galleries, room))


def main() -> None:
    """Reads, renders and writes the page."""
    stated = params.load("report", ReportParams)
    found = evidence.read()
    page = render(
        views.page(found, stated),
        {name: model.gallery for name, model in found.models.items()},
    )
    with files.replacing(paths.REPORT) as new:
        new.write_bytes(page)
    print(f"{paths.REPORT}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run(main, takes_arguments=False)
