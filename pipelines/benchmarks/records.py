"""Common parts of the records of LLaVA's files and of the hub, and of the prompts made of them."""

from collections.abc import Mapping
from typing import Any

from pipelines.data.formats.base import RawRecord

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

LLAVA_COLUMNS = ("question_id", "image", "text")  # of LLaVA's lists of questions


def llava_row(record: RawRecord, *suffixes: str, **fields: Any) -> RawRecord:
    """Return a record of LLaVA's questions as a row, without the suffixes of its prompt."""
    question = bare_question(record["text"], *suffixes)
    return {"media": [record["image"]], "question": question, **fields}


def hub_row(record: RawRecord, **fields: Any) -> RawRecord:
    """Return a record of the hub as a row, with the bytes of its image."""
    media = [embedded_image(record.get("image"))]
    return {"media": media, "question": record.get("question"), **fields}


def join_id(*columns: Any) -> str:
    """Return several columns as one id, without line breaks."""
    return "/".join(" ".join(str(column).split()) for column in columns)


def bare_question(text: str, *suffixes: str) -> str:
    """Return a question of LLaVA's files without the suffixes that prompts add again."""
    for suffix in suffixes or (SHORT,):
        text = text.removesuffix(suffix)
    return text


def embedded_image(value: Any) -> Any:
    """Return the bytes of an image of the hub without its former path: bytes tell images apart."""
    return value["bytes"] if isinstance(value, Mapping) and value.get("bytes") else value
