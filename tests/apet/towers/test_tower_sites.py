"""Inside the vision tower: sites between its layers, its attention, and the rivals that use it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, LlavaConfig

from apet import ApET, attach, compress
from apet.methods import METHODS, build
from apet.methods.base import Kept, Method, ModelLayout
from apet.methods.tome import merge_pairs
from apet.methods.visionzip import zip_tokens
from apet.towers.tile_tower import TileTower, TileTowerCall
from apet.view import View
from tests.support import tiny

RESIZED = "llava_onevision"  # it resizes its tower's output
INSIDE = "vision.1=60%,vision.2=50%,encoder=40%,3=20%"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(family: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"text": "One", "images": [tiny.image(30, 20, 1)]},
        {"text": "Two of them, please", "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)]},
        {"text": "none"},
    ]
    if family in tiny.VIDEO_FAMILIES:
        found.append({"text": "a video", "videos": [tiny.video(8, 24, 24, 5)]})
    return found


def tower_layers(model: Any) -> Any:
    """The layers of the tower; that of the images where videos have another tower."""
    core = model.model
    if hasattr(core, "visual"):
        return core.visual.blocks
    return (core.vision_tower if hasattr(core, "vision_tower") else core.image_tower).encoder.layers


def record_inputs(modules: Any) -> tuple[list[Tensor], Callable[[], None]]:
    """Record the first argument of each call of the modules until `stop` is called."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        for module in modules
    ]

    def stop() -> None:
        for hook in hooks:
            hook.remove()

    return seen, stop


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_row_result_is_independent_of_batch(family: str) -> None:
    model = tiny.model(family)
    with torch.no_grad(), attach(model, ApET(schedule=INSIDE, basis=3), keep_index=True) as run:
        together = model(**tiny.inputs(family, rows(family))).logits[:, -1]
        stats = run.stats
        for row, one in enumerate(rows(family)):
            alone = model(**tiny.inputs(family, [one])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)
            if stats[row].visual_tokens:
                assert stats[row].kept == run.stats[0].kept
                assert stats[row].index is not None
                assert run.stats[0].index is not None
                for site, index in stats[row].index.items():
                    assert torch.equal(index, run.stats[0].index[site])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sites_that_keep_all_tokens_change_nothing(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, rows(family))
    with torch.no_grad():
        plain = model(**inputs).logits
        with attach(model, ApET(schedule="vision.1=100%,encoder=100%,3=100%")):
            assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_later_tower_layers_see_fewer_tokens(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, rows(family)[:1])
    with torch.no_grad(), attach(model, ApET(schedule="vision.2=50%,encoder=50%", basis=3)) as run:
        seen, stop = record_inputs(tower_layers(model))
        model(**inputs)
        stop()
    lengths = [one.shape[-2] for one in seen]
    unit = 4 if "qwen" in family else 1  # patches of a token
    prefix = 0 if "qwen" in family or family == RESIZED else 1
    whole = {"llava_next": 36, RESIZED: 25}.get(family, run.stats[0].visual_tokens * unit)
    assert lengths == [prefix + whole] * 2 + [prefix + whole // 2] * (len(lengths) - 2)
    assert (
        run.stats[0].kept["encoder"]
        <= (run.stats[0].visual_tokens + 1) // 2 + (family == "llava_next") * 36
    )


def test_kept_tokens_stand_in_where_pictures_are_resized() -> None:
    """After two sites, the projector sees the kept tokens, and the model resizes a full picture."""
    model, inputs = tiny.model(RESIZED), tiny.inputs(RESIZED, rows(RESIZED)[1:])
    projector, seen = model.model.multi_modal_projector, []
    with (
        torch.no_grad(),
        attach(model, ApET(schedule="vision.1=60%,vision.3=40%,encoder=40%", basis=3)),
    ):
        tower, stop = record_inputs([*tower_layers(model)[1:2], tower_layers(model)[3], projector])
        hook = projector.register_forward_hook(lambda _, args, output: seen.append(output))
        model(**inputs)
        hook.remove()
        stop()
    for call, whole in enumerate(seen):  # images, then the video's frames
        first, second, left = tower[3 * call : 3 * call + 3]
        assert [one.shape[1] for one in (first, second, left, whole)] == [15, 10, 10, 25]
        with torch.no_grad():
            projected = [{tuple(token.tolist()) for token in tile} for tile in projector(left)]
        for tile, among in zip(whole, projected, strict=True):
            assert {tuple(token.tolist()) for token in tile} == among  # exactly these


def test_stand_in_is_most_similar_kept_token() -> None:
    """Later it is the kept token that the earlier stand-in was most similar to."""
    call = TileTowerCall(TileTower([], 6, 0, 0, resized=True), {})
    angles = torch.tensor([[0.0, 0.1, 1.2, 1.3, 2.0, 2.1]])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    call.update_stand_ins(vectors, torch.tensor([[0, 2, 4]]))
    assert call.slot is not None
    assert call.slot.tolist() == [[0, 0, 1, 1, 2, 2]]
    call.update_stand_ins(vectors[:, ::2], torch.tensor([[0, 2]]))
    assert call.slot.tolist() == [[0, 0, 1, 1, 1, 1]]


def test_site_inside_equals_compress() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows("llava")[:2])
    with torch.no_grad():
        plain, stop = record_inputs(tower_layers(model)[2:3])
        model(**inputs)
        stop()
        with attach(model, ApET(schedule="vision.2=14,encoder=14", basis=5)):
            seen, stop = record_inputs(tower_layers(model)[2:3])
            model(**inputs)
            stop()
    want = compress(plain[0][:, 1:], 14, 5)
    torch.testing.assert_close(seen[0][:, 1:], want.tokens)
    assert torch.equal(seen[0][:, :1], plain[0][:, :1])  # CLS


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "llava",
            {"schedule": "vision.3=20,encoder=20"},
            r"vision.3=20.*0 to 2",
        ),  # the last layer's output is unused
        ("llava_next", {"schedule": "vision.1=20,encoder=20"}, r"give shares"),
        ("llava_onevision", {"schedule": "vision.4=50%,encoder=50%"}, r"vision.4=.*0 to 3"),
    ],
)
def test_invalid_site_inside_is_refused(family: str, options: dict[str, str], message: str) -> None:
    model = tiny.model(family)
    method = ApET(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message), attach(model, method):
        model(**tiny.inputs(family, rows(family)[:1]))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_visionzip_refuses_model_that_resizes_tower_output() -> None:
    with pytest.raises(ValueError, match=r"llava_onevision.*choose another method"):
        attach(tiny.model("llava_onevision"), build("visionzip", budget="40%"))


def test_visionzip_refuses_decoder_sites() -> None:
    with pytest.raises(ValueError, match=r"'encoder=8,5=4'.*'encoder' alone"):
        build("visionzip", schedule="encoder=8,5=4").plan(36, ModelLayout(6, 0, 0, False))


def test_release_variant_allows_keep_of_one_token() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows("llava")[:2])
    with torch.no_grad():
        for budget in (9, "10%"):
            with attach(model, ApET(budget=budget, variant="release")) as run:
                assert model(**inputs).logits.isfinite().all()
            assert run.stats[0].kept["encoder"] in (14, 5)
        with attach(model, ApET(schedule="encoder=1", variant="release")) as run:
            model(**inputs)
        assert run.stats[0].kept == {"encoder": 1}


def test_tower_that_is_not_clip_is_refused() -> None:
    config = LlavaConfig(
        vision_config={"model_type": "pixtral"}, text_config=tiny.model("llava").config.text_config
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ValueError, match=r"'pixtral'; expected 'clip_vision_model'"):
        attach(model, ApET(budget=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["apet", "apet_greedy", "divprune", "tome", "visionzip"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_half_precision_model_gives_float32_choices(
    family: str, name: str, dtype: torch.dtype
) -> None:
    """A method makes the same choice among the same numbers in float32."""
    model, kind = tiny.model(family, dtype=dtype), METHODS[name]
    views: list[View] = []

    def select(self: Method, view: View) -> Kept:
        exact = kind.select(
            self, replace(view, tokens=view.tokens.float(), memory=dict(view.memory))
        )
        kept = kind.select(self, view)
        assert torch.equal(kept.indices, exact.indices)
        torch.testing.assert_close(kept.tokens, exact.tokens.to(kept.tokens.dtype))
        views.append(view)
        return kept

    with torch.no_grad(), attach(model, type("Watched", (kind,), {"select": select})(budget="50%")):
        logits = model(**tiny.inputs(family, rows(family))).logits
    assert logits.isfinite().all()
    assert {view.tokens.dtype for view in views} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_half_precision_logits_stay_close(family: str, dtype: torch.dtype) -> None:
    """`uniform` keeps the same tokens: logits move about as far as the unmodified model's."""
    inputs, logits = tiny.inputs(family, rows(family)), []
    for precision in (torch.float32, dtype):
        model = tiny.model(family, dtype=precision)
        for method in (build("vanilla"), build("uniform", budget="40%")):
            with torch.no_grad(), attach(model, method):
                logits.append(model(**inputs).logits[:, -1].float())
    plain, compressed = (float((logits[way + 2] - logits[way]).abs().max()) for way in (0, 1))
    assert 0 < compressed < 2.5 * plain


# ---- attention


def register_recording_kernel(weights: list[Tensor]) -> str:
    """Register an eager attention kernel that stores its weights, and return its name."""

    def kernel(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float,
        **_: Any,
    ) -> Any:
        found = (query @ key.mT * scaling).softmax(dim=-1)
        weights.append(found)
        return (found @ value).transpose(1, 2), None

    AttentionInterface.register("recorded", kernel)
    return "recorded"


def test_attention_of_cls_equals_tower_kernel() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows("llava")[:2])
    weights: list[Tensor] = []
    model.model.vision_tower.set_attn_implementation(register_recording_kernel(weights))
    with torch.no_grad(), attach(model, build("visionzip", budget="40%")) as run:
        model.get_image_features(pixel_values=inputs["pixel_values"])
        seen = run._vision.take_record(keep=False).calls[0]
    want = weights[2][:, :, 0, 1:].sum(dim=1)  # of the last layer that is used
    torch.testing.assert_close(seen.received, want)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_attention_received_equals_tower_kernel(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, rows(family)[:2])
    weights: list[Tensor] = []
    model.model.visual.set_attn_implementation(register_recording_kernel(weights))
    grid = inputs["image_grid_thw"]
    with torch.no_grad(), attach(model, build("visionzip", budget="40%")) as run:
        model.get_image_features(pixel_values=inputs["pixel_values"], image_grid_thw=grid)
        seen = run._vision.take_record(keep=False).calls[0]
    last = weights[-len(grid) :]  # one matrix an image: the last block is not windowed
    received = torch.cat([one[0].mean(dim=0).mean(dim=0) for one in last]).view(-1, 4).mean(dim=1)
    if family == "qwen3_vl":  # no windows: tokens are in reading order
        torch.testing.assert_close(seen.received, received)
    else:
        assert not torch.equal(seen.order, seen.order.sort().values)
        torch.testing.assert_close(seen.received[seen.order], received)


# ---- VisionZip and ToMe, compared with plain loops over their papers' rules


@pytest.mark.parametrize(
    ("keep", "contextual", "cls"), [(12, 4, True), (12, 4, False), (6, 1, True), (30, 8, False)]
)
def test_visionzip_matches_direct_computation(keep: int, contextual: int, cls: bool) -> None:
    tokens, received, keys, extra = (
        normal(36, 8),
        normal(36, seed=1).abs(),
        normal(36, 5, seed=2),
        normal(8, seed=3),
    )
    found = zip_tokens(
        tokens[None], received[None], keys[None], keep, contextual, extra[None] if cls else None
    )
    dominant = sorted(
        sorted(range(36), key=lambda place: -float(received[place]))[: keep - contextual - cls]
    )
    rest = [place for place in range(36) if place not in dominant]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for place in rest:
        if place not in targets:
            best = max(
                targets,
                key=lambda target: float(torch.cosine_similarity(keys[place], keys[target], dim=0)),
            )
            members[best].append(place)
    merged = {t: tokens[t] + (tokens[m].mean(dim=0) if m else 0) for t, m in members.items()}
    if cls:
        want = [
            extra,
            *(tokens[place] for place in dominant),
            *(merged[target] for target in targets),
        ]
    else:
        want = [merged.get(place, tokens[place]) for place in sorted(dominant + targets)]
        assert found.indices[0].tolist() == sorted(dominant + targets)
    torch.testing.assert_close(found.tokens[0], torch.stack(want))
    assert len(set(found.indices[0].tolist())) == keep


@pytest.mark.parametrize(("count", "keep"), [(36, 28), (36, 18), (7, 4), (2, 1)])
def test_tome_matches_direct_computation(count: int, keep: int) -> None:
    tokens, keys = normal(count, 8).double(), normal(count, 5, seed=1).double()
    sizes = torch.randint(1, 5, (count,), generator=torch.Generator().manual_seed(2)).double()
    unit = (keys / keys.norm(dim=1, keepdim=True)).numpy()
    pairs = []
    for odd in range(1, count, 2):
        even = max(range(0, count, 2), key=lambda place: float(np.dot(unit[odd], unit[place])))
        pairs.append((float(np.dot(unit[odd], unit[even])), odd, even))
    gone = {odd: even for _, odd, even in sorted(pairs, reverse=True)[: count - keep]}
    want, weight = [], []
    for place in range(count):
        if place not in gone:
            group = [place, *(odd for odd, even in gone.items() if even == place)]
            weight.append(float(sizes[group].sum()))
            want.append((tokens[group] * sizes[group, None]).sum(dim=0) / weight[-1])
    merged, stay, new = merge_pairs(tokens[None], keys[None], sizes[None], keep)
    assert stay[0].tolist() == [place for place in range(count) if place not in gone]
    torch.testing.assert_close(merged[0], torch.stack(want))
    assert new[0].tolist() == weight


def test_tome_merges_equally_many_tokens_after_each_layer() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows("llava")[:1])
    with torch.no_grad(), attach(model, build("tome", budget=12)) as run:
        seen, stop = record_inputs(tower_layers(model))
        model(**inputs)
        stop()
    assert [one.shape[1] - 1 for one in seen] == [
        36,
        28,
        20,
        20,
    ]  # the last layer's output is not used
    assert run.stats[0].kept == {"vision": 20, "encoder": 12}
    assert run.stats[0].budget == 12


def test_tome_sizes_sum_to_number_of_tokens() -> None:
    model, inputs = tiny.model("llava"), tiny.inputs("llava", rows("llava")[:1])
    method = build("tome", budget=5)
    left: list[Tensor] = []
    with torch.no_grad(), attach(model, method) as run:
        original = type(method).select

        def select(self: Any, view: Any) -> Any:
            kept = original(self, view)
            left.append(view.memory["sizes"])
            return kept

        type(method).select = select  # type: ignore[method-assign]
        try:
            model(**inputs)
        finally:
            type(method).select = original  # type: ignore[method-assign]
    assert [float(sizes.sum()) for sizes in left] == [36.0] * 3
    assert left[-1].shape == (1, 5)
    assert math.isclose(run.stats[0].budget, 5)
