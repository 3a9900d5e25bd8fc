"""What a record says, whatever its columns are called and however they are typed: its media and its texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.data.formats.base import ALIASES, RawRecord, encodable
from pipelines.data.rows import Kind, Medium


def media(record: RawRecord, kind: Kind) -> tuple[Medium, ...]:
    """The row's images or videos, of the first column that has some; columns of the job's `kind` come first."""
    other = "video" if kind == "image" else "image"
    for name in sorted(ALIASES["media"], key=lambda name: name.startswith(other)):
        value = record.get(name)
        items = value if isinstance(value, list) else [value]
        if any(item not in (None, "", {"bytes": None, "path": None}) for item in items):
            named: Kind = (
                "video"
                if name.startswith("video")
                else "image"
                if name.startswith("image")
                else kind
            )
            return tuple(_medium(named, item) for item in items)
    raise ValueError(f"the row has no {kind}; looked for in {', '.join(ALIASES['media'])}")


def _medium(kind: Kind, item: Any) -> Medium:
    if isinstance(item, str) and encodable(item):
        return Medium(kind, path=item)
    if isinstance(item, bytes):
        return Medium(kind, data=item)
    if isinstance(item, Mapping):
        data, path = item.get("bytes"), item.get("path")
        if isinstance(data, bytes) and (path is None or isinstance(path, str)):
            return Medium(kind, path, data)
        if data is None and isinstance(path, str) and encodable(path):
            return Medium(kind, path)
    raise ValueError(
        f"a {kind} is a path, bytes or {{bytes, path}}; the row has {ascii(item)[:80]}"
    )


def texts(record: RawRecord, field: str) -> tuple[str, ...]:
    """What is in the first column of a field that is not empty."""
    return _texts(
        next((record[name] for name in ALIASES[field] if record.get(name) not in (None, "")), None)
    )


def _texts(value: Any) -> tuple[str, ...]:
    """A text, a number or a list of them; of objects, as VQAv2 has them, the `answer`."""
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping):
        value = value["answer"] if "answer" in value else list(value.values())
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | Mapping) for item in items):
        return tuple(text for item in items for text in _texts(item))
    texts = tuple("" if item is None else str(item) for item in items)
    if not all(map(encodable, texts)):
        raise ValueError(
            "a question, answer or option holds half a character, a surrogate without its other half"
        )
    return texts
