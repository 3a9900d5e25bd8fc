"""How numbers come from rows: SQL for DuckDB, over the runs' Parquet files.

`setup` makes one view, `answers`, of all the report's rows; the queries beside the tables read it. What a row is worth
is its score, else whether it is right, else nothing. Intervals and p-values are no sums over rows: they are those of
pipelines.metrics.intervals and pipelines.metrics.significance, from the same rows. What else a query does not bring, the notes of the
tables say, with the command that prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.report.runs import Chapter, Study
from pipelines.text import redacted

# The headline of the rows `asked`, for each point and side; by its name in the benchmark. `accuracy` is a plain mean.
HEADLINES = {
    "accuracy": "SELECT point, side, avg(worth) AS value FROM asked GROUP BY point, side",
    "img": """SELECT point, side, avg(worth) AS value FROM asked
  WHERE list_contains(map_extract(meta, 'image'), 'yes') GROUP BY point, side""",
    "circular": """SELECT point, side, avg(CAST(whole AS DOUBLE)) AS value FROM (
    SELECT point, side, min(worth) = 1 AS whole FROM asked
    GROUP BY point, side, CAST(row_id AS BIGINT) % 1000000 HAVING count(worth) = count(*))
  GROUP BY point, side""",
    "f1": """SELECT point, side, avg(f1) AS value FROM (
    SELECT point, side, type,
      coalesce(2.0 * count(*) FILTER (yes AND said)
        / nullif(2 * count(*) FILTER (yes AND said) + count(*) FILTER (yes <> said), 0), 0) AS f1
    FROM (SELECT *, reference[1] = 'yes' AS yes, (worth = 1) = (reference[1] = 'yes') AS said
      FROM asked WHERE worth IS NOT NULL)
    GROUP BY point, side, type)
  GROUP BY point, side""",
    "total": """SELECT point, side, sum(points) AS value FROM (
    SELECT point, side, type, 100 * avg(worth) AS points FROM asked WHERE worth IS NOT NULL GROUP BY point, side, type
    UNION ALL
    SELECT point, side, type, 100 * avg(CAST(whole AS DOUBLE)) FROM (
      SELECT point, side, type, min(worth) = 1 AS whole FROM asked
      GROUP BY point, side, type, list_slice(string_split(row_id, '/'), 1, 2)
      HAVING count(*) = 2 AND count(worth) = 2)
    GROUP BY point, side, type)
  GROUP BY point, side""",
}
# Each run beside vanilla, over the rows of either; a row that one of them has not answered is worth nothing for both.
_PAIRS = """all_rows AS (SELECT * FROM answers WHERE study = {study}),
vanilla AS (SELECT * FROM all_rows WHERE method = 'vanilla'),
pairs AS (
  SELECT points.point, ids.row_id, coalesce(r.type, v.type) AS type, coalesce(r.reference, v.reference) AS reference,
    coalesce(r.meta, v.meta) AS meta, v.prediction AS vanilla_said, r.prediction AS said,
    CASE WHEN v.worth IS NOT NULL THEN r.worth END AS worth, CASE WHEN r.worth IS NOT NULL THEN v.worth END AS base
  FROM (SELECT DISTINCT point FROM all_rows WHERE method <> 'vanilla') AS points
  CROSS JOIN (SELECT DISTINCT row_id FROM all_rows) AS ids
  LEFT JOIN all_rows AS r ON r.point = points.point AND r.row_id = ids.row_id
  LEFT JOIN vanilla AS v ON v.row_id = ids.row_id
  WHERE r.row_id IS NOT NULL OR v.row_id IS NOT NULL)"""


class Setup(NamedTuple):
    """What comes first: where to be, and what to run there."""

    base: str  # a folder, or the beginning of a URI
    sql: str


def setup(chapters: Sequence[Chapter]) -> Setup:
    """The view `answers` over all runs of a report, with the study of each."""
    runs = [(run, study) for chapter in chapters for study in chapter.studies for run in study.runs]
    uris = [redacted(run.folder.uri) for run, _ in runs]
    base = _shared(uris)
    files = ",\n  ".join(_quoted(f"{uri[len(base) :]}/*.parquet") for uri in uris)
    known = ",\n  ".join(
        f"({_quoted(run.id)}, {_quoted(study.title)}, {_quoted(run.budget)})" for run, study in runs
    )
    sql = f"""CREATE OR REPLACE VIEW answers AS
SELECT runs.study, runs.budget_asked, rows.*,
  CASE WHEN status = 'ok' THEN coalesce(score, CAST(correct AS DOUBLE)) END AS worth
FROM read_parquet([
  {files}], union_by_name = true) AS rows
JOIN (VALUES
  {known}) AS runs(run_id, study, budget_asked) ON runs.run_id = rows.run_id;"""
    return Setup(base, sql)


def _shared(uris: Sequence[str]) -> str:
    """The folder that all of them lie in, with a slash at its end; nothing where they are on several stores."""
    parts = [uri.split("/")[:-1] for uri in uris]
    depth = 0
    while all(len(part) > depth and part[depth] == parts[0][depth] for part in parts):
        depth += 1
    return "".join(f"{part}/" for part in parts[0][:depth])


def accuracy(study: Study) -> str:
    return f"""WITH asked AS (SELECT *, '' AS side FROM answers WHERE study = {_quoted(study.title)}),
headline AS ({_headline(study)})
SELECT point, {_scale(study)} * value AS accuracy FROM headline ORDER BY point;"""


def retention(study: Study) -> str:
    return f"""WITH {_pairs(study)},
asked AS (
  SELECT point, row_id, type, reference, meta, worth, 'run' AS side FROM pairs
  UNION ALL SELECT point, row_id, type, reference, meta, base, 'vanilla' FROM pairs),
headline AS ({_headline(study)}),
counts AS (
  SELECT point, count(worth) AS rows, count(*) FILTER (worth < base) AS lost, count(*) FILTER (worth > base) AS gained
  FROM pairs GROUP BY point)
SELECT point, rows, lost, gained, 100 * max(value) FILTER (side = 'run') / max(value) FILTER (side = 'vanilla') AS kept
FROM headline JOIN counts USING (point) GROUP BY ALL ORDER BY point;"""


def average(studies: Sequence[Study]) -> str:
    """The mean over benchmarks of what is kept, for each point."""
    kept = "\nUNION ALL\n".join(
        f"SELECT point, kept FROM ({retention(study).rstrip(';')})" for study in studies
    )
    return f"""WITH every AS (
{kept})
SELECT point, avg(kept) AS average, count(kept) AS benchmarks FROM every GROUP BY point ORDER BY point;"""


def types(study: Study) -> str:
    return f"""WITH {_pairs(study)}
SELECT type, point, count(worth) AS rows, 100 * sum(worth) / sum(base) AS kept,
  count(*) FILTER (worth < base) AS lost, count(*) FILTER (worth > base) AS gained
FROM pairs WHERE worth IS NOT NULL GROUP BY type, point ORDER BY type, point;"""


def vanilla_types(study: Study) -> str:
    return f"""SELECT type, point, 100 * avg(worth) AS accuracy, count(worth) AS rows
FROM answers WHERE study = {_quoted(study.title)} AND method = 'vanilla' AND worth IS NOT NULL
GROUP BY type, point ORDER BY type;"""


def lost_rows(study: Study) -> str:
    return f"""WITH {_pairs(study)}
SELECT row_id, count(*) AS lost_by, any_value(vanilla_said) AS vanilla, list(point || ': ' || said) AS runs
FROM pairs WHERE worth < base GROUP BY row_id ORDER BY lost_by DESC, row_id LIMIT 10;"""


def hard(study: Study) -> str:
    return f"""WITH all_rows AS (SELECT * FROM answers WHERE study = {_quoted(study.title)}),
coarse AS (SELECT budget_asked AS of, row_id FROM all_rows WHERE method = 'downsample' AND worth < 0.5)
SELECT of, point, count(worth) AS rows, 100 * avg(worth) AS accuracy
FROM coarse JOIN all_rows USING (row_id) WHERE method = 'vanilla' OR budget_asked = of
GROUP BY of, point ORDER BY of, point;"""


def efficiency(study: Study) -> str:
    return f"""SELECT point, avg(budget) AS tokens, 100 * avg(budget / visual_tokens_in) AS share,
  sum(prefill_ms + coalesce(decode_ms, 0)) / 1000 AS total_s, quantile_cont(prefill_ms, 0.5) AS prefill_ms,
  max(peak_memory_bytes) / 1024 ** 3 AS gib, quantile_cont(compress_ms, 0.5) AS compress_ms,
  1000 * count(prefill_ms) / sum(prefill_ms + coalesce(decode_ms, 0)) AS rows_per_s, count(*) AS rows
FROM answers WHERE study = {_quoted(study.title)} AND status = 'ok' GROUP BY point ORDER BY point;"""


def slowest(study: Study) -> str:
    return f"""SELECT row_id, point, prefill_ms + coalesce(decode_ms, 0) AS ms, prefill_ms, decode_ms, compress_ms,
  visual_tokens_in, new_tokens, batch_rows
FROM answers WHERE study = {_quoted(study.title)} AND prefill_ms IS NOT NULL
ORDER BY ms DESC, row_id, point LIMIT 10;"""


def errors(study: Study) -> str:
    return f"""SELECT point, split_part(coalesce(error, 'unknown'), ': ', 1) AS class, count(*) AS rows,
  min(row_id) AS first_row
FROM answers WHERE study = {_quoted(study.title)} AND status <> 'ok' GROUP BY ALL ORDER BY point, rows DESC, class;"""


def _pairs(study: Study) -> str:
    return _PAIRS.format(study=_quoted(study.title))


def _headline(study: Study) -> str:
    return HEADLINES[study.benchmark.headline]


def _scale(study: Study) -> str:
    """Points are as they are; shares are percentages."""
    return "1" if study.benchmark.most > 1 else "100"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
