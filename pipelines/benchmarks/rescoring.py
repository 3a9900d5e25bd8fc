"""Scoring without a model: of a run again, from its Parquet alone, and of answers that were made elsewhere.

    table = rescored(answers.read(folder), benchmark("pope"))
    table, report = joined(benchmark("pope"), manifest, elsewhere("answers.jsonl"))

Answers from elsewhere are joined to the benchmark's rows by id. Rows without one, ids with several and ids that no row
has are counted and named; nothing moves up into a gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.base import Benchmark
from pipelines.data import spreadsheet
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Medium, Row
from pipelines.results.answer_schema import ANSWER_SCHEMA

PART = 8192  # rows that are Python objects at once
SHOWN = 5  # ids of each kind that a report names
EXPECTED = "answers are a .jsonl or .json file, MMBench's .xlsx, or a folder of MME's <subtask>.txt"


@dataclass(frozen=True)
class JoinReport:
    """How answers from elsewhere and rows went together."""

    rows: int
    matched: int
    missing: int  # rows without an answer: they are in no number
    duplicate: int  # answers to rows that had one; the first counts
    unknown: int  # answers to rows that there are not
    examples: Mapping[str, list[str]]

    def lines(self) -> list[str]:
        said = {
            "missing": "rows have no answer and are in no number",
            "duplicate": "answers are to rows that had one; the first counts",
            "unknown": "answers are to no row of this data",
        }
        return [
            f"{getattr(self, kind):,} {what}: {', '.join(self.examples[kind])}{', ...' * (getattr(self, kind) > SHOWN)}"
            for kind, what in said.items()
            if getattr(self, kind)
        ]


def rescore(answers: pa.Table, benchmark: Benchmark) -> pa.Table:
    """The same answers with the scores that the benchmark gives them now."""
    scores: list[float | None] = []
    correct: list[bool | None] = []
    columns = [
        "row_id",
        "media",
        "question",
        "reference",
        "options",
        "type",
        "meta",
        "prediction",
        "status",
    ]
    for batch in answers.select(columns).to_batches(max_chunksize=PART):
        for fields in batch.to_pylist():
            found = (
                benchmark.score(_row(fields), fields["prediction"] or "")
                if fields["status"] == "ok"
                else None
            )
            scores.append(found.score if found else None)
            correct.append(found.correct if found else None)
    done = {"score": pa.array(scores, pa.float64()), "correct": pa.array(correct, pa.bool_())}
    for name, column in done.items():
        answers = answers.set_column(answers.column_names.index(name), name, column)
    return answers


def _row(fields: Mapping[str, Any]) -> Row:
    """A row as the answers have it: all that a score needs, no media."""
    return Row(
        fields["row_id"],
        tuple(Medium("image", name) for name in fields["media"] or ()),
        fields["question"] or "",
        tuple(fields["reference"] or ()),
        tuple(fields["options"] or ()),
        fields["type"] or "",
        dict(fields["meta"] or ()),
    )


def read_answers(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """The answers of a file in whatever format: one object each."""
    file = Path(path).expanduser()
    if file.is_dir():
        texts = sorted(file.glob("*.txt"))
        if not texts:
            raise ValueError(f"{path} holds no .txt file; {EXPECTED}")
        for text in texts:
            yield from _mme(text)
    elif not file.is_file():
        raise FileNotFoundError(f"there is no {path}; {EXPECTED}")
    elif file.suffix == ".xlsx":
        yield from spreadsheet.read_xlsx(file.read_bytes())
    elif file.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _json(file)
    else:
        raise ValueError(f"{path} cannot be read; {EXPECTED}")


def _mme(file: Path) -> Iterator[Mapping[str, Any]]:
    """What MME's own script reads: image, question, right answer and answer, with tabs between."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split("\t")
        if len(cells) < 4:
            raise ValueError(
                f"line {number} of {file.name} has {len(cells)} cells; MME's have 4, with tabs between"
            )
        yield {
            "question_id": f"{file.stem}/{cells[0]}",
            "question": cells[1],
            "text": "\t".join(cells[3:]),
        }


def _json(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig") as stream:
        start = stream.read(1)
        while start.isspace():
            start = stream.read(1)
        stream.seek(0)
        if start == "[":
            found: Any = json.load(stream)
        else:
            found = (json.loads(line) for line in stream if line.strip())
        try:
            for number, answer in enumerate(found, 1):
                if not isinstance(answer, dict):
                    raise ValueError(f"answer {number} is no object {{...}}: {str(answer)[:40]}")
                yield answer
        except json.JSONDecodeError as error:
            raise ValueError(f"{file.name} is no JSON: {error}; {EXPECTED}") from error


def join_answers(
    benchmark: Benchmark,
    manifest: Manifest,
    answers: Iterator[Mapping[str, Any]],
    split: str = "test",
) -> tuple[pa.Table, JoinReport]:
    """The rows as a run's table, scored, those without an answer as errors; and what did not match.

    Errors, because rows may count together: an image of MME of which one answer is missing is not half right.
    """
    given: dict[str, str] = {}
    seen: dict[str, list[str]] = {"missing": [], "duplicate": [], "unknown": []}
    counts = dict.fromkeys(seen, 0)

    def note(kind: str, name: str) -> None:
        counts[kind] += 1
        if len(seen[kind]) < SHOWN:
            seen[kind].append(name)

    for answer in answers:
        name, text = benchmark.claim(answer)
        if name in given:
            note("duplicate", name)
        given.setdefault(name, text)
    index = manifest.index()
    used: set[str] = set()
    parts = []
    for start in range(0, len(index), PART):
        rows = []
        for row in manifest.read(index.slice(start, PART)):
            if row.error:
                raise ValueError(f"row {row.row_id} cannot be read: {row.error}")
            names = [name for name in benchmark.names(row) if name in given]
            if several := used.intersection(names):
                raise ValueError(
                    f"the answer to '{several.pop()}' could be to several rows, {row.row_id} among them"
                )
            used.update(names)
            if not names:
                note("missing", row.row_id)
            rows.append(_answered(benchmark, split, row, given[names[0]] if names else None))
            for name in names[1:]:
                note("duplicate", name)
        parts.append(pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA))
    for name in given:
        if name not in used:
            note("unknown", name)
    table = pa.concat_tables(parts)
    return table, JoinReport(len(index), len(index) - counts["missing"], **counts, examples=seen)


def _answered(benchmark: Benchmark, split: str, row: Row, prediction: str | None) -> dict[str, Any]:
    fate: dict[str, Any]
    if prediction is None:
        fate = {"status": "error", "error": "Missing: there is no answer to this row"}
    else:
        score, correct = benchmark.score(row, prediction)
        fate = {"prediction": prediction, "score": score, "correct": correct, "status": "ok"}
    return {
        "row_id": row.row_id,
        "benchmark": benchmark.name,
        "split": split,
        "type": row.type,
        "media": [medium.name for medium in row.media],
        "question": row.question,
        "prompt": benchmark.prompt(row),
        "reference": row.answers,
        "options": row.options,
        "meta": list(row.meta.items()),
        **fate,
    }
