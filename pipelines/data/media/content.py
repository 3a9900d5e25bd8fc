"""What is handed in as a medium, looked at before a decoder sees it: often it is evidently something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Content = bytes | Path  # or the local file that holds them
Pixels = NDArray[np.uint8]


def check(data: Content) -> None:
    """A ValueError for what servers and git send in the place of a file."""
    head = _head(data)
    if not head:
        raise ValueError("it has no bytes")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg", b"<error")):
        raise ValueError(f"it is a web page or XML; {start(data)}")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer and not the file itself; `git lfs pull` gets it")


def _head(data: Content) -> bytes:
    if isinstance(data, bytes):
        return data[:256]
    with open(data, "rb") as file:
        return file.read(256)


def start(data: Content) -> str:
    """Its first bytes, for messages."""
    return f"it starts with {_head(data)[:48]!r}"
