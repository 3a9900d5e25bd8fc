"""A row on its way from the CPU tasks that preprocess it to the worker that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from safetensors.torch import load, save
from torch import Tensor

from pipelines.data.rows import Medium, Row

ROW_TYPE = pa.struct(
    [
        ("row_id", pa.string()),
        ("media", pa.list_(pa.struct([("kind", pa.string()), ("path", pa.string())]))),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
        ("type", pa.string()),
        ("meta", pa.map_(pa.string(), pa.string())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class PreparedRow:
    """A row with the model's inputs, or with the reason why there are none.

    This class owns the Arrow form that crosses Ray (`SCHEMA`, `to_table`, `from_table`). Media
    travel by name only: their content is in `inputs`.
    """

    benchmark_index: int  # index into JobSpec.benchmarks
    row: Row
    missing_runs: tuple[int, ...]  # indexes of the benchmark's runs that lack this answer
    prompt: str = ""
    inputs: bytes = b""  # the model's inputs as safetensors; empty if there is an error
    tokens: int = 0  # of the uncompressed prompt
    error: str | None = None

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("benchmark_index", pa.int16()),
            ("row", ROW_TYPE),
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
        benchmark_index: int,
        row: Row,
        missing_runs: tuple[int, ...],
        prompt: str,
        tensors: Mapping[str, Tensor],
    ) -> PreparedRow:
        """A row that was preprocessed successfully."""
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        tokens = tensors["input_ids"].shape[1]
        return cls(benchmark_index, row, missing_runs, prompt, data, tokens)

    def tensors(self) -> dict[str, Tensor]:
        return load(self.inputs)

    @property
    def row_id(self) -> str:
        return self.row.row_id

    @property
    def key(self) -> str:
        """The row's name in the failure tracker: two benchmarks may share row ids."""
        return f"{self.benchmark_index}/{self.row_id}"

    @classmethod
    def to_table(cls, rows: Sequence[PreparedRow]) -> pa.Table:
        return pa.Table.from_pylist([row._columns() for row in rows], schema=cls.SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> list[PreparedRow]:
        return [cls._from_columns(columns) for columns in table.to_pylist()]

    def _columns(self) -> dict[str, Any]:
        media = [{"kind": medium.kind, "path": medium.name} for medium in self.row.media]
        row = {**vars(self.row), "media": media, "meta": list(self.row.meta.items())}
        return {**vars(self), "row": row}

    @classmethod
    def _from_columns(cls, columns: dict[str, Any]) -> PreparedRow:
        row = columns["row"]
        lists = {name: tuple(row[name]) for name in ("answers", "options")}
        media = tuple(Medium(**medium) for medium in row["media"])
        row = Row(**{**row, **lists, "media": media, "meta": dict(row["meta"])})
        return cls(**{**columns, "row": row, "missing_runs": tuple(columns["missing_runs"])})
