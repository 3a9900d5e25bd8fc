"""Figures 2 and 4, where `jobs/visualize.py` has made some beside the runs: pictures with their captions."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.results.storage import Folder
from pipelines.text import redacted

PICTURES_FOLDER, PICTURES_INDEX = "pictures", "pictures.json"
KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}  # by how a file begins


class Picture(NamedTuple):
    title: str
    caption: str
    uri: str  # data: the picture itself


def load_pictures(outputs: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Those of these output folders, and what of them cannot be shown."""
    found: list[Picture] = []
    notes: list[str] = []
    for uri in outputs:
        folder = Folder.of(uri).child(PICTURES_FOLDER)
        if not folder.exists(PICTURES_INDEX):
            continue
        try:
            listed = [
                (str(each["file"]), str(each["title"]), str(each["caption"]))
                for each in json.loads(folder.read(PICTURES_INDEX))
            ]
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"{redacted(folder.uri)}/{PICTURES_INDEX} cannot be read: {error!r}")
            continue
        for file, title, caption in listed:
            try:
                found.append(Picture(title, caption, _data(folder, file)))
            except (ValueError, OSError) as error:
                notes.append(f"The picture {file} is left out: {error}")
    return found, notes


def _data(folder: Folder, name: str) -> str:
    if "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"it is not a file in {redacted(folder.uri)}")
    data = folder.read(name)
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("it is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
