"""A text model from a folder or the hub, in a pool of Ray actors. For who must not send answers anywhere.

Verdicts come in the items' order, whichever actor is done first; a batch that an actor dies with is judged again.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.config.paths import model_fingerprint
from pipelines.inference import cluster
from pipelines.judge import protocol
from pipelines.judge.cache import Cache
from pipelines.metrics.verdicts import Item, Judge, Unavailable, Verdict
from pipelines.results.storage import Folder
from pipelines.text import describe_error

QUEUED = 2  # batches with each actor: one being judged, one waiting
RESTARTS = 3  # of an actor that dies, and attempts at the batch that it had
NEW_TOKENS = 64  # a verdict has about twenty


class Local(Judge):
    """Loads `model` in every actor of the pool, and takes the words that it finds the most likely.

    cache           where replies are kept; None: nowhere
    actors          fewest and most, None: one a GPU, or a single one
    gpus_per_actor  None: 1 where the cluster has GPUs, else 0
    address         of the Ray cluster, None: the one of this job, or one on this machine
    """

    prompt_hash = protocol.PROMPT_HASH

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        cache: Folder | None = None,
        actors: tuple[int, int] | None = None,
        gpus_per_actor: float | None = None,
        batch_size: int = 16,
        address: str | None = None,
    ) -> None:
        path = Path(model).expanduser()
        self._model = str(path.absolute()) if path.is_dir() else model
        self._revision, self._address = revision, address
        self._fingerprint = model_fingerprint(self._model, revision)
        self.name = f"local/{Path(self._model).name}"
        self._cache = Cache(cache)
        self._actors, self._gpus, self._batch_size = actors, gpus_per_actor, batch_size

    @property
    def version(self) -> str:
        return f"{protocol.VERSION} {self._fingerprint}"

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        pool: list[Any] = []
        waiting: deque[tuple[list[Item], list[Verdict | None], Any]] = deque()
        todo, turn = iter(items), cycle([0])
        try:
            while batch := list(islice(todo, self._batch_size)):
                found = [self._known(item) for item in batch]
                missing = [
                    item for item, verdict in zip(batch, found, strict=True) if verdict is None
                ]
                if missing and not pool:  # nothing is loaded for what is known already
                    pool = self._start()
                    turn = cycle(range(len(pool)))
                waiting.append(
                    (batch, found, pool[next(turn)].judge.remote(missing) if missing else None)
                )
                if len(waiting) >= max(1, len(pool) * QUEUED):
                    yield from self._take(*waiting.popleft())
            while waiting:
                yield from self._take(*waiting.popleft())
        finally:
            for actor in pool:
                ray.kill(actor)

    def _start(self) -> list[Any]:
        cluster.join(self._address)
        total = ray.cluster_resources()
        alone = (
            None if total.get("GPU") and self._gpus != 0 else (1, 1)
        )  # memory would not hold one a CPU
        share = cluster.plan_resources(self._actors or alone, self._gpus, None)
        fit = total["CPU"] / share.cpus if not share.gpus else total["GPU"] / share.gpus
        size = max(
            share.least, min(share.most, int(fit))
        )  # one that never starts would be waited for
        options = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": RESTARTS,
            "max_task_retries": RESTARTS,
        }
        actor = ray.remote(**options)(Reader)
        return [
            actor.remote(self._model, self._revision, share.gpus > 0, share.threads)
            for _ in range(size)
        ]

    def _take(
        self, batch: list[Item], found: list[Verdict | None], judged: Any
    ) -> Iterator[Verdict]:
        """A batch's verdicts: those that were known, and those that an actor has come to meanwhile."""
        fresh: Iterator[Verdict] = iter(())
        if judged is not None:
            try:
                fresh = iter(ray.get(judged))
            except ray.exceptions.RayActorError as error:
                why = (
                    str(error).strip().splitlines()[-1]
                )  # the traceback's end, if it could not be loaded
                raise Unavailable(f"{self.name} does not work: {why}") from None
        for item, known in zip(batch, found, strict=True):
            verdict = known if known is not None else next(fresh)
            if known is None and verdict.error is None:
                self._cache.put(self._key(item), {"reply": verdict.reply})
            yield verdict

    def _known(self, item: Item) -> Verdict | None:
        kept = self._cache.get(self._key(item))
        with contextlib.suppress(ValueError):  # read by an older rule
            return protocol.parse(kept["reply"]) if kept else None
        return None

    def _key(self, item: Item) -> str:
        return Cache.key(
            model=self._fingerprint, prompt=self.prompt_hash, messages=protocol.messages(item)
        )


class Reader:
    """One loaded model that judges batches; by itself without Ray, as an actor within."""

    def __init__(self, model: str, revision: str | None, gpu: bool, threads: int | None) -> None:
        transformers_logging.disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if gpu else "cpu")
        source: dict[str, Any] = {
            "revision": revision,
            "trust_remote_code": False,
        }  # unset, transformers would ask
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left", **source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype="auto", use_safetensors=True, **source
        )
        self.model = loaded.to(self.device).eval()

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts on a batch; replies that cannot be read are asked for again, those alone."""
        verdicts: list[Verdict] = [Verdict(None, None)] * len(items)
        asked = {place: protocol.messages(item) for place, item in enumerate(items)}
        for _ in range(protocol.REPLIES):
            again = {}
            for place, reply in zip(asked, self._replies(list(asked.values())), strict=True):
                if isinstance(reply, Exception):
                    verdicts[place] = Verdict(None, None, "", f"failed: {describe_error(reply)}")
                    continue
                try:
                    verdicts[place] = protocol.parse(reply)
                except ValueError as error:
                    verdicts[place] = Verdict(
                        None, None, reply[: protocol.KEPT], f"malformed: {error}"
                    )
                    again[place] = protocol.again(protocol.messages(items[place]), reply)
            asked = again
            if not asked:
                break
        return verdicts

    def _replies(self, asked: list[protocol.Messages]) -> list[str | Exception]:
        """What the model says to each; a batch that fails is halved, until what fails is alone."""
        try:
            return list(self._generate([self._text(messages) for messages in asked]))
        except (RuntimeError, ValueError, IndexError) as error:  # memory is a RuntimeError, too
            if len(asked) == 1:
                return [error]
        half = len(asked) // 2
        return self._replies(asked[:half]) + self._replies(asked[half:])

    def _text(self, messages: protocol.Messages) -> str:
        """The conversation as the model knows conversations; as plain text where it has no template."""
        if not self.tokenizer.chat_template:
            return "\n\n".join([message["content"] for message in messages] + [""])
        for form in (messages, _without_system(messages)):  # some templates refuse a system message
            with contextlib.suppress(Exception):
                return str(
                    self.tokenizer.apply_chat_template(
                        form, tokenize=False, add_generation_prompt=True
                    )
                )
        raise ValueError(
            "the model's chat template takes no conversation of user and assistant; choose another model"
        )

    @torch.inference_mode()
    def _generate(self, texts: list[str]) -> list[str]:
        special = not self.tokenizer.chat_template  # a template writes them itself
        inputs = self.tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=special
        ).to(self.device)
        out = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return list(
            self.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
        )


def _without_system(messages: protocol.Messages) -> protocol.Messages:
    system, first, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]
