"""Training batches of the decoder: each row has one picture and many questions about it.

    <s> USER: [visual tokens] \\n | What ... ASSISTANT: red </s> | Is there ... ASSISTANT: no </s> |

A block mask shows each question only the picture and itself. The positions of every question
continue after the picture, as if it were alone. So a question costs a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from demo.training.patch_labels import PatchLabels
from demo.training.small_models import BEFORE_ANSWER, BEFORE_QUESTION
from demo.training.tasks import AttentionTarget
from pipelines.benchmarks.synthetic.scenes import Question

IGNORED = -100


@dataclass
class TrainingBatch:
    """Tensors of B rows with T tokens, and what attention should do at some of them."""

    ids: Tensor  # (B, T); any value in the columns of visual tokens
    block: Tensor  # (B, T): 0 the picture, 1, 2, ... the questions, -1 padding
    position: Tensor  # (B, T)
    target: Tensor  # (B, T): the next token if it belongs to an answer, else IGNORED
    seen: slice  # the columns of the visual tokens
    # (L, 4): row, column, head, and layer: 0 attends to patches, 1 is the layer after it
    looks: Tensor
    aim: Tensor  # (L, T): where that attention should fall
    says: Tensor  # (S, 3): row, column, and a token that should be near after attending
    spots: Tensor  # (P, 2): row and column of tokens that should know a position
    where: Tensor  # (P, 2): that position

    @property
    def mask(self) -> Tensor:
        """The additive attention mask (B, 1, T, T): 0 or the smallest number."""
        length = self.ids.shape[1]
        mine = (self.block[:, None, :] == self.block[:, :, None]) | (self.block[:, None, :] == 0)
        seen = mine & torch.ones(length, length, dtype=torch.bool, device=mine.device).tril()
        blank = torch.zeros(seen.shape, device=mine.device)
        return blank.masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

    def to(self, device: torch.device) -> TrainingBatch:
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def make_batch(
    words: hf.PreTrainedTokenizerFast,
    asked: Sequence[Sequence[tuple[Question, Sequence[AttentionTarget]]]],
    kept: np.ndarray,
    extra: Sequence[int] = (),
) -> TrainingBatch:
    """Put the questions of each picture into one sequence.

    asked: questions with their attention targets, by picture
    kept: (B, N), the patches of each picture
    extra: columns among the N + E visual ones that are not patches (the CLS tokens of frames)
    """
    before, after = (
        words(BEFORE_QUESTION).input_ids,
        words("\n", add_special_tokens=False).input_ids,
    )
    count = kept.shape[1] + len(extra)
    first = len(before) + count + len(after)
    patches = np.setdiff1d(np.arange(count), np.array(extra, dtype=int)) + len(before)
    texts = [f"{one.text}{BEFORE_ANSWER} {one.answer}" for row in asked for one, _ in row]
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
            prompt = sum(start < len(one.text) + len(BEFORE_ANSWER) for start, _ in spans)
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
    return TrainingBatch(
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


def _aim(look: AttentionTarget, kept: np.ndarray, patches: np.ndarray, first: int) -> np.ndarray:
    """Spread attention evenly over the kept patches; without any, put it on the first token.

    Counting shares its attention with the first token: the share there depends on the count.
    """
    aim = np.zeros(first, dtype=np.float32)
    aim[patches[np.isin(kept, look.patches)]] = 1
    if look.sink or not aim.any():
        aim[0] = 1
    return aim / aim.sum()


def choose_patches(shown: PatchLabels, number: int, rng: np.random.Generator) -> np.ndarray:
    """Choose patches, in their order: all centres, glyphs, then random ones, things preferred."""
    total = len(shown.thing)
    if number >= total:
        return np.arange(total)
    rank = rng.random(total) + (shown.thing >= 0) * rng.uniform(0.3, 1)
    rank[shown.glyph >= 0] += 2
    rank[shown.centre] += 4
    return np.sort(np.argsort(-rank)[:number])
