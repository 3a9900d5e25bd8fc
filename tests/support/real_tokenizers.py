"""Tokenizers with the real ids of Vicuna and Qwen2.5, for the few words that tests use.

The real files hold megabytes. Here each word has the merges that build it letter by letter; the
pieces on the way have ids from UNUSED on, which no text in a test may yield.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post_processors
from transformers import PreTrainedTokenizerFast

UNUSED = 200_000

VICUNA = {
    "▁A": 319,
    "▁chat": 13563,
    "▁between": 1546,
    "▁a": 263,
    "▁curious": 12758,
    "▁user": 1404,
    "▁human": 5199,
    "▁and": 322,
    "▁an": 385,
    "▁artificial": 23116,
    "▁intelligence": 21082,
    "▁assistant": 20255,
    ".": 29889,
    "▁The": 450,
    "▁gives": 4076,
    "▁helpful": 8444,
    ",": 29892,
    "▁detailed": 13173,
    "▁pol": 1248,
    "ite": 568,
    "▁answers": 6089,
    "▁to": 304,
    "▁the": 278,
    "'": 29915,
    "s": 29879,
    "▁questions": 5155,
    "▁US": 3148,
    "ER": 1001,
    ":": 29901,
    "▁": 29871,
    "What": 5618,
    "▁is": 338,
    "▁this": 445,
    "?": 29973,
    "SS": 1799,
    "IST": 9047,
    "ANT": 13566,
}
VICUNA_BYTES = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
VICUNA_SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000}

QWEN = {
    "system": 8948,
    "\n": 198,
    "You": 2610,
    " are": 525,
    " a": 264,
    " helpful": 10950,
    " assistant": 17847,
    ".": 13,
    "user": 872,
    "What": 3838,
    " is": 374,
    " this": 419,
    "?": 30,
    "assistant": 77091,
    "<": 27,
    " seconds": 6486,
    ">": 29,
    **{str(digit): 15 + digit for digit in range(10)},
}
QWEN_SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


def _bpe(words: dict[str, int], **options: Any) -> models.BPE:
    vocab, merges = dict(words), []
    # BPE does the first merge in the list that fits. Those of words that begin with a space come
    # first, so that no other breaks into them.
    for word in sorted(words, key=lambda word: word[0] not in "▁Ġ"):
        for piece in (*word, *(word[:end] for end in range(2, len(word)))):
            vocab.setdefault(piece, UNUSED + len(vocab))
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    return models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), **options)


def _with_special(tokenizer: Tokenizer, special: Iterable[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return tokenizer


def vicuna(*, video: bool) -> PreTrainedTokenizerFast:
    """Vicuna's tokenizer as converted checkpoints have it: "▁" before each stretch of text."""
    special = VICUNA_SPECIAL | ({"<video>": 32001, "<pad>": 32002} if video else {"<pad>": 32001})
    words = VICUNA | VICUNA_BYTES | special
    tokenizer = Tokenizer(_bpe(words, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = post_processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_special(tokenizer, special),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def qwen() -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer: bytes, split into words by an expression."""
    words = {_bytes(word): token for word, token in QWEN.items()} | QWEN_SPECIAL
    tokenizer = Tokenizer(_bpe(words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_special(tokenizer, QWEN_SPECIAL),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def _bytes(word: str) -> str:
    return word.replace(" ", "Ġ").replace("\n", "Ċ")


def declare_class(folder: Path, name: str) -> None:
    """Name the tokenizer's class as the real checkpoint does."""
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values.pop("backend", None)
    file.write_text(json.dumps({**values, "tokenizer_class": name}))
