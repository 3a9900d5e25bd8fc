"""Losses of the decoder's stage: projector and decoder learn to answer over a frozen tower.

Answers alone teach this slowly: the model has to find out that words and patches are about the same
things, how to look one up by the other, and how to say what it found. Auxiliary losses teach each
of these directly:

- `names`: a projected patch must be most like the embeddings of the words for what it shows;
- `looks`: in one layer, one head of the last token of `the red circle` must attend to the red
  circle's patches, and another, where things are counted, to their centres; one layer later, the
  prompt's last token must attend to the last token of the phrase;
- `says`: after that, the phrase's token must be near the words for what it attended to;
- `where`: a linear head must read from it the position (in a clip: the time), so that two phrases
  can be compared;
- `told`: linear heads must read from the decoder what else a task says about patches.

The linear heads are deleted in the end.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from demo.training.batches import IGNORED, TrainingBatch
from demo.training.patch_labels import labels
from pipelines.benchmarks.synthetic import motion
from pipelines.benchmarks.synthetic.scenes import COLOURS, GLYPHS, SHAPES, SIZES, Scene

ATTENTION_LAYER = 3  # the layer whose attention has a target
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


class AuxiliaryHeads(nn.Module):
    """Linear heads that read the task's labels from patches, and positions from phrases."""

    def __init__(self, told: dict[str, tuple[int, int]], width: int) -> None:
        super().__init__()
        self.patch = nn.ModuleDict(
            {name: nn.Linear(width, kinds) for name, (_, kinds) in told.items()}
        )
        self.depth = {name: depth for name, (depth, _) in told.items()}
        self.where = nn.Linear(width, 2)
        # Its errors would be too loud at first for a decoder that has learned something.
        nn.init.zeros_(self.where.weight)


class LossReport(NamedTuple):
    """The loss of a step, and what is logged of it."""

    loss: Tensor
    answers: Tensor  # whether the first token of each answer was right, in order
    parts: dict[str, float]


def compute_losses(
    model: hf.PreTrainedModel,
    words: dict[str, Tensor],
    extras: AuxiliaryHeads,
    batch: TrainingBatch,
    features: Tensor,
    names: Tensor,
    told: dict[str, Tensor],
    side: float,
) -> LossReport:
    """Run one batch and add up its losses.

    features: (B, N, D), from the tower
    names: (B, N, 4), from `word_targets`, or -1
    told: (B, N), what `extras` should read; -1 for nothing
    side: weight of the auxiliary losses
    """
    core = model.model
    decoder = core.language_model
    seen = core.multi_modal_projector(features)
    hidden = decoder.embed_tokens(batch.ids)
    hidden = torch.cat([hidden[:, : batch.seen.start], seen, hidden[:, batch.seen.stop :]], 1)
    mask = batch.mask
    turns = decoder.rotary_emb(hidden, batch.position)
    looking = reading = hidden.new_zeros(())
    for depth, layer in enumerate(decoder.layers):
        if depth in (ATTENTION_LAYER, ATTENTION_LAYER + 1):
            looking = looking + _looking(layer, hidden, turns, mask, batch, depth - ATTENTION_LAYER)
        for name, head in extras.patch.items():
            if depth == extras.depth[name]:
                said = head(hidden[:, batch.seen]).flatten(0, 1)
                reading = reading + F.cross_entropy(said, told[name].flatten(), ignore_index=-1)
        hidden = layer(
            hidden, attention_mask=mask, position_ids=batch.position, position_embeddings=turns
        )
        if depth == ATTENTION_LAYER:
            saying = _saying(decoder, words["said"], hidden, batch)
            placed = extras.where(decoder.norm(hidden[tuple(batch.spots.T)]))
            placing = _mean(
                F.smooth_l1_loss(placed, batch.where, reduction="none", beta=0.1).mean(-1)
            )
    where = batch.target != IGNORED
    said = model.lm_head(decoder.norm(hidden[where]))
    target = batch.target[where]
    answering = F.cross_entropy(said, target)
    naming = _naming(decoder.embed_tokens.weight, words, seen, names)
    firsts = (said.argmax(-1) == target)[_first(batch, where)]
    parts = {
        "answer": float(answering.detach()),
        "look": float(looking.detach()),
        "name": float(naming.detach()),
    }
    parts |= {"say": float(saying.detach()), "where": float(placing.detach())}
    if extras.patch:
        parts["told"] = float(reading.detach())
    return LossReport(
        answering + side * (looking + naming + reading + saying + 5 * placing), firsts, parts
    )


def _first(batch: TrainingBatch, where: Tensor) -> Tensor:
    """Mask of the answers' tokens that are the first of their answer."""
    block = batch.block[where]
    return torch.cat([block.new_ones(1, dtype=torch.bool), block[1:] != block[:-1]])


def _looking(
    layer: nn.Module,
    hidden: Tensor,
    turns: tuple[Tensor, Tensor],
    mask: Tensor,
    batch: TrainingBatch,
    which: int,
) -> Tensor:
    """Distance of the first heads' attention from where a phrase points."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    size = attention.head_dim
    mine = batch.looks[:, 3] == which
    row, column, head, _ = batch.looks[mine].T
    heads = int(head.max()) + 1
    query, key = (
        F.linear(normed, linear.weight[: heads * size]).unflatten(-1, (heads, size)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *turns)
    scores = (query[row, head, column][:, None] @ key[row, head].mT)[:, 0] * attention.scaling
    spread = (scores + mask[row, 0, column]).log_softmax(-1)
    each = F.kl_div(spread.clamp(min=-30), batch.aim[mine], reduction="none").sum(-1)
    # Counting, and the time of a movement, are learned last.
    weight = 1 + 2.0 * (head > 0) * (which == 0)
    return (weight * each).mean()


def _saying(decoder: nn.Module, words: Tensor, hidden: Tensor, batch: TrainingBatch) -> Tensor:
    """Loss that moves tokens near the words for what they attended to, and away from others."""
    row, column, token = batch.says.T
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
    """First token of every word that names a property."""
    of = {**_WORDS, "said": _SAID}
    return {
        kind: torch.tensor(
            [words(f" {name}", add_special_tokens=False).input_ids[0] for name in names],
            device=device,
        )
        for kind, names in of.items()
    }


def word_targets(scene: Scene) -> Tensor:
    """Indices (N, 4) of the words for shape, colour, size and glyph of each patch.

    One past the last word means none of them.
    """
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
