"""The HTML page: one file with everything in it, which loads nothing and runs no script."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.report.charts import Chart
from pipelines.report.pictures import Picture
from pipelines.report.queries import Setup
from pipelines.report.table import Table, slug
from pipelines.report.templates import TEMPLATES


class Section(NamedTuple):
    """A chapter of the page."""

    title: str
    charts: Sequence[Chart]
    tables: Sequence[Table] = ()


def render_page(
    title: str,
    facts: Sequence[str],
    sections: Sequence[Section],
    pictures: Sequence[Picture],
    setup: Setup,
) -> str:
    """Returns the page.

    facts: paragraphs at the top: what was run, and what is missing
    """
    return TEMPLATES.get_template("page.html.j2").render(
        title=title, facts=facts, sections=sections, pictures=pictures, setup=setup
    )


def _data_uri(chart: Chart) -> str:
    """The chart as an image of its own: styles and ids inside do not touch the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"


TEMPLATES.filters |= {"slug": slug, "data_uri": _data_uri}
