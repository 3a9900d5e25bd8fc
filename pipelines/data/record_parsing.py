"""Media and texts of a record, whatever its columns are called and however they are typed."""

from collections.abc import Mapping
from typing import Any

from pipelines.data.formats.base import ALIASES, RawRecord, is_encodable
from pipelines.data.rows import Kind, Medium


def media(record: RawRecord, kind: Kind) -> tuple[Medium, ...]:
    """Images or videos of the first column that has any; columns of the job's `kind` come first."""
    other = "video" if kind == "image" else "image"
    for name in sorted(ALIASES["media"], key=lambda name: name.startswith(other)):
        value = record.get(name)
        items = value if isinstance(value, list) else [value]
        if any(item not in (None, "", {"bytes": None, "path": None}) for item in items):
            kinds: tuple[Kind, ...] = ("image", "video")
            column_kind = next((prefix for prefix in kinds if name.startswith(prefix)), kind)
            return tuple(_medium(column_kind, item) for item in items)
    raise ValueError(f"the row has no {kind}; looked for in {', '.join(ALIASES['media'])}")


def _medium(kind: Kind, item: Any) -> Medium:
    if isinstance(item, bytes):
        return Medium(kind, data=item)
    path, data = (
        (item.get("path"), item.get("bytes")) if isinstance(item, Mapping) else (item, None)
    )
    if isinstance(data, bytes) and (path is None or isinstance(path, str)):
        return Medium(kind, path, data)
    if data is None and isinstance(path, str) and is_encodable(path):
        return Medium(kind, path)
    raise ValueError(
        f"a {kind} must be a path, bytes or {{bytes, path}}; the row has {ascii(item)[:80]}"
    )


def texts(record: RawRecord, field: str) -> tuple[str, ...]:
    """Texts of the first column of a field that is not empty."""
    values = (record.get(name) for name in ALIASES[field])
    return _texts(next((value for value in values if value not in (None, "")), None))


def _texts(value: Any) -> tuple[str, ...]:
    """Texts of a text, a number, a list of them or an object with an `answer`, as VQAv2 has."""
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping):
        value = value["answer"] if "answer" in value else list(value.values())
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | Mapping) for item in items):
        return tuple(text for item in items for text in _texts(item))
    texts = tuple("" if item is None else str(item) for item in items)
    if not all(map(is_encodable, texts)):
        raise ValueError(
            "a question, answer or option has half a character: a surrogate without its other half"
        )
    return texts
