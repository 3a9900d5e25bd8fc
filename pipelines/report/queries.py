"""SQL for DuckDB that computes a report's numbers from the Parquet files of its runs.

The queries are macros of queries.sql.j2. `setup` creates the view of all rows that they read.
Intervals and p-values are not sums over rows: pipelines.metrics.intervals and
pipelines.metrics.significance compute them from the same rows. A table's note names numbers that
its query does not compute, and the command that prints them.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from pipelines.report.runs import Chapter
from pipelines.report.templates import TEMPLATES
from pipelines.text import redacted


class Setup(NamedTuple):
    folder: str  # in which the SQL has to run: a path, or the beginning of a URI; empty for any
    sql: str


def setup(chapters: Sequence[Chapter]) -> Setup:
    """The view `answers` of all runs of a report, with the study of each."""
    runs = [(run, study) for chapter in chapters for study in chapter.studies for run in study.runs]
    paths = [redacted(run.folder.uri).split("/") for run, _ in runs]
    levels = zip(*(path[:-1] for path in paths), strict=False)
    common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    files = ["/".join([*path[len(common) :], "*.parquet"]) for path in paths]
    return Setup("".join(f"{name}/" for name in common), query("setup", files, runs))


def query(name: str, *arguments: Any) -> str:
    """The query of this name for a study, e.g. `accuracy`; `average` is for a list of them."""
    return str(getattr(TEMPLATES.get_template("queries.sql.j2").module, name)(*arguments)).strip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


TEMPLATES.filters["quoted"] = _quoted
