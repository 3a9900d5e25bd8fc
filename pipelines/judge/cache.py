"""Stores a judge's replies, so that none is paid for twice and interrupted judging can resume.

One small file per reply, written as soon as the reply arrives: a killed process loses only the
requests in flight.
"""

import hashlib
import json
from functools import cache
from typing import Any

from pipelines.judge import protocol
from pipelines.metrics.verdicts import Verdict
from pipelines.results.storage import Folder


class Cache:
    """Replies of one judge below a folder on any file system; without one, nothing is stored.

    Safe to use from any number of threads.
    """

    def __init__(self, folder: Folder | None, **judge: Any) -> None:
        self._judge = judge  # all that its replies depend on, apart from the question
        # 256 subfolders, each opened once: on an object store, opening is slow
        self._subfolder = cache(folder.child) if folder else None

    def key(self, messages: protocol.Messages) -> str:
        """A digest of the judge and the question, the same in every process."""
        content = json.dumps({**self._judge, "messages": messages}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def get(self, key: str) -> tuple[Verdict, str] | None:
        """The stored verdict and the model's name, if the present rules can read the reply."""
        if self._subfolder is None:
            return None
        try:
            stored = json.loads(self._subfolder(key[:2]).read(f"{key}.json"))
            verdict, model = protocol.parse(stored["reply"]), stored.get("model") or ""
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None  # missing, torn by a machine that went down, or of another form
        return (verdict, model) if verdict.error is None else None

    def put(self, key: str, reply: str, model: str = "") -> None:
        """Store a reply; raises if that fails, because all replies would be paid for again."""
        if self._subfolder is not None:
            data = json.dumps({"reply": reply, "model": model}, ensure_ascii=False).encode()
            self._subfolder(key[:2]).write(f"{key}.json", data)
