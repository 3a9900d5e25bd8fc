"""A check of media before a decoder sees them: often they are obviously something else."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Content = bytes | Path  # the bytes, or the local file that contains them
Pixels = NDArray[np.uint8]


def check_is_media(data: Content) -> None:
    """Raise ValueError for what servers and git send instead of a file."""
    head = _head(data)
    if not head:
        raise ValueError("it has no bytes")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg", b"<error")):
        raise ValueError(f"it is a web page or XML; {first_bytes(data)}")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer, not the file itself; run `git lfs pull`")


def _head(data: Content) -> bytes:
    if isinstance(data, bytes):
        return data[:256]
    with open(data, "rb") as file:
        return file.read(256)


def first_bytes(data: Content) -> str:
    """The first bytes, for error messages."""
    return f"it starts with {_head(data)[:48]!r}"
