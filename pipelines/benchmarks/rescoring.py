"""Scoring without a model: of a stored run, from its Parquet alone, and of external answers.

    table = rescore(answers.read(folder), benchmark("pope"))
    table, mismatches = join_answers(benchmark("pope"), manifest, read_answers("answers.jsonl"))

External answers are joined to the benchmark's rows by id. Rows without an answer, ids with several
answers and unknown ids are counted and named; no answer moves to the row of another.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.data import spreadsheet
from pipelines.data.answer_row import answer_row, question_of
from pipelines.data.formats import jsonl
from pipelines.data.formats.base import DataFile
from pipelines.data.manifest import Manifest
from pipelines.metrics.answer_metrics import with_column
from pipelines.results.answer_schema import ANSWER_SCHEMA

CHUNK_ROWS = 8192  # that are Python objects at once
MAX_EXAMPLES = 5  # ids of each kind of mismatch that are named
EXPECTED = "answers are a .jsonl or .json file, MMBench's .xlsx, or a folder of MME's <subtask>.txt"
COLUMNS = (  # that `rescore` reads
    *("row_id", "media", "question", "reference", "options", "type", "meta"),
    *("prediction", "status"),
)
MISMATCHES = {  # kinds of answers and rows that do not match
    "missing": "rows have no answer and are in no number",
    "duplicate": "answers are to rows that had one; the first counts",
    "unknown": "answers are to no row of this data",
}


def describe_mismatches(mismatches: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each kind of MISMATCHES that has ids."""
    return [
        f"{len(ids):,} {MISMATCHES[kind]}: {', '.join(ids[:MAX_EXAMPLES])}"
        + (", ..." if len(ids) > MAX_EXAMPLES else "")
        for kind, ids in mismatches.items()
        if ids
    ]


def rescore(answers: pa.Table, benchmark: Benchmark) -> pa.Table:
    """Return the same answers with the scores that the benchmark gives them now."""
    scores = [
        benchmark.score(question_of(fields), fields["prediction"] or "")
        if fields["status"] == "ok"
        else Score(None, None)
        for batch in answers.select(COLUMNS).to_batches(max_chunksize=CHUNK_ROWS)
        for fields in batch.to_pylist()
    ]
    for name, type in (("score", pa.float64()), ("correct", pa.bool_())):
        column = pa.array([getattr(score, name) for score in scores], type)
        answers = with_column(answers, name, column)
    return answers


def read_answers(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """Yield the external answers of a file of any supported format."""
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f"there is no {path}; {EXPECTED}")
    if texts := sorted(file.glob("*.txt")):
        for text in texts:
            yield from _read_mme(text)
    elif file.suffix == ".xlsx":
        yield from spreadsheet.read_xlsx(file.read_bytes())
    elif file.suffix in jsonl.JSONL.suffixes:
        for name, _, _, answer in jsonl.rows(DataFile(str(file), str(file.absolute()), "image")):
            if isinstance(answer, Exception):
                raise ValueError(f"{name} of {file.name} is not an answer: {answer}")
            yield answer
    else:
        raise ValueError(f"{path} cannot be read; {EXPECTED}")


def _read_mme(file: Path) -> Iterator[Mapping[str, Any]]:
    """Read the form of MME's own script: image, question, reference and answer, tab-separated."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split("\t", 3)
        if len(cells) < 4:
            raise ValueError(
                f"line {number} of {file.name} has {len(cells)} cells; MME's have 4, with tabs"
                " between"
            )
        image, question, _, text = cells
        yield {"question_id": f"{file.stem}/{image}", "question": question, "text": text}


def join_answers(
    benchmark: Benchmark,
    manifest: Manifest,
    answers: Iterable[Mapping[str, Any]],
    split: str = "test",
) -> tuple[pa.Table, dict[str, list[str]]]:
    """Return the scored rows as a run's table, and the ids of each kind of MISMATCHES.

    Rows without an answer are errors, because rows may count together: an image of MME with one
    missing answer is not half right.
    """
    predictions: dict[str, str] = {}
    missing: list[str] = []
    duplicate: list[str] = []
    for answer in answers:
        row_id, text = benchmark.parse_answer(answer)
        if row_id in predictions:
            duplicate.append(row_id)
        predictions.setdefault(row_id, text)
    index = manifest.index()
    used: set[str] = set()
    tables = []
    for start in range(0, len(index), CHUNK_ROWS):
        rows = []
        for row in manifest.read(index.slice(start, CHUNK_ROWS)):
            if row.error:
                raise ValueError(f"row {row.row_id} cannot be read: {row.error}")
            ids = [row_id for row_id in benchmark.external_ids(row) if row_id in predictions]
            if ambiguous := used.intersection(ids):
                raise ValueError(
                    f"the answer to '{ambiguous.pop()}' could be to several rows, {row.row_id}"
                    " among them"
                )
            used.update(ids)
            missing += [] if ids else [row.row_id]
            duplicate += ids[1:]
            outcome = {"status": "error", "error": "Missing: there is no answer to this row"}
            if ids:
                outcome = {"status": "ok", "prediction": predictions[ids[0]]}
            prompt = benchmark.prompt(row)
            rows.append(
                answer_row(row, benchmark=benchmark.name, split=split, prompt=prompt, **outcome)
            )
        tables.append(pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA))
    unknown = [row_id for row_id in predictions if row_id not in used]
    mismatches = {"missing": missing, "duplicate": duplicate, "unknown": unknown}
    return rescore(pa.concat_tables(tables), benchmark), mismatches
