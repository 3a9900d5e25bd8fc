"""A row on its way from the CPU tasks that preprocess it to the worker that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from safetensors.torch import load
from torch import Tensor

from pipelines.data.rows import Medium, Row
from pipelines.inference.encoded_prompt import EncodedPrompt

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
    travel by name only: their pixels are in `media`, once for all rows of a block that share them.
    """

    benchmark_index: int  # index into JobSpec.benchmarks
    row: Row
    missing_runs: tuple[int, ...]  # indexes of the benchmark's runs that lack this answer
    prompt: str = ""
    inputs: bytes = b""  # the tokens' inputs as safetensors; empty if there is an error
    media: bytes = b""  # the inputs of all media, likewise
    tokens: int = 0  # of the uncompressed prompt
    prefix_tokens: int = 0  # of them, up to the last visual token; at least one follows
    prefix_key: str = ""  # equal for rows that begin with the same tokens and media
    error: str | None = None

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("benchmark_index", pa.int16()),
            ("row", ROW_TYPE),
            ("missing_runs", pa.list_(pa.int16())),
            ("prompt", pa.string()),
            ("inputs", pa.binary()),
            ("media", pa.dictionary(pa.int32(), pa.large_binary())),
            ("tokens", pa.int64()),
            ("prefix_tokens", pa.int64()),
            ("prefix_key", pa.string()),
            ("error", pa.string()),
        ]
    )

    @classmethod
    def of(
        cls, benchmark_index: int, row: Row, missing_runs: tuple[int, ...], prompt: EncodedPrompt
    ) -> PreparedRow:
        """A row that was preprocessed successfully."""
        return cls(
            benchmark_index,
            row,
            missing_runs,
            prompt=prompt.text,
            inputs=prompt.inputs(),
            media=prompt.media,
            tokens=prompt.tokens["input_ids"].shape[1],
            prefix_tokens=prompt.prefix_tokens,
            # Methods that draw are seeded by these names: equal files of two names stay apart.
            prefix_key="\n".join([prompt.prefix_key, *(medium.name for medium in row.media)]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All inputs of the model."""
        return self.token_tensors() | self.media_tensors()

    def token_tensors(self) -> dict[str, Tensor]:
        """The inputs with a value for each token of the prompt: (1, T) each."""
        return load(self.inputs)

    def media_tensors(self) -> dict[str, Tensor]:
        return load(self.media) if self.media else {}

    @property
    def row_id(self) -> str:
        return self.row.row_id

    @property
    def key(self) -> str:
        """The row's name in the failure tracker: two benchmarks may share row ids."""
        return f"{self.benchmark_index}/{self.row_id}"

    @classmethod
    def to_table(cls, rows: Sequence[PreparedRow]) -> pa.Table:
        numbers: dict[bytes, int] = {}
        indices = [numbers.setdefault(row.media, len(numbers)) for row in rows]
        contents = pa.array(list(numbers), pa.large_binary())
        media = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), contents)
        columns = pa.Table.from_pylist([row._columns() for row in rows], schema=_WITHOUT_MEDIA)
        return columns.add_column(
            cls.SCHEMA.get_field_index("media"), cls.SCHEMA.field("media"), media
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> list[PreparedRow]:
        media: list[bytes] = []
        for chunk in table["media"].chunks:
            contents = chunk.dictionary.to_pylist()  # one object for all rows that share it
            media += [contents[index] for index in chunk.indices.to_pylist()]
        rows = table.drop_columns("media").to_pylist()
        return [cls._from_columns(columns, own) for columns, own in zip(rows, media, strict=True)]

    def _columns(self) -> dict[str, Any]:
        media = [{"kind": medium.kind, "path": medium.name} for medium in self.row.media]
        row = {**vars(self.row), "media": media, "meta": list(self.row.meta.items())}
        return {**vars(self), "row": row}

    @classmethod
    def _from_columns(cls, columns: dict[str, Any], inputs: bytes) -> PreparedRow:
        row = columns["row"]
        lists = {name: tuple(row[name]) for name in ("answers", "options")}
        media = tuple(Medium(**medium) for medium in row["media"])
        row = Row(**{**row, **lists, "media": media, "meta": dict(row["meta"])})
        missing = tuple(columns["missing_runs"])
        return cls(**{**columns, "row": row, "missing_runs": missing, "media": inputs})


_WITHOUT_MEDIA = pa.schema([field for field in PreparedRow.SCHEMA if field.name != "media"])
