"""What comes in and what goes out: a question about media, and its answer. The contract of all of `pipelines`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.text import redacted

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
    meta: Mapping[str, str] = field(
        default_factory=dict
    )  # what the benchmark's score and sub-metrics need besides
    error: str | None = None  # why the row could not be read, as "Class: message"
