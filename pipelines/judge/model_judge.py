"""A judge that asks a language model: equal questions once, and none again in a later run.

Each reply is a small file in the cache, written as soon as the reply arrives: a killed process
loses only the requests in flight, and none is paid for twice.
"""

import contextlib
import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from pipelines.judge import protocol
from pipelines.metrics.verdicts import Item, Judge, Verdict
from pipelines.results.storage import Folder, run_concurrently


class ModelJudge(Judge):
    """Asks with `protocol` what the cache, a folder on any file system, does not have.

    cache     None: nothing is stored
    identity  all that replies depend on, apart from the question
    """

    prompt_hash = protocol.PROMPT_HASH

    def __init__(self, cache: Folder | None, **identity: Any) -> None:
        self._identity = {**identity, "prompt": self.prompt_hash}
        # 256 subfolders, each opened once: on an object store, opening is slow
        self._subfolder = functools.cache(cache.child) if cache else None
        self._models: set[str] = set()  # as a server names them

    @property
    def version(self) -> str:
        return " ".join([protocol.VERSION, *sorted(self._models - {""})])

    @abstractmethod
    def ask(self, questions: Mapping[str, protocol.Messages]) -> Generator[Verdict]:
        """Yield a verdict for each question, in order, and `store` those without an error.

        questions: by their keys in the cache
        """

    def judge(self, items: Sequence[Item]) -> Iterator[Verdict]:
        conversations = [protocol.messages(item) for item in items]
        keys = [self._cache_key(messages) for messages in conversations]
        questions = dict(zip(keys, conversations, strict=True))
        stored = zip(questions, run_concurrently(self._stored, questions), strict=True)
        verdicts = {key: verdict for key, verdict in stored if verdict is not None}
        missing = {key: questions[key] for key in questions if key not in verdicts}
        with contextlib.closing(self.ask(missing)) as asked:
            for key in keys:
                if key not in verdicts:
                    verdicts[key] = next(asked)
                yield verdicts[key]

    def store(self, key: str, reply: str, model: str = "") -> None:
        """Store a reply; raises if that fails, because all replies would be paid for again."""
        self._models.add(model)
        if self._subfolder is not None:
            data = json.dumps({"reply": reply, "model": model}, ensure_ascii=False).encode()
            self._subfolder(key[:2]).write(f"{key}.json", data)

    def _cache_key(self, messages: protocol.Messages) -> str:
        """A digest of the judge and the question, the same in every process."""
        content = json.dumps({**self._identity, "messages": messages}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _stored(self, key: str) -> Verdict | None:
        """The verdict in the cache, if the present rules can read the reply."""
        if self._subfolder is None:
            return None
        try:
            stored = json.loads(self._subfolder(key[:2]).read(f"{key}.json"))
            verdict, model = protocol.parse(stored["reply"]), stored.get("model") or ""
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None  # missing, torn by a machine that went down, or of another form
        if verdict.error is not None:
            return None
        self._models.add(model)
        return verdict
