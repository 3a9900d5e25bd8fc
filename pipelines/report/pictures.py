"""Pictures that `jobs/visualize.py` wrote beside the runs, with their captions: Figures 2 and 4."""

import base64
import json
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.results.storage import Folder
from pipelines.text import redacted

PICTURES_FOLDER, PICTURES_INDEX = "pictures", "pictures.json"
MEDIA_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""Media types by the first bytes of a file."""


class Picture(NamedTuple):
    title: str
    caption: str
    uri: str  # a data: URI that contains the picture


def load_pictures(outputs: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Pictures of these output folders, and notes about those that cannot be shown."""
    pictures: list[Picture] = []
    notes: list[str] = []
    for uri in outputs:
        folder = Folder.of(uri).child(PICTURES_FOLDER)
        if not folder.exists(PICTURES_INDEX):
            continue
        try:
            entries = [
                (str(entry["file"]), str(entry["title"]), str(entry["caption"]))
                for entry in json.loads(folder.read(PICTURES_INDEX))
            ]
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"Cannot read {redacted(folder.uri)}/{PICTURES_INDEX}: {error!r}")
            continue
        for file, title, caption in entries:
            try:
                pictures.append(Picture(title, caption, _data_uri(folder, file)))
            except (ValueError, OSError) as error:
                notes.append(f"The picture {file} is left out: {error}")
    return pictures, notes


def _data_uri(folder: Folder, name: str) -> str:
    if "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"not the name of a file in {redacted(folder.uri)}")
    data = folder.read(name)
    media_type = next((kind for start, kind in MEDIA_TYPES.items() if data.startswith(start)), None)
    if media_type is None:
        raise ValueError("neither PNG nor JPEG")
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
