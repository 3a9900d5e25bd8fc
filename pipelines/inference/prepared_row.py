"""A row on its way from the CPU tasks to a worker: as a line of a table that Ray carries, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.data.rows import Medium, Row


@dataclass(frozen=True)
class PreparedRow:
    """A row as the CPU tasks hand it over."""

    section: int  # of the job
    row: Row
    wanted: tuple[int, ...]  # the places of the section's runs that lack it
    prompt: str = ""
    inputs: bytes = b""  # none if there is an error
    tokens: int = 0
    error: str | None = None

    SCHEMA = pa.schema(
        [
            ("section", pa.int16()),
            ("row_id", pa.string()),
            ("type", pa.string()),
            ("question", pa.string()),
            ("kinds", pa.list_(pa.string())),
            ("media", pa.list_(pa.string())),
            ("answers", pa.list_(pa.string())),
            ("options", pa.list_(pa.string())),
            ("meta", pa.map_(pa.string(), pa.string())),
            ("wanted", pa.list_(pa.int16())),
            ("prompt", pa.string()),
            ("inputs", pa.large_binary()),
            ("tokens", pa.int64()),
            ("error", pa.string()),
        ]
    )

    @property
    def row_id(self) -> str:
        return self.row.row_id

    @property
    def key(self) -> str:
        """The row's name at the ledger: two benchmarks may have rows of one id."""
        return f"{self.section}/{self.row_id}"

    def fields(self) -> dict[str, Any]:
        """As a row of a table with SCHEMA: media by name only, what they show is in `inputs`."""
        row = self.row
        return {
            "section": self.section,
            "row_id": row.row_id,
            "type": row.type,
            "question": row.question,
            "kinds": [medium.kind for medium in row.media],
            "media": [medium.name for medium in row.media],
            "answers": row.answers,
            "options": row.options,
            "meta": list(row.meta.items()),
            "wanted": self.wanted,
            "prompt": self.prompt,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "error": self.error,
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> PreparedRow:
        media = tuple(
            Medium(kind, path) for kind, path in zip(fields["kinds"], fields["media"], strict=True)
        )
        answers, options = tuple(fields["answers"]), tuple(fields["options"])
        row = Row(
            fields["row_id"],
            media,
            fields["question"],
            answers,
            options,
            fields["type"],
            dict(fields["meta"]),
        )
        rest = (fields[name] for name in ("prompt", "inputs", "tokens", "error"))
        return cls(fields["section"], row, tuple(fields["wanted"]), *rest)
