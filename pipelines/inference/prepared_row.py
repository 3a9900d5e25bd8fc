"""A row on its way from the CPU tasks that preprocess it to the worker that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from safetensors.torch import load, save
from torch import Tensor

from pipelines.data.rows import Medium, Row


@dataclass(frozen=True)
class PreparedRow:
    """A row with the model's inputs, or with the reason why there are none.

    This class owns the Arrow form that crosses Ray (`SCHEMA`, `to_table`, `from_table`). Media
    travel by name only: their content is in `inputs`.
    """

    benchmark: int  # index into JobSpec.benchmarks
    row: Row
    missing_runs: tuple[int, ...]  # indexes of the benchmark's runs that lack this answer
    prompt: str = ""
    inputs: bytes = b""  # the model's inputs as safetensors; empty if there is an error
    tokens: int = 0  # of the uncompressed prompt
    error: str | None = None

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("benchmark", pa.int16()),
            ("row_id", pa.string()),
            ("type", pa.string()),
            ("question", pa.string()),
            ("media_kinds", pa.list_(pa.string())),
            ("media", pa.list_(pa.string())),
            ("answers", pa.list_(pa.string())),
            ("options", pa.list_(pa.string())),
            ("meta", pa.map_(pa.string(), pa.string())),
            ("missing_runs", pa.list_(pa.int16())),
            ("prompt", pa.string()),
            ("inputs", pa.large_binary()),
            ("tokens", pa.int64()),
            ("error", pa.string()),
        ]
    )

    @classmethod
    def of(
        cls,
        benchmark: int,
        row: Row,
        missing_runs: tuple[int, ...],
        prompt: str,
        tensors: Mapping[str, Tensor],
    ) -> PreparedRow:
        """A row that was preprocessed successfully."""
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        tokens = tensors["input_ids"].shape[1]
        return cls(benchmark, row, missing_runs, prompt, data, tokens)

    def tensors(self) -> dict[str, Tensor]:
        return load(self.inputs)

    @property
    def row_id(self) -> str:
        return self.row.row_id

    @property
    def key(self) -> str:
        """The row's name in the failure tracker: two benchmarks may share row ids."""
        return f"{self.benchmark}/{self.row_id}"

    @classmethod
    def to_table(cls, rows: Sequence[PreparedRow]) -> pa.Table:
        return pa.Table.from_pylist([row._columns() for row in rows], schema=cls.SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> list[PreparedRow]:
        return [cls._from_columns(columns) for columns in table.to_pylist()]

    def _columns(self) -> dict[str, Any]:
        row = self.row
        return {
            "benchmark": self.benchmark,
            "row_id": row.row_id,
            "type": row.type,
            "question": row.question,
            "media_kinds": [medium.kind for medium in row.media],
            "media": [medium.name for medium in row.media],
            "answers": row.answers,
            "options": row.options,
            "meta": list(row.meta.items()),
            "missing_runs": self.missing_runs,
            "prompt": self.prompt,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "error": self.error,
        }

    @classmethod
    def _from_columns(cls, columns: dict[str, Any]) -> PreparedRow:
        row = Row(
            row_id=columns["row_id"],
            media=tuple(map(Medium, columns["media_kinds"], columns["media"])),
            question=columns["question"],
            answers=tuple(columns["answers"]),
            options=tuple(columns["options"]),
            type=columns["type"],
            meta=dict(columns["meta"]),
        )
        missing_runs = tuple(columns["missing_runs"])
        result = (columns[name] for name in ("prompt", "inputs", "tokens", "error"))
        return cls(columns["benchmark"], row, missing_runs, *result)
