"""Losses of the tower's stage: a vision tower learns what every patch shows.

Questions alone teach a tower very slowly; a label for each of hundreds of patches teaches it in
minutes. The labels are what answers will need: the kind of thing (shape and colour together, and
each alone), its size, its middle, whether this patch holds the middle, and the glyph. CLS learns
which kinds are anywhere in the picture, so that its attention means something. The linear heads
that read all of this are deleted in the end.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.training.patch_labels import PATCH, labels
from pipelines.benchmarks.synthetic.scenes import COLOURS, GLYPHS, SHAPES, SIZES, Scene

_SHAPE, _COLOUR, _SIZE, _GLYPH = (list(names) for names in (SHAPES, COLOURS, SIZES, GLYPHS))
KINDS = len(SHAPES) * len(COLOURS)
HEADS = {
    "kind": KINDS + 1,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "glyph": len(GLYPHS) + 1,
    "middle": 2,
    "centre": 1,
}
# Radians a patch. The last four together distinguish any two patches.
_WAVES = (0.13, 0.22, 1.07, 1.82, 2.39)
_FOCUS = 1.6  # sharpness of each head's initial attention to a neighbour


class PatchHeads(nn.Module):
    """Linear heads that read labels from the tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.ModuleDict({name: nn.Linear(width, size) for name, size in HEADS.items()})
        self.picture = nn.Linear(width, KINDS)
        self.around = nn.Linear(width, 9 * 32)


def dense_labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Labels of every patch of every scene; -1, or 0 for `kind` and `glyph`, for an empty one."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*HEADS, "picture", "around")}
    for scene in scenes:
        seen = labels(replace(scene, numbers=()))
        known = [
            (_SHAPE.index(t.shape), _COLOUR.index(t.colour), _SIZE.index(t.size))
            for t in scene.things
        ]
        one = np.array([*known, (-1, -1, -1)])  # index -1 reads the last
        shape, colour, size = one[seen.thing].T
        rows["shape"].append(shape)
        rows["colour"].append(colour)
        rows["size"].append(size)
        rows["kind"].append(np.where(shape < 0, 0, 1 + shape * len(COLOURS) + colour))
        written = np.array([*(1 + _GLYPH.index(glyph.name) for glyph in scene.glyphs), 0])
        rows["glyph"].append(written[seen.glyph])
        middle = np.array([*((t.x, t.y) for t in scene.things), (0, 0)]) / scene.side - 0.5
        rows["middle"].append(middle[seen.thing].astype(np.float32))
        rows["centre"].append(np.isin(np.arange(len(seen.thing)), seen.centre).astype(np.float32))
        present = np.zeros(KINDS, dtype=np.float32)
        present[one[:-1, 0] * len(COLOURS) + one[:-1, 1]] = 1
        rows["picture"].append(present)
        rows["around"].append(_around(np.concatenate([seen.cover, seen.ink], 1)))
    return {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()}


def _around(cells: np.ndarray) -> np.ndarray:
    """Contents of each patch and of its eight neighbours."""
    side = int(len(cells) ** 0.5)
    grid = np.pad(cells.reshape(side, side, -1), ((1, 1), (1, 1), (0, 0)))
    return np.concatenate(
        [grid[y : y + side, x : x + side] for y in range(3) for x in range(3)], 2
    ).reshape(side * side, -1)


def compute_loss(
    heads: PatchHeads, early: Tensor, hidden: Tensor, truth: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the share of things' patches that each head gets right.

    `hidden` (B, 1 + N, D) is the last layer, CLS first. `early` is a layer before, where outlines
    in the neighbourhood must be known, because shapes and glyphs are made of them.
    """
    said = {name: head(hidden[:, 1:]) for name, head in heads.patch.items()}
    thing, glyph = truth["kind"] > 0, truth["glyph"] > 0
    total = F.binary_cross_entropy_with_logits(heads.picture(hidden[:, 0]), truth["picture"])
    right: dict[str, float] = {}
    sketch = F.binary_cross_entropy_with_logits(
        heads.around(early[:, 1:]), truth["around"], reduction="none"
    ).mean(-1)
    near = truth["around"].any(-1)
    total = total + 4 * sketch[near].mean() + sketch[~near].mean()
    right["sketch"] = float(sketch[near].mean().detach())
    for name, where, times in (("kind", thing, 1), ("glyph", glyph, 2)):  # glyphs are learned last
        if where.any():
            total = total + times * F.cross_entropy(said[name][where], truth[name][where])
        total = total + F.cross_entropy(said[name][~where], truth[name][~where])
        right[name] = float((said[name][where].argmax(-1) == truth[name][where]).float().mean())
        right[f"no {name}"] = float((said[name][~where].argmax(-1) == 0).float().mean())
    for name in ("shape", "colour", "size"):
        total = total + 0.5 * F.cross_entropy(said[name][thing], truth[name][thing])
        right[name] = float((said[name][thing].argmax(-1) == truth[name][thing]).float().mean())
    total = total + 5 * F.smooth_l1_loss(said["middle"][thing], truth["middle"][thing])
    centre = said["centre"][..., 0]
    weight = 1 + 10 * truth["centre"]
    total = total + 2 * F.binary_cross_entropy_with_logits(centre, truth["centre"], weight=weight)
    right["centre"] = float((centre[truth["centre"] > 0] > 0).float().mean())
    return total, right


def pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pixels (B, 3, H, W) as the checkpoint's image processor scales them: 127.5 is 0, 255 is 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def initialise(tower: nn.Module, sample: Tensor) -> None:
    """Initialise heads that attend to neighbouring patches, as a convolution does.

    Positions become waves over rows and columns. The queries of each head are those waves moved by
    a patch or two, so that its attention falls there from the first step on. Patches become their
    principal components over `sample`, equally loud, since outlines would drown in plain colour. A
    tower finds this by itself, but needs hours.
    """
    width, side = tower.embeddings.position_embedding.embedding_dim, sample.shape[-1] // PATCH
    waves = torch.tensor(_WAVES)
    row, column = (
        torch.arange(side * side).div(side, rounding_mode="floor"),
        torch.arange(side * side) % side,
    )
    table = torch.cat(
        [
            turn(place[:, None] * waves)
            for turn in (torch.sin, torch.cos)
            for place in (column, row)
        ],
        1,
    )
    count = len(_WAVES)
    neighbours = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    with torch.no_grad():
        places = tower.embeddings.position_embedding.weight
        places.normal_(std=0.02)
        places[1:, : table.shape[1]] = table
        patches = F.unfold(sample, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        strength, axes = torch.linalg.eigh(patches.T.cov())
        axes = (axes / (strength + 0.01).sqrt()).T.flip(0)[: width - table.shape[1]]
        loud = torch.cat([torch.zeros(table.shape[1], axes.shape[1]), 0.4 * axes])
        tower.embeddings.patch_embedding.weight.copy_(
            loud.view_as(tower.embeddings.patch_embedding.weight)
        )
        places[1:] -= loud @ patches.mean(0)
        # Dull and bright patches stay about equally loud.
        places[1:, -4:] += torch.tensor([2.0, -2.0, 2.0, -2.0])
        for depth, layer in enumerate(tower.encoder.layers):
            attention = layer.self_attn
            size = attention.head_dim
            for linear in (attention.v_proj, attention.out_proj, layer.mlp.fc1, layer.mlp.fc2):
                nn.init.normal_(linear.weight, std=0.6 * linear.in_features**-0.5)
            for linear in (attention.out_proj, layer.mlp.fc2):
                linear.weight[: table.shape[1]] = 0  # positions stay readable in deeper layers
            if depth == len(tower.encoder.layers) - 1 or size < 16:
                continue
            for head in range(attention.num_heads):
                reach = 1 + depth // 2 % 2
                dx, dy = neighbours[head % len(neighbours)]
                query, key = (torch.zeros(size, width) for _ in range(2))
                for axis, step in enumerate((dx * reach, dy * reach)):
                    for wave in range(4):
                        sin, cos = (
                            axis * count + count - 4 + wave,
                            (2 + axis) * count + count - 4 + wave,
                        )
                        out, angle = 4 * (2 * axis) + wave, waves[count - 4 + wave] * step
                        gain = (_FOCUS * size**0.5) ** 0.5
                        key[out, sin] = key[out + 4, cos] = gain
                        query[out, sin] = query[out + 4, cos] = gain * torch.cos(angle)
                        query[out, cos], query[out + 4, sin] = (
                            gain * torch.sin(angle),
                            -gain * torch.sin(angle),
                        )
                rows = slice(head * size, (head + 1) * size)
                attention.q_proj.weight[rows] = query + 0.02 * torch.randn(size, width)
                attention.k_proj.weight[rows] = key + 0.02 * torch.randn(size, width)
