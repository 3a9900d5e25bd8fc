"""What comes in and what goes out: a question about media, and its answer. The contract of all of `pipelines`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from pipelines.storage import redacted

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Medium:
    """An image or a video: where it lies, or its bytes where the manifest carries them."""

    kind: Kind
    path: str | None = None
    data: bytes | None = None

    @property
    def name(self) -> str:
        """What the `media` column says: the path as the manifest has it, but for keys, else a digest of the bytes."""
        if self.path:
            return redacted(self.path)
        return f"sha256:{hashlib.sha256(self.data or b'').hexdigest()[:16]}"


@dataclass(frozen=True)
class Row:
    """One question."""

    row_id: str
    media: tuple[Medium, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    type: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)  # what the benchmark's score and sub-metrics need besides
    error: str | None = None  # why the row could not be read, as "Class: message"


ANSWERS = pa.schema(
    [
        ("row_id", pa.string()),  # unique within a point, the same in every run
        ("benchmark", pa.string()),
        ("split", pa.string()),
        ("type", pa.string()),
        ("media", pa.list_(pa.string())),
        ("question", pa.string()),
        ("prompt", pa.string()),  # the question as the model was asked it
        ("reference", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
        ("meta", pa.map_(pa.string(), pa.string())),  # Row.meta: with it a run is scored from these columns alone
        ("prediction", pa.string()),
        ("score", pa.float64()),  # null where the metric is not per row
        ("correct", pa.bool_()),
        ("status", pa.string()),  # ok or error
        ("error", pa.string()),  # class and message
        ("model", pa.string()),
        ("method", pa.string()),
        ("budget", pa.float64()),  # the layer average that the row really had
        ("schedule", pa.string()),
        ("visual_tokens_in", pa.int64()),
        ("visual_tokens_kept", pa.list_(pa.int64())),  # one a site
        ("prompt_tokens", pa.int64()),
        ("new_tokens", pa.int64()),
        ("batch_rows", pa.int64()),
        ("prefill_ms", pa.float64()),  # of the batch, divided by its rows; so are the next two
        ("decode_ms", pa.float64()),
        ("compress_ms", pa.float64()),
        ("peak_memory_bytes", pa.int64()),  # of all the actor's GPUs, in this batch; null on a CPU
        ("answered_at", pa.timestamp("ms", tz="UTC")),
        ("actor", pa.string()),
        ("point", pa.string()),
        ("run_id", pa.string()),
    ]
)


def described(error: BaseException) -> str:
    """Class and message of an error on one line, without secrets, short enough for a table."""
    return redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")[:500]
