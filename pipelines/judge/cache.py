"""Replies on disk by what was asked, so that no reply is paid for twice and an interrupted judging goes on.

One small file a reply, written whole as soon as it is there: who is killed loses the requests under way and no more.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.results.storage import Folder


class Cache:
    """Replies below one folder, on any file system; nothing is kept if there is none. For any number of threads."""

    def __init__(self, folder: Folder | None) -> None:
        self.folder = folder
        self._shelves = (
            {shelf: folder.child(shelf) for shelf in map("{:02x}".format, range(256))}
            if folder
            else {}
        )

    @staticmethod
    def key(**asked: Any) -> str:
        """What stands for a question: equal for equal content, in every process."""
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        if not self._shelves:
            return None
        try:
            found = json.loads(self._shelves[key[:2]].read(f"{key}.json"))
        except (FileNotFoundError, ValueError):  # not there, or torn by a machine that went down
            return None
        return found if isinstance(found, dict) and isinstance(found.get("reply"), str) else None

    def put(self, key: str, kept: dict[str, Any]) -> None:
        """Keep it, or fail: who cannot keep replies would pay for all of them again."""
        if self._shelves:
            self._shelves[key[:2]].write(
                f"{key}.json", json.dumps(kept, ensure_ascii=False).encode()
            )
