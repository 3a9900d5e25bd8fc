"""Files of a synthetic benchmark: media and a manifest, written once and never partially."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.benchmarks.synthetic.scenes import Question


class MediaFile(NamedTuple):
    """One image or clip: its file name, the function that writes it, and its questions."""

    name: str
    save: Callable[[Path], None]
    questions: list[Question]


def write_dataset(manifest: Path, prefix: str, media: Iterable[MediaFile], questions: int) -> Path:
    """Write the first `questions` questions about `media`, and return `manifest`.

    Does nothing if the manifest is there. Every file gets its name only when it is complete, the
    manifest last: a killed call leaves no manifest, and the next one continues with the missing
    media. Manifests in one folder share their media.
    """
    if manifest.exists():
        return manifest
    manifest.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, medium in enumerate(media):
        if len(rows) >= questions:
            break
        file = manifest.parent / medium.name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            _write_atomically(file, medium.save)
        rows += [
            {
                "id": f"{prefix}-{number:06d}-{index}",
                "media": medium.name,
                "question": question.text,
                "answers": [question.answer],
                "options": list(question.options),
                "type": question.type,
            }
            for index, question in enumerate(medium.questions)
        ]
    lines = "".join(json.dumps(row) + "\n" for row in rows[:questions])
    _write_atomically(manifest, lambda path: path.write_text(lines, encoding="utf-8"))
    return manifest


def _write_atomically(file: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name first. Two processes that write the file write the same bytes."""
    temporary = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        save(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
