"""The columns of one answer, and the question that can be read back from them."""

from collections.abc import Mapping
from typing import Any

from pipelines.data.rows import Medium, Row
from pipelines.results.answer_schema import ANSWER_SCHEMA

_COLUMNS = frozenset(ANSWER_SCHEMA.names)


def answer_row(
    row: Row, *, benchmark: str, split: str, prompt: str, **produced: Any
) -> dict[str, Any]:
    """One line of ANSWER_SCHEMA. Every answer, from a model or from a file, is made here.

    produced: the columns that depend on the answer (prediction, status, timings, ...); the rest
    follow from the row. Columns that are not given become null.
    """
    if unknown := produced.keys() - _COLUMNS:  # pyarrow would drop them silently
        raise KeyError(f"not columns of an answer: {', '.join(sorted(unknown))}")
    return {
        "row_id": row.row_id,
        "benchmark": benchmark,
        "split": split,
        "type": row.type,
        "media": [medium.name for medium in row.media],
        "question": row.question,
        "prompt": prompt,
        "reference": row.answers,
        "options": row.options,
        "meta": list(row.meta.items()),
        **produced,
    }


def question_of(answer: Mapping[str, Any]) -> Row:
    """The row that an answer belongs to: all that scoring needs, without media content."""
    return Row(
        row_id=answer["row_id"],
        media=tuple(Medium("image", name) for name in answer["media"] or ()),
        question=answer["question"] or "",
        answers=tuple(answer["reference"] or ()),
        options=tuple(answer["options"] or ()),
        type=answer["type"] or "",
        meta=dict(answer["meta"] or ()),
    )
