"""The second stage: projector and decoder learn to answer, over a tower that no longer changes.

Answers alone teach this slowly: the model has to find out that words and patches are about the same things, how to
look one up by the other, and how to say what it found. Each is taught directly, on the side:

- `names`: a projected patch must be most like the embeddings of the words for what it shows;
- `looks`: in one layer, one head of the last token of `the red circle` must attend to the red circle's patches, and
  another, where things are counted, to their centres; one layer on, the prompt's last token to that of the phrase;
- `says`: after its look, the phrase's token must be near the words for what it saw;
- `where`: and a linear head must read from it where that is (in a clip: when), so that two phrases can be compared;
- `told`: what else a subject has to say of patches, read from the decoder by linear heads.

The linear heads are thrown away in the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from demo.training.lessons import IGNORED, Lesson
from pipelines.benchmarks.synthetic import motion
from pipelines.benchmarks.synthetic.scenes import COLOURS, GLYPHS, SHAPES, SIZES, Scene, labels

LOOKING = 3  # the layer that is told where to look
_SAID = [
    *SHAPES,
    *COLOURS,
    *SIZES,
    *GLYPHS,
    "yes",
    "no",
    "appears",
    "disappears",
    "stays",
    *motion.DIRECTIONS,
]
_WORDS = {
    "shape": list(SHAPES),
    "colour": list(COLOURS),
    "size": list(SIZES),
    "glyph": list(GLYPHS),
}


class Extras(nn.Module):
    """What reads, from the decoder's patches, what a subject tells of them, and from phrases where things are."""

    def __init__(self, told: dict[str, tuple[int, int]], width: int) -> None:
        super().__init__()
        self.patch = nn.ModuleDict(
            {name: nn.Linear(width, kinds) for name, (_, kinds) in told.items()}
        )
        self.depth = {name: depth for name, (depth, _) in told.items()}
        self.where = nn.Linear(width, 2)
        nn.init.zeros_(
            self.where.weight
        )  # its errors are too loud at first, for a decoder that knows something


class Marks(NamedTuple):
    loss: Tensor
    answers: Tensor  # of each question, whether its first token was right, in order
    parts: dict[str, float]


def study(
    model: hf.PreTrainedModel,
    words: dict[str, Tensor],
    extras: Extras,
    lesson: Lesson,
    features: Tensor,
    names: Tensor,
    told: dict[str, Tensor],
    side: float,
) -> Marks:
    """One pass over a lesson. `features` (B, N, D) are the tower's, `names` (B, N, 4) what `named` says of them or -1.

    `told` (B, N) are what `extras` should read, -1 for nothing. `side` weighs what is taught on the side.
    """
    core = model.model
    decoder = core.language_model
    seen = core.multi_modal_projector(features)
    hidden = decoder.embed_tokens(lesson.ids)
    hidden = torch.cat([hidden[:, : lesson.seen.start], seen, hidden[:, lesson.seen.stop :]], 1)
    mask = lesson.mask
    turns = decoder.rotary_emb(hidden, lesson.position)
    looking = reading = hidden.new_zeros(())
    for depth, layer in enumerate(decoder.layers):
        if depth in (LOOKING, LOOKING + 1):
            looking = looking + _looking(layer, hidden, turns, mask, lesson, depth - LOOKING)
        for name, head in extras.patch.items():
            if depth == extras.depth[name]:
                said = head(hidden[:, lesson.seen]).flatten(0, 1)
                reading = reading + F.cross_entropy(said, told[name].flatten(), ignore_index=-1)
        hidden = layer(
            hidden, attention_mask=mask, position_ids=lesson.position, position_embeddings=turns
        )
        if depth == LOOKING:
            saying = _saying(decoder, words["said"], hidden, lesson)
            placed = extras.where(decoder.norm(hidden[tuple(lesson.spots.T)]))
            placing = _mean(
                F.smooth_l1_loss(placed, lesson.where, reduction="none", beta=0.1).mean(-1)
            )
    where = lesson.target != IGNORED
    said = model.lm_head(decoder.norm(hidden[where]))
    target = lesson.target[where]
    answering = F.cross_entropy(said, target)
    naming = _naming(decoder.embed_tokens.weight, words, seen, names)
    firsts = (said.argmax(-1) == target)[_first(lesson, where)]
    parts = {
        "answer": float(answering.detach()),
        "look": float(looking.detach()),
        "name": float(naming.detach()),
    }
    parts |= {"say": float(saying.detach()), "where": float(placing.detach())}
    if extras.patch:
        parts["told"] = float(reading.detach())
    return Marks(
        answering + side * (looking + naming + reading + saying + 5 * placing), firsts, parts
    )


def _first(lesson: Lesson, where: Tensor) -> Tensor:
    """Which of the answers' tokens begin one."""
    block = lesson.block[where]
    return torch.cat([block.new_ones(1, dtype=torch.bool), block[1:] != block[:-1]])


def _looking(
    layer: nn.Module,
    hidden: Tensor,
    turns: tuple[Tensor, Tensor],
    mask: Tensor,
    lesson: Lesson,
    which: int,
) -> Tensor:
    """How far the first heads of this layer are from attending where a phrase points."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    size = attention.head_dim
    mine = lesson.looks[:, 3] == which
    row, column, head, _ = lesson.looks[mine].T
    heads = int(head.max()) + 1
    query, key = (
        F.linear(normed, linear.weight[: heads * size]).unflatten(-1, (heads, size)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *turns)
    scores = (query[row, head, column][:, None] @ key[row, head].mT)[:, 0] * attention.scaling
    spread = (scores + mask[row, 0, column]).log_softmax(-1)
    each = F.kl_div(spread.clamp(min=-30), lesson.aim[mine], reduction="none").sum(-1)
    weight = 1 + 2.0 * (head > 0) * (
        which == 0
    )  # what is counted, and when it moves, is found last
    return (weight * each).mean()


def _saying(decoder: nn.Module, words: Tensor, hidden: Tensor, lesson: Lesson) -> Tensor:
    """How far tokens that have looked are from the words for what they saw, and from no others."""
    row, column, token = lesson.says.T
    length = hidden.shape[1]
    places, where = (row * length + column).unique(return_inverse=True)
    truth = hidden.new_zeros(len(places), len(words))
    truth[where, (token[:, None] == words).int().argmax(1)] = 1
    scores = decoder.norm(hidden.flatten(0, 1)[places]) @ decoder.embed_tokens.weight[words].T
    return 3 * F.binary_cross_entropy_with_logits(
        scores - 2, truth, pos_weight=hidden.new_tensor(5.0)
    )


def vocabulary(
    words: hf.PreTrainedTokenizerFast, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The token that each property's answer begins with."""
    of = {**_WORDS, "said": _SAID}
    return {
        kind: torch.tensor(
            [words(f" {name}", add_special_tokens=False).input_ids[0] for name in names],
            device=device,
        )
        for kind, names in of.items()
    }


def named(scene: Scene) -> Tensor:
    """(N, 4): which of the words for shape, colour, size and glyph each patch deserves; one past the last: none."""
    shown = labels(replace(scene, numbers=()))
    columns = []
    for kind, words in _WORDS.items():
        owners = scene.glyphs if kind == "glyph" else scene.things
        values = [
            words.index(one.name if kind == "glyph" else getattr(one, kind)) for one in owners
        ]
        where = shown.glyph if kind == "glyph" else shown.thing
        columns.append(torch.tensor([*values, len(words)])[torch.from_numpy(where)])
    return torch.stack(columns, -1)


def _naming(table: Tensor, words: dict[str, Tensor], seen: Tensor, names: Tensor) -> Tensor:
    total = seen.new_zeros(())
    for number, kind in enumerate(_WORDS):
        tokens = words[kind]
        scores = F.pad(seen @ table[tokens].T, (0, 1))  # none of them: 0
        truth = names[..., number].flatten()
        each = F.cross_entropy(scores.flatten(0, -2), truth, reduction="none", ignore_index=-1)
        total = (
            total
            + _mean(each[(truth >= 0) & (truth < len(tokens))])
            + _mean(each[truth == len(tokens)])
        )
    return total / len(_WORDS)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, len(values))
