"""A text model from a folder or the hub, in a pool of Ray actors; no answer leaves the cluster.

Verdicts come in the order of the items, whichever actor finishes first. If an actor dies, its
batch is judged again.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.config.model_version import model_fingerprint
from pipelines.inference import cluster
from pipelines.judge import protocol
from pipelines.judge.model_judge import ModelJudge
from pipelines.metrics.verdicts import Unavailable, Verdict
from pipelines.results.storage import Folder
from pipelines.text import describe_error

MAX_RESTARTS = 3  # of an actor that dies, and attempts at the batch it had
MAX_NEW_TOKENS = 64  # a verdict has about twenty


class Local(ModelJudge):
    """Loads `model` in every actor of the pool and decodes greedily.

    cache           folder of stored replies; None: nothing is stored
    actors          minimum and maximum; None: one per GPU, or a single one without GPUs
    gpus_per_actor  None: 1 if the cluster has GPUs, else 0
    address         of the Ray cluster; None: the one of this job, or a new one on this machine
    """

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
        fingerprint = model_fingerprint(self._model, revision)
        super().__init__(cache, model=fingerprint)
        self._models.add(fingerprint)
        self.name = f"local/{Path(self._model).name}"
        self._actors, self._gpus, self._batch_size = actors, gpus_per_actor, batch_size

    def ask(self, questions: Mapping[str, protocol.Messages]) -> Generator[Verdict]:
        keys, pool = list(questions), self._start()
        batches = [keys[i : i + self._batch_size] for i in range(0, len(keys), self._batch_size)]
        try:
            results = [
                actor.judge.remote([questions[key] for key in batch])
                for actor, batch in zip(cycle(pool), batches, strict=False)
            ]
            for batch, result in zip(batches, results, strict=True):
                for key, verdict in zip(batch, ray.get(result), strict=True):
                    if verdict.error is None:
                        self.store(key, verdict.reply)
                    yield verdict
        except ray.exceptions.RayActorError as error:
            # the end of the traceback says why the model could not be loaded
            reason = str(error).strip().splitlines()[-1]
            raise Unavailable(f"{self.name} does not work: {reason}") from None
        finally:
            for actor in pool:
                ray.kill(actor)

    def _start(self) -> list[Any]:
        cluster.join(self._address)
        total = ray.cluster_resources()
        # one actor without a GPU: the memory would not hold a model per CPU
        default = None if total.get("GPU") and self._gpus != 0 else (1, 1)
        share = cluster.plan_resources(self._actors or default, self._gpus, None)
        # an actor that does not fit would never start, and would be waited for
        fitting = int(total["GPU"] / share.gpus if share.gpus else total["CPU"] / share.cpus)
        size = max(share.min_actors, min(share.max_actors, fitting))
        actor = ray.remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )(Reader)
        arguments = self._model, self._revision, share.gpus > 0, share.threads
        return [actor.remote(*arguments) for _ in range(size)]


class Reader:
    """One loaded model that judges batches; usable without Ray."""

    def __init__(self, model: str, revision: str | None, gpu: bool, threads: int | None) -> None:
        transformers_logging.disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if gpu else "cpu")
        # if trust_remote_code is not set, transformers asks on the terminal
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left", **source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype="auto", use_safetensors=True, **source
        )
        self.model = loaded.to(self.device).eval()

    def judge(self, questions: Sequence[protocol.Messages]) -> list[Verdict]:
        """Verdicts on a batch; only malformed replies are requested again."""
        verdicts = [Verdict(None, None)] * len(questions)
        open_questions = dict(enumerate(questions))
        for _ in range(protocol.MAX_REPLIES):
            replies = self._replies(list(open_questions.values()))
            asked, open_questions = list(open_questions), {}
            for i, reply in zip(asked, replies, strict=True):
                if isinstance(reply, Exception):
                    verdicts[i] = Verdict(None, None, "", f"failed: {describe_error(reply)}")
                    continue
                verdicts[i] = protocol.parse(reply)
                if verdicts[i].error:
                    open_questions[i] = protocol.follow_up(questions[i], reply)
            if not open_questions:
                break
        return verdicts

    def _replies(self, conversations: list[protocol.Messages]) -> list[str | Exception]:
        """The model's replies; a batch that fails is halved until the failing item is alone."""
        try:
            return list(self._generate([self._text(messages) for messages in conversations]))
        except (RuntimeError, ValueError, IndexError) as error:  # RuntimeError: out of memory, too
            if len(conversations) == 1:
                return [error]
        half = len(conversations) // 2
        return self._replies(conversations[:half]) + self._replies(conversations[half:])

    def _text(self, messages: protocol.Messages) -> str:
        """The conversation in the model's chat template."""
        system, first, *rest = messages
        user = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        for form in (messages, [user, *rest]):  # some templates refuse system messages
            with suppress(Exception):
                return str(
                    self.tokenizer.apply_chat_template(
                        form, tokenize=False, add_generation_prompt=True
                    )
                )
        raise ValueError(
            "the model has no chat template, or one that rejects a conversation of user and"
            " assistant; choose another model"
        )

    @torch.inference_mode()
    def _generate(self, texts: list[str]) -> list[str]:
        # the chat template has written the special tokens
        inputs = self.tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.device)
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))
