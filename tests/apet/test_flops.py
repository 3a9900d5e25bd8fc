"""The FLOP count: term by term on a tiny shape, the paper's Table 7, known model sizes."""

from dataclasses import replace

import pytest
import transformers as hf

import apet.flops
from apet.flops import SHAPES, ModelShape, Stack, prefill_flops, shape_of
from apet.schedule import Schedule
from tests.support import tiny

TINY = ModelShape(
    vision=Stack(layers=2, hidden=4, intermediate=8, heads=2, kv_heads=2, head_dim=2, gated=False),
    patch_dim=12,
    projector=(4, 6, 6),
    decoder=Stack(layers=2, hidden=6, intermediate=10, heads=3, kv_heads=1, head_dim=2, gated=True),
    vocab=11,
    group_tokens=4,
    class_tokens=1,
)
# Weights of a layer. Vision: 4 maps of 4 x 4, MLP 2 x (4 x 8) = 128.
# Decoder: query and output 2 x (6 x 6), key and value 2 x (6 x 2), MLP 3 x (6 x 10) = 276.
PATCHES = 2 * 4 * (12 * 4)
VISION_LAYER = 2 * 128 * 5 + 4 * 4 * (5 * 5)  # 4 patches and a class token, all see all
PROJECTED = 2 * (4 * 6 + 6 * 6)  # a token
READ_OUT = 2 * 6 * 11


def decoder_layer(tokens: int) -> int:
    return 2 * 276 * tokens + 4 * 6 * sum(range(1, tokens + 1))  # token i sees i tokens


def flops(shape: ModelShape, text: str, tokens: int, text_tokens: int, groups: int | None = None):
    schedule = Schedule.parse(text, visual_tokens=tokens, layers=shape.decoder.layers)
    return prefill_flops(shape, schedule, text_tokens, groups=groups)


def test_full_model_matches_direct_count():
    count = flops(TINY, "full", 4, 3)
    assert count.vision == PATCHES + 2 * VISION_LAYER
    assert count.projector == 4 * PROJECTED
    assert count.decoder == 2 * decoder_layer(4 + 3) + READ_OUT
    assert count.total == count.vision + count.projector + count.decoder


def test_site_saves_later_layers_only():
    full, count = flops(TINY, "full", 4, 3), flops(TINY, "encoder=2,1=1", 4, 3)
    assert count.vision == full.vision
    assert count.projector == 2 * PROJECTED
    assert count.decoder == decoder_layer(2 + 3) + decoder_layer(1 + 3) + READ_OUT


def test_site_inside_vision_encoder_saves_its_later_layers():
    count = flops(TINY, "vision.1=2", 4, 3)
    assert count.vision == PATCHES + VISION_LAYER + 2 * 128 * 3 + 4 * 4 * (3 * 3)
    assert count.projector == 2 * PROJECTED
    assert count.decoder == flops(TINY, "encoder=2", 4, 3).decoder


def test_projector_before_the_site_saves_nothing():
    shape = replace(TINY, projects_first=True)
    assert flops(shape, "encoder=2", 4, 3).projector == 4 * PROJECTED
    assert flops(shape, "vision.1=2", 4, 3).projector == 2 * PROJECTED


def test_groups_attend_separately_in_the_encoder():
    one = flops(TINY, "full", 4, 3)
    three = flops(TINY, "full", 12, 3)
    assert (three.vision, three.projector) == (3 * one.vision, 3 * one.projector)
    padded = flops(TINY, "full", 10, 3)  # cut after encoding: crops are encoded in full
    assert (padded.vision, padded.projector) == (three.vision, three.projector)
    assert flops(TINY, "full", 4, 3, groups=2).vision == 2 * one.vision


def test_dynamic_resolution_counts_merged_patches_and_windows():
    shape = replace(
        TINY, group_tokens=None, class_tokens=0, patches_per_token=4, window=8, full_attention=(1,)
    )
    tokens = 6  # 24 patches
    windowed, full = 2 * 128 * 24 + 4 * 4 * (24 * 8), 2 * 128 * 24 + 4 * 4 * (24 * 24)
    assert flops(shape, "full", tokens, 3).vision == 2 * 24 * (12 * 4) + windowed + full
    two_images = full - 4 * 4 * (24 * 24) // 2
    assert (
        flops(shape, "full", tokens, 3, groups=2).vision
        == 2 * 24 * (12 * 4) + windowed + two_images
    )
    assert flops(shape, "full", 1, 3).vision == 2 * 4 * (12 * 4) + 2 * (
        2 * 128 * 4 + 4 * 4 * (4 * 4)
    )


def test_text_alone_costs_no_vision():
    count = flops(TINY, "full", 0, 5)
    assert (count.vision, count.projector) == (0, 0)
    assert count.decoder == 2 * decoder_layer(5) + READ_OUT


@pytest.mark.parametrize("name", SHAPES)
def test_fewer_tokens_or_less_text_never_cost_more(name):
    shape = SHAPES[name]
    row = {"visual_tokens": 2048, "layers": shape.decoder.layers}
    totals = [
        prefill_flops(shape, Schedule.from_budget(budget, **row), 60).total
        for budget in (2, 64, 256, 1024, 1365, 1366, 2000, 2048)
    ]
    assert totals == sorted(set(totals))
    full = Schedule.full(**row)
    assert totals[-1] == prefill_flops(shape, full, 60).total
    assert prefill_flops(shape, full, 59).total < totals[-1] < prefill_flops(shape, full, 61).total


# Table 7 of the paper, in TFLOPs. VisionZip keeps its whole budget at the encoder's output.
LLAVA, QWEN = ("llava-1.5-7b", 576, 66), ("qwen2.5-vl-7b", 740, 56)
TABLE_7 = [
    (*LLAVA, "vanilla", "full", 8.82),
    (*LLAVA, "ApET", "encoder=96,16=32", 2.09),
    (*LLAVA, "VisionZip", "encoder=64", 2.03),
    (*QWEN, "vanilla", "full", 14.52),
    (*QWEN, "ApET", "encoder=111,14=37", 5.70),
    (*QWEN, "VisionZip", "encoder=74", 5.68),
]


@pytest.mark.parametrize(("name", "tokens", "text_tokens", "method", "text", "published"), TABLE_7)
def test_totals_match_table_7_of_the_paper(name, tokens, text_tokens, method, text, published):
    ours = flops(SHAPES[name], text, tokens, text_tokens).total / 1e12
    assert ours == pytest.approx(published, rel=0.05)
    change = f"{ours / published - 1:+6.1%}"
    documented = f"{name:15} {method:10} {text:18} {ours:6.2f}  {published:6.2f}  {change}"
    assert documented.replace("%", " %") in apet.flops.__doc__


def test_table_7_schedules_follow_from_budgets():
    assert str(Schedule.from_budget("11.1%", visual_tokens=576, layers=32)) == "encoder=96,16=32"
    assert str(Schedule.from_budget("10%", visual_tokens=740, layers=28)) == "encoder=111,14=37"
    assert (
        str(Schedule.from_budget("10%", visual_tokens=740, layers=28, encoder_only=True))
        == "encoder=74"
    )


@pytest.mark.parametrize(
    ("stack", "total", "beside"),
    [
        # Published parameter counts, and what they hold beside the layers' linear maps.
        # LLaMA-7B: two embeddings of 32,000, norms.
        (SHAPES["llava-1.5-7b"].decoder, 6_738_415_616, 2 * 32_000 * 4096 + (2 * 32 + 1) * 4096),
        # Qwen2.5-7B: two embeddings, norms, biases of query, key and value.
        (
            SHAPES["qwen2.5-vl-7b"].decoder,
            7_615_616_512,
            2 * 152_064 * 3584 + (2 * 28 + 1) * 3584 + 28 * (3584 + 2 * 512),
        ),
        # CLIP ViT-L/14 at 336: patches, class token, positions, norms (two more), biases.
        (
            SHAPES["llava-1.5-7b"].vision,
            303_507_456,
            588 * 1024 + 1024 + 577 * 1024 + (2 * 24 + 2) * 2 * 1024 + 24 * (5 * 1024 + 4096),
        ),
    ],
    ids=["vicuna", "qwen2.5", "clip"],
)
def test_shapes_have_the_weights_of_real_models(stack, total, beside):
    assert stack.layers * stack.weights == total - beside


def test_schedule_for_another_model_is_refused():
    shape = SHAPES["qwen2.5-vl-7b"]
    with pytest.raises(ValueError, match=r"of 32 decoder layers.*32 vision and 28 decoder layers"):
        prefill_flops(shape, Schedule.full(visual_tokens=740, layers=32), 56)
    with pytest.raises(ValueError, match=r"'vision.32=9'.*32 vision"):
        flops(shape, "vision.32=9", 740, 56)
    with pytest.raises(ValueError, match="text_tokens=-1"):
        flops(shape, "full", 740, -1)
    with pytest.raises(ValueError, match="groups=0"):
        flops(shape, "full", 740, 56, groups=0)


def test_shapes_are_read_from_transformers_configs():
    vicuna = hf.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32064,
    )
    clip = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    llava = hf.CLIPVisionConfig(**clip, image_size=336, patch_size=14)
    video = hf.CLIPVisionConfig(**clip, image_size=224, patch_size=14)
    assert (
        shape_of(hf.LlavaConfig(vision_config=llava, text_config=vicuna)) == SHAPES["llava-1.5-7b"]
    )
    assert (
        shape_of(hf.LlavaNextConfig(vision_config=llava, text_config=vicuna))
        == SHAPES["llava-next-7b"]
    )
    assert (
        shape_of(hf.VideoLlavaConfig(vision_config=video, text_config=vicuna))
        == SHAPES["video-llava-7b"]
    )
    qwen = hf.Qwen2_5_VLConfig(
        vision_config={"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "vocab_size": 152064,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    )
    assert shape_of(qwen) == SHAPES["qwen2.5-vl-7b"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_a_shape(family: str):
    shape = shape_of(tiny.model(family).config)
    assert shape.decoder.layers == 6
    assert flops(shape, "full", 36, 20).total > flops(shape, "encoder=9", 36, 20).total > 0
