"""A question about media, the input of everything in `pipelines`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.text import redacted

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Medium:
    """An image or a video: its path, or its bytes if the manifest contains them."""

    kind: Kind
    path: str | None = None
    data: bytes | None = None

    @property
    def name(self) -> str:
        """The name in the `media` column: the path without secrets, else a digest of the bytes."""
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
    # Everything else that the benchmark's score and metrics need.
    meta: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None  # why the row could not be read: "Class: message"
