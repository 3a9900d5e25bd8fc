"""A row's prompt as model inputs, media apart from tokens, so that questions share their media.

Rows that follow each other and have the same media decode and preprocess them once: only the text
behind the media is tokenized again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from safetensors.torch import save
from torch import Tensor

from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Medium, Row
from pipelines.inference.preprocess import Preprocessor, preprocessor_for


@dataclass(frozen=True)
class EncodedPrompt:
    """The inputs of one prompt.

    The prefix ends with the last visual token, or the special token that closes the medium: both
    depend on the row alone. Without media it is everything but the last token.
    """

    text: str
    tokens: dict[str, Tensor]  # (1, T) each: input_ids, attention_mask, ...
    media: bytes  # the other inputs as safetensors; empty without media
    media_digest: bytes
    prefix_tokens: int

    @classmethod
    def of(
        cls,
        text: str,
        inputs: Mapping[str, Tensor],
        placeholders: Collection[int],
        special: Collection[int] = (),
    ) -> EncodedPrompt:
        """Split a processor's output into tokens and media.

        placeholders: ids of visual tokens; special: ids of special tokens
        """
        ids = inputs["input_ids"]
        tokens = {name: tensor for name, tensor in inputs.items() if tensor.shape == ids.shape}
        others = {
            name: tensor.contiguous() for name, tensor in inputs.items() if name not in tokens
        }
        media = save(others) if others else b""
        row, count = ids[0].tolist(), ids.shape[1]
        last = last_of(row, placeholders)
        prefix = count - 1 if last is None else min(last + 1, count - 1)
        if last is not None and prefix < count - 1 and row[prefix] in special:
            prefix += 1
        return cls(text, tokens, media, hashlib.sha256(media).digest(), prefix)

    @property
    def prefix_key(self) -> str:
        """Equal for prompts that begin with the same tokens and the same media."""
        prefix = self.tokens["input_ids"][0, : self.prefix_tokens].numpy().tobytes()
        return hashlib.sha256(self.media_digest + prefix).hexdigest()[:32]

    def inputs(self) -> bytes:
        """The tokens' inputs as safetensors."""
        return save({name: tensor.contiguous() for name, tensor in self.tokens.items()})

    def followed_by(self, text: str, suffix: list[int]) -> EncodedPrompt:
        """The prompt with the same prefix and other tokens behind it."""
        tokens = {}
        for name, tensor in self.tokens.items():
            # of a further input, text has the same value everywhere
            rest = suffix if name == "input_ids" else [int(tensor[0, -1])] * len(suffix)
            more = torch.tensor([rest], dtype=tensor.dtype)
            tokens[name] = torch.cat([tensor[:, : self.prefix_tokens], more], dim=1)
        return EncodedPrompt(text, tokens, self.media, self.media_digest, self.prefix_tokens)


def last_of(ids: list[int], placeholders: Collection[int]) -> int | None:
    """The place of the last placeholder; None without one."""
    places = (place for place in range(len(ids) - 1, -1, -1) if ids[place] in placeholders)
    return next(places, None)


class PromptEncoder:
    """Encodes rows one after the other, and keeps the latest media."""

    def __init__(self, preprocess: Preprocessor) -> None:
        self.preprocess = preprocess
        self._media: tuple[Medium, ...] = ()
        self._latest: EncodedPrompt | None = None
        self._plain: list[int] = []  # its text's ids, with one placeholder for each medium

    def __call__(self, row: Row, manifest: Manifest) -> EncodedPrompt:
        """Raises if the row is unusable."""
        self.preprocess.check(row)
        if row.media and row.media == self._media and (prompt := self._follow(row)) is not None:
            self.preprocess.check_length(prompt.tokens["input_ids"].shape[1])
            return prompt
        text, inputs = self.preprocess(row, manifest)
        preprocess = self.preprocess
        prompt = EncodedPrompt.of(text, inputs, preprocess.placeholders, preprocess.special)
        self._media, self._latest = row.media, prompt
        self._plain = self.preprocess.plain_ids(text)
        return prompt

    def _follow(self, row: Row) -> EncodedPrompt | None:
        """The latest prompt with this row's text behind its media; None if that is not possible."""
        latest, placeholders = self._latest, self.preprocess.placeholders
        if latest is None:
            return None
        # The processor may have changed more than placeholders: then the latest text does not end
        # in its own suffix.
        suffix = latest.tokens["input_ids"][0, latest.prefix_tokens :].tolist()
        head = self._plain[: len(self._plain) - len(suffix)]
        if self._plain != head + suffix or last_of(suffix, placeholders) is not None:
            return None
        text = self.preprocess.prompt(row)
        ids = self.preprocess.plain_ids(text)
        rest = ids[len(head) :]
        if not rest or ids[: len(head)] != head or last_of(rest, placeholders) is not None:
            return None
        return latest.followed_by(text, rest)

    def forget(self) -> None:
        """Drop the latest media."""
        self._media, self._latest, self._plain = (), None, []


@cache
def prompt_encoder(config: EvalConfig) -> PromptEncoder:
    """One for each process, however many tasks it runs."""
    return PromptEncoder(preprocessor_for(config))
