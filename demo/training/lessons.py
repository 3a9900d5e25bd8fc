"""A batch of lessons for the decoder: each row one picture and many questions about it, in one sequence.

    <s> USER: [visual tokens] \\n | What ... ASSISTANT: red </s> | Is there ... ASSISTANT: no </s> | ...

A block mask shows each question the picture and itself, and positions go on from the picture in every one of them, so
that each question stands where it would stand alone, at a tenth of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from demo.training.students import ANSWER, QUESTION
from demo.training.subject import Look
from pipelines.benchmarks.synthetic.scenes import PatchLabels, Question

IGNORED = -100


@dataclass
class Lesson:
    ids: Tensor  # (B, T); where visual tokens go it does not matter
    block: Tensor  # (B, T): 0 the picture, 1, 2, ... the questions, -1 padding
    position: Tensor  # (B, T)
    target: Tensor  # (B, T): the token that comes next, where that is an answer's
    seen: slice  # the columns of the visual tokens
    looks: Tensor  # (L, 4): row, column, head of attention, and 1 for the layer after the one that looks at patches
    aim: Tensor  # (L, T): where such a look should fall
    says: Tensor  # (S, 3): row, column, and a token that the look there should bring to mind
    spots: Tensor  # (P, 2): row, column of looks that should tell where
    where: Tensor  # (P, 2): what these should tell

    @property
    def mask(self) -> Tensor:
        """(B, 1, T, T) of 0 and the smallest number, as attention adds it."""
        length = self.ids.shape[1]
        mine = (self.block[:, None, :] == self.block[:, :, None]) | (self.block[:, None, :] == 0)
        seen = mine & torch.ones(length, length, dtype=torch.bool, device=mine.device).tril()
        blank = torch.zeros(seen.shape, device=mine.device)
        return blank.masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

    def to(self, device: torch.device) -> Lesson:
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def lesson(
    words: hf.PreTrainedTokenizerFast,
    asked: Sequence[Sequence[tuple[Question, Sequence[Look]]]],
    kept: np.ndarray,
    extra: Sequence[int] = (),
) -> Lesson:
    """`asked` are questions and where they should look; `kept` (B, N) the patches that each picture consists of.

    `extra` are columns among the N + E visual ones that are no patch (the CLS tokens of frames).
    """
    before, after = words(QUESTION).input_ids, words("\n", add_special_tokens=False).input_ids
    count = kept.shape[1] + len(extra)
    first = len(before) + count + len(after)
    patches = np.setdiff1d(np.arange(count), np.array(extra, dtype=int)) + len(before)
    texts = [f"{one.text}{ANSWER} {one.answer}" for row in asked for one, _ in row]
    coded = words(texts, add_special_tokens=False, return_offsets_mapping=True)
    codes = iter(zip(coded.input_ids, coded.offset_mapping, strict=True))
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    looks: list[tuple[int, int, int, int]] = []
    aims: list[np.ndarray] = []
    says: list[tuple[int, int, int]] = []
    places: list[tuple[int, int, float, float]] = []
    for number, questions in enumerate(asked):
        ids = [*before, *([0] * count), *after]
        block, position, target = [0] * first, list(range(first)), [IGNORED] * first
        for place, (one, wanted) in enumerate(questions, start=1):
            tokens, spans = next(codes)
            tokens = [*tokens, words.eos_token_id]
            prompt = sum(start < len(one.text) + len(ANSWER) for start, _ in spans)
            ends = []
            for look in wanted:
                column = len(ids) + next(at for at, (_, end) in enumerate(spans) if end == look.end)
                looks.append((number, column, look.head, 0))
                aims.append(_aim(look, kept[number], patches, first))
                says += [(number, column, _token(words, word)) for word in look.says]
                places += [(number, column, *look.where)] if look.where else []
                ends += [column] if column not in ends else []
            for head, column in enumerate(ends):  # who answers looks at the phrases that looked
                looks.append((number, len(ids) + prompt - 1, head, 1))
                aims.append(np.eye(1, column + 1, column, dtype=np.float32)[0])
            ids += tokens
            block += [place] * len(tokens)
            position += range(first, first + len(tokens))
            target += [IGNORED] * (prompt - 1) + tokens[prompt:] + [IGNORED]
        rows.append((ids, block, position, target))
    length = max(len(ids) for ids, *_ in rows)
    blank = (words.pad_token_id, -1, 0, IGNORED)
    ids, block, position, target = (
        torch.tensor([row[part] + [blank[part]] * (length - len(row[part])) for row in rows])
        for part in range(4)
    )
    seen = slice(len(before), len(before) + count)
    aim = torch.zeros(len(aims), length)
    for number, one in enumerate(aims):
        aim[number, : len(one)] = torch.from_numpy(one)
    spots, where = torch.tensor(places).reshape(-1, 4).split(2, 1)
    return Lesson(
        ids,
        block,
        position,
        target,
        seen,
        torch.tensor(looks),
        aim,
        torch.tensor(says),
        spots.long(),
        where.float(),
    )


@cache
def _token(words: hf.PreTrainedTokenizerFast, word: str) -> int:
    return words(f" {word}", add_special_tokens=False).input_ids[0]


def _aim(look: Look, kept: np.ndarray, patches: np.ndarray, first: int) -> np.ndarray:
    """Evenly on the patches that are there; on the first token if there are none.

    Counting shares its look between what is counted and the first token: how much falls there tells how many.
    """
    aim = np.zeros(first, dtype=np.float32)
    aim[patches[np.isin(kept, look.patches)]] = 1
    if look.sink or not aim.any():
        aim[0] = 1
    return aim / aim.sum()


def few(shown: PatchLabels, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` patches in their order: all centres, glyphs, then things' patches and some background by chance."""
    total = len(shown.thing)
    if number >= total:
        return np.arange(total)
    rank = rng.random(total) + (shown.thing >= 0) * rng.uniform(0.3, 1)
    rank[shown.glyph >= 0] += 2
    rank[shown.centre] += 4
    return np.sort(np.argsort(-rank)[:number])
