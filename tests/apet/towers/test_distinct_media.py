"""Equal media of a batch are encoded once, and everything behind the tower is as if all were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature

from apet import Towers, attach
from apet.models import family_of
from apet.towers import distinct_media
from apet.towers.distinct_media import encode_distinct, find_distinct, row_hashes
from apet.towers.shared_outputs import transformer_blocks
from tests.support import tiny
from tests.support.attached import (
    CLOSE,
    EVERY_FAMILY,
    build_method,
    example_rows,
    generate,
    model,
)

CPU = torch.device("cpu")


def rows_about_the_same_media(family: str) -> list[dict[str, Any]]:
    """Each row of `example_rows` twice; between them the first one's picture behind another."""
    rows = example_rows(family)
    other = {
        "text": "Which?",
        "images": [*example_rows(family)[1]["images"][1:], *rows[0]["images"]],
    }
    again = [{**row, "text": row["text"] + " Again?"} for row in rows]
    return [*rows, other, *again]


def towers_of(family: str) -> list[Any]:
    description = family_of(model(family))
    return [*(description.towers or [description.tower])]


@contextmanager
def record_block_inputs(family: str) -> Iterator[list[int]]:
    """The rows (tiles or patches) that enter the first block of each call of a tower."""
    counts: list[int] = []
    hooks = [
        next(transformer_blocks(tower)[0].children()).register_forward_pre_hook(
            lambda module, args, kwargs: counts.append(len([*args, *kwargs.values()][0])),
            with_kwargs=True,
        )
        for tower in towers_of(family)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def encoded_inputs(inputs: BatchFeature, family: str) -> list[Tensor]:
    """The pixels of a batch as its towers get them: tiles, or the patches of each medium."""
    tensors = []
    for name in ("pixel_values", "pixel_values_images", "pixel_values_videos"):
        if name not in inputs:
            continue
        pixels = inputs[name]
        if "qwen" in family:
            grid = inputs["video_grid_thw" if "videos" in name else "image_grid_thw"]
            tensors.append([*pixels.split(grid.prod(dim=1).tolist())])
        elif family == "llava_next" or (family == "llava_onevision" and "videos" not in name):
            tensors.append([tile for tiles in pixels for tile in tiles if tile.any()])
        else:
            tensors.append([*pixels.flatten(0, -4)] if pixels.ndim > 4 else [*pixels])
    return tensors


def distinct_rows(media: list[Tensor]) -> int:
    """The rows that a tower has to compute: of media that equal none before them."""
    tiles = media[0].ndim > 2
    seen: dict[bytes, int] = {}
    for medium in media:
        seen[bytes(str(medium.shape), "ascii") + medium.numpy().tobytes()] = (
            1 if tiles else len(medium)
        )
    return sum(seen.values())


@EVERY_FAMILY
@pytest.mark.parametrize("name", ["vanilla", "apet"])
def test_towers_run_on_distinct_media_only(family: str, name: str) -> None:
    core, inputs = model(family), tiny.inputs(family, rows_about_the_same_media(family))
    with attach(core, build_method(name, family)) as run:
        want, kept = generate(core, inputs), [row.kept for row in run.stats]
    with (
        record_block_inputs(family) as counts,
        attach(core, build_method(name, family), towers=Towers(remember=0)) as run,
    ):
        answer = generate(core, inputs)
    assert sorted(counts) == sorted(map(distinct_rows, encoded_inputs(inputs, family)))
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
    assert torch.equal(answer.ids, want.ids)
    assert [row.kept for row in run.stats] == kept
    assert all("forward" not in tower.__dict__ for tower in towers_of(family))


@EVERY_FAMILY
def test_methods_share_the_outputs_for_distinct_media(family: str) -> None:
    core, inputs = model(family), tiny.inputs(family, rows_about_the_same_media(family))
    towers, answers = Towers(), []
    with record_block_inputs(family) as counts:
        for _ in range(2):
            with attach(core, build_method("apet", family), towers=towers):
                answers.append(generate(core, inputs).logits)
    assert len(counts) == len(encoded_inputs(inputs, family))
    assert torch.equal(*answers)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_method_that_reads_inside_the_tower_sees_all_media(family: str) -> None:
    core, inputs = model(family), tiny.inputs(family, rows_about_the_same_media(family))
    with attach(core, build_method("visionzip", family)):
        want = generate(core, inputs)
    with attach(core, build_method("visionzip", family), towers=Towers()):
        assert torch.equal(generate(core, inputs).logits, want.logits)


def test_output_is_expanded_in_proportion_to_the_media() -> None:
    """Media of 4, 8 and 4 patches; the last is the first. Two patches are merged into a token."""
    patches = torch.arange(12.0)[:, None].expand(12, 3)
    patches = torch.cat([patches, patches[:4]])
    grid = torch.tensor([[1, 2, 2], [2, 2, 2], [1, 2, 2]])
    calls: list[tuple[Tensor, Tensor]] = []

    def tower(patches: Tensor, *, grid_thw: Tensor, flag: bool) -> dict[str, Any]:
        calls.append((patches, grid_thw))
        assert flag
        return {"patches": patches, "others": (patches[::2], [patches + 1]), "none": None}

    output = encode_distinct(tower, patches, grid_thw=grid, flag=True)
    assert torch.equal(calls[0][0], patches[:12])
    assert torch.equal(calls[0][1], grid[:2])
    assert torch.equal(output["patches"], patches)
    assert torch.equal(output["others"][0], patches[::2])
    assert torch.equal(output["others"][1][0], patches + 1)
    assert output["none"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda tiles: tiles.neg_(),
        lambda tiles: tiles.roll(1, dims=-1),
        lambda tiles: tiles.view(torch.int32).bitwise_xor_(1).view(torch.float32),
    ],
    ids=["sign", "order", "last bit"],
)
def test_tiles_that_differ_a_little_are_distinct(change: Callable[[Tensor], Tensor]) -> None:
    tile = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    other = tile.clone()
    other[:, :1] = change(other[:, :1].clone())
    assert find_distinct(torch.stack([tile, other]), None) is None
    distinct = find_distinct(torch.stack([other, tile, other, tile, tile]), None)
    assert distinct is not None
    assert distinct.owners == [0, 1, 0, 1, 1]
    assert distinct.rows.tolist() == [0, 1]


def test_media_of_other_shapes_are_distinct() -> None:
    patches = torch.ones(16, 3)
    assert find_distinct(patches, torch.tensor([[1, 4, 2], [1, 2, 4]])) is None
    assert find_distinct(patches, torch.tensor([[1, 4, 2], [1, 4, 2]])) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_equal_rows_have_equal_hashes_at_any_place(dtype: torch.dtype) -> None:
    rows = (torch.randn(37, 101, generator=torch.Generator().manual_seed(1)) * 50).to(dtype)
    repeated = torch.cat([rows, rows.flip(0)])
    hashes = row_hashes(repeated)
    assert torch.equal(hashes[:37], hashes[37:].flip(0))
    assert len(hashes.unique()) == 37


def test_media_with_equal_hashes_by_chance_are_all_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distinct_media, "row_hashes", lambda rows: torch.zeros(len(rows), dtype=torch.int64)
    )
    tiles = torch.randn(3, 3, 4, 4)
    assert find_distinct(tiles, None) is None


def test_further_tensor_among_the_inputs_prevents_sharing() -> None:
    seen: list[Tensor] = []

    def tower(pixels: Tensor, mask: Tensor | None) -> Tensor:
        seen.append(pixels)
        return pixels

    tiles = torch.ones(2, 3)
    for mask, encoded in ((None, 1), (torch.ones(2), 2)):
        assert torch.equal(encode_distinct(tower, tiles, mask), tiles)
        assert len(seen[-1]) == encoded
