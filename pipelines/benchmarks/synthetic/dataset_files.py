"""A synthetic benchmark as ordinary files: media and a manifest, written once, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.benchmarks.synthetic.scenes import Question


class MediaFile(NamedTuple):
    """One image or clip: its file's name, what writes it, and what is asked about it."""

    name: str
    save: Callable[[Path], None]
    questions: list[Question]


def write_dataset(folder: Path, prefix: str, media: Iterator[MediaFile], questions: int, whole: bool) -> Path:
    """Write the first `questions` questions of `media` and return their manifest, at once if it is there.

    Every file appears under its name only when it is complete, the manifest last: a killed call leaves no manifest,
    and the next one goes on with the media that are missing. A part of a split has a manifest of its own beside the
    whole one's, and shares its media.
    """
    manifest = folder / ("manifest.jsonl" if whole else f"manifest-{questions}.jsonl")
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, medium in enumerate(media):
        if len(rows) >= questions:
            break
        file = folder / medium.name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            _whole(file, medium.save)
        rows += [
            {
                "id": f"{prefix}-{number:06d}-{place}",
                "media": medium.name,
                "question": question.text,
                "answers": [question.answer],
                "options": list(question.options),
                "type": question.type,
            }
            for place, question in enumerate(medium.questions)
        ]
    lines = "".join(json.dumps(row) + "\n" for row in rows[:questions])
    _whole(manifest, lambda path: path.write_text(lines, encoding="utf-8"))
    return manifest


def _whole(file: Path, save: Callable[[Path], Any]) -> None:
    """Save under another name first; two processes that write the same file write the same bytes."""
    part = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        save(part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
