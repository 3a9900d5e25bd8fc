"""FastV, PyramidDrop, SparseVLM and DART: against plain loops and the model's own attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from apet import attach
from apet.attention.recomputed_weights import (
    attention_weights,
    layer_keys,
    mean_attention,
    select_rows,
)
from apet.methods import METHODS
from apet.methods.base import Method, ModelLayout
from apet.methods.dart import text_pivots
from apet.methods.sparsevlm import TABLE, recycle, unchanged_count
from apet.schedule import Budget
from apet.transformers_api import cache_of
from apet.view import DecoderSite, LayerInput, Sequence, View
from tests.support import tiny

RIVALS = ["fastv", "pdrop", "sparsevlm", "dart"]
# In the layers below: four heads, two of which share their keys with the other two.
WIDTH, HEADS, SHARED, HEAD = 16, 4, 2, 4


def method(name: str, **options: Any) -> Method:
    return METHODS[name](**({"budget": 1} | options))


def layout(layers: int, first: int = 0) -> ModelLayout:
    return ModelLayout(layers, tower_layers=0, first_decoder_site=first, encoder_only=False)


# ---- budgets


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(("layers", "tokens"), [(6, 36), (6, 576), (28, 740), (32, 576)])
def test_average_over_layers_is_the_budget(name: str, layers: int, tokens: int) -> None:
    budgets = [
        192,
        128,
        64,
        "33.3%",
        "22.2%",
        "11.1%",
        "5%",
        *range(1, tokens + 9, max(1, tokens // 16)),
    ]
    refused: list[float] = []
    for budget in budgets:
        average = float(min(Budget.parse(budget).of(tokens), tokens))
        try:
            schedule = method(name, budget=budget).plan(tokens, layout(layers))
        except ValueError:
            refused.append(average)
            continue
        assert abs(schedule.average - average) <= 1
        assert all(site.stage == "decoder" and site.layer >= 1 for site in schedule.sites)
        if average == tokens:
            assert {site.keep for site in schedule.sites} == {tokens}
    # The layers before the first site, and one token in each other layer.
    assert max(refused, default=0) < tokens / layers + (3 + 0.2 * tokens) / layers + 1


@pytest.mark.parametrize("name", RIVALS)
def test_error_names_the_smallest_possible_budget(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a budget of 4 leaves {name} none of .* 576 visual .*possible is \d+"
    ) as error:
        method(name, budget=4).plan(576, layout(32))
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert abs(method(name, budget=least).plan(576, layout(32)).average - least) <= 1
    with pytest.raises(ValueError, match="possible is"):
        method(name, budget=least - 1).plan(576, layout(32))


@pytest.mark.parametrize(
    ("name", "budget", "schedule"),
    [
        ("fastv", 192, "2=166"),
        ("fastv", 128, "2=98"),
        ("fastv", 64, "2=30"),
        ("fastv", 28, "1=10"),
        ("dart", 64, "2=30"),
        # The paper's: a half, a quarter, an eighth.
        ("pdrop", 270, "8=288,16=144,24=72"),
        ("pdrop", 192, "8=146,16=37,24=9"),
        # The author's advice for budgets that [8, 16, 24] cannot reach.
        ("pdrop", 64, "2=110,8=21,16=4"),
        ("pdrop", 30, "1=91,4=14,8=2"),
        ("sparsevlm", 192, "3=280,7=185,16=102"),
        ("sparsevlm", 64, "3=29,7=11,16=6"),
        ("sparsevlm", 30, "1=42,3=16,8=9"),
        ("sparsevlm", 576, "3=576,7=576,16=576"),
    ],
)
def test_budget_gives_the_schedule_of_the_paper(name: str, budget: int, schedule: str) -> None:
    assert str(method(name, budget=budget).plan(576, layout(32))) == schedule


@pytest.mark.parametrize("budget", [64, 96, 128, 192])
def test_sparsevlm_scales_the_table_to_the_budget(budget: int) -> None:
    sites = method("sparsevlm", budget=budget).plan(576, layout(32)).sites
    factor = (32 * budget - 3 * 576) / sum(
        span * kept for span, kept in zip((4, 9, 16), TABLE[budget], strict=True)
    )
    assert [site.keep for site in sites] == [round(factor * kept) for kept in TABLE[budget]]


@pytest.mark.parametrize(
    ("name", "budget", "model", "layers"),
    [
        ("pdrop", "50%", layout(28), [7, 14, 21]),
        ("sparsevlm", "50%", layout(28), [3, 6, 14]),
        ("sparsevlm", "50%", layout(36, first=5), [5, 8, 18]),
        ("fastv", "60%", layout(6, first=3), [3]),
        ("pdrop", "60%", layout(3), [1, 2]),  # without a third
        ("fastv", "100%", layout(1), []),
    ],
)
def test_sites_follow_the_depth_of_the_model(
    name: str, budget: str, model: ModelLayout, layers: list[int]
) -> None:
    assert [site.layer for site in method(name, budget=budget).plan(576, model).sites] == layers


def test_row_without_visual_tokens_has_no_sites() -> None:
    assert method("fastv", budget="10%").plan(0, layout(32)).sites == ()


def test_invalid_schedules_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'encoder=96'.*fastv ranks .* layers 1 to 31"):
        method("fastv", budget=None, schedule="encoder=96,16=32").plan(576, layout(32))
    with pytest.raises(ValueError, match=r"'0=96'.*layers 1 to 31"):
        method("dart", budget=None, schedule="0=96").plan(576, layout(32))
    assert str(method("pdrop", budget=None, schedule="0=96").plan(576, layout(32))) == "0=96"
    with pytest.raises(ValueError, match="pivot_image is 0"):
        method("dart", pivot_image=0)
    with pytest.raises(ValueError, match="tau is 2"):
        method("sparsevlm", tau=2)


# ---- attention

ROWS = [
    {"text": "What is this?", "images": [tiny.image(30, 20, 1)]},
    {
        "text": "Compare <image> and <image> at length.",
        "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)],
    },
    {"text": "just text"},
]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_recomputed_attention_equals_the_model_s_own(family: str) -> None:
    vlm, inputs = tiny.model(family, attn="eager"), tiny.inputs(family, ROWS)
    layer_inputs: list[LayerInput] = []

    def note(layer: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        layer_inputs.append(LayerInput(layer, args[0], *kwargs["position_embeddings"]))

    for layer in vlm.model.language_model.layers:
        layer.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        out = vlm(**inputs, output_attentions=True)
        valid = inputs["attention_mask"].bool()
        assert not valid.all()
        last = valid.shape[1] - 1
        queries = torch.tensor(
            [[last, last - 1, last - 3], [last - 5, last, last - 2], [last, last - 4, last - 4]]
        )
        for layer, want in zip(layer_inputs, out.attentions, strict=True):
            kept = attention_weights(layer, valid, queries)
            assert kept.dtype == torch.float32
            torch.testing.assert_close(
                kept, want[torch.arange(3)[:, None], :, queries].transpose(1, 2)
            )
            some = mean_attention(layer, valid, torch.tensor([2, 0, 0]), queries)
            want = torch.stack(
                [want[2, :, queries[0]], want[0, :, queries[1]], want[0, :, queries[2]]]
            ).mean(dim=1)
            torch.testing.assert_close(some, want)
        cache = cache_of(vlm(**inputs, use_cache=True))
        torch.testing.assert_close(
            layer_keys(select_rows(layer_inputs[1], torch.tensor([1]))), cache.layers[1].keys[1:2]
        )


def test_chunks_do_not_change_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    view = decoder_view(keep=5)
    assert view.decoder
    arguments = (
        view.decoder.next_layer,
        view.decoder.sequence.valid,
        view.rows[:, 0],
        torch.full((4, 2), 39),
    )
    at_once = mean_attention(*arguments)
    monkeypatch.setattr("apet.attention.recomputed_weights.MAX_WEIGHTS", 1)
    torch.testing.assert_close(mean_attention(*arguments), at_once)


def test_unsupported_layers_are_refused() -> None:
    hidden = torch.randn(1, 8, WIDTH)
    with pytest.raises(
        ValueError, match=r"Linear: it has no q_proj, .*input_layernorm, apply_rotary_pos_emb"
    ):
        layer_keys(LayerInput(nn.Linear(2, 2), hidden, hidden, hidden))
    layer = llama_layer(0)
    layer.self_attn.sliding_window = 4
    with pytest.raises(ValueError, match="8 tokens: it looks 4 tokens back"):
        layer_keys(LayerInput(layer, hidden, hidden, hidden))


# ---- selection, against loops


def llama_layer(seed: int) -> Any:
    """A layer of Llama, with weights of a useful size."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=8,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        head_dim=HEAD,
    )
    layer, generator = LlamaDecoderLayer(config, 0), torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (1.5 / WIDTH**0.5)
    return layer.requires_grad_(False)


def decoder_view(keep: int, seed: int = 0) -> View:
    """Three rows of 40 columns, left-padded, at a site after 8 columns were dropped.

    The second row has two groups of 12 tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    entered, hidden, earlier = (
        torch.randn(3, count, WIDTH, generator=generator) for count in (48, 40, 40)
    )
    valid, visual = torch.zeros(2, 3, 48, dtype=torch.bool)
    groups = [(0, 20), (1, 8), (1, 22), (2, 22)]
    for row, padding in enumerate((16, 2, 12)):
        valid[row, padding:] = True
    for row, start in groups:
        visual[row, start : start + 16] = True  # at the decoder's input
    visual[1, 22:24] = False  # text between two images
    entry_columns = torch.stack(
        [torch.randperm(48, generator=generator)[:40].sort().values for _ in range(3)]
    )
    short_valid, short_visual = torch.zeros(2, 3, 40, dtype=torch.bool)
    for row, start in groups:
        short_visual[row, start - 4 * (row == 0) : start - 4 * (row == 0) + 12] = True
    for row, padding in enumerate((12, 3, 9)):
        short_valid[row, padding:] = True
    rows = torch.tensor([[row] for row, _ in groups])
    columns = torch.tensor(
        [[start - 4 * (row == 0) + token for token in range(12)] for row, start in groups]
    )
    rotary = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, head_dim=HEAD)
    )
    cos, sin = rotary(hidden, torch.arange(40)[None] * 3)  # the same for all rows
    norm = LlamaRMSNorm(WIDTH).requires_grad_(False)
    norm.weight.data = torch.rand(WIDTH, generator=generator)
    site = DecoderSite(
        sequence=Sequence(hidden, short_valid, short_visual),
        next_layer=LayerInput(llama_layer(1), hidden, cos, sin),
        previous_layer=LayerInput(llama_layer(2), earlier, cos, sin),
        norm=norm,
        entry_sequence=Sequence(entered, valid, visual),
        entry_columns=entry_columns,
    )
    tokens, numbers = hidden[rows, columns], (0, 1, 1, 2)
    return View("decoder", 3, tokens, keep, (1, 12), numbers, numbers, rows, columns, site)


def rotate(vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.stack(
        [
            vector[number] * cos[number]
            + (-vector[number + 2] if number < 2 else vector[number - 2]) * sin[number]
            for number in range(HEAD)
        ]
    )


def key_in_loops(
    layer: LayerInput, row: int, column: int, head: int, which: str = "k_proj"
) -> Tensor:
    normed = layer.layer.input_layernorm(layer.hidden[row, column])
    projected = (
        getattr(layer.layer.self_attn, which).weight[head * HEAD : (head + 1) * HEAD] @ normed
    )
    return rotate(projected, layer.cos[0, column], layer.sin[0, column])


def attention_in_loops(layer: LayerInput, valid: Tensor, row: int, query: int) -> dict[int, float]:
    """The attention of one token, averaged over the heads."""
    columns = [column for column in range(query + 1) if valid[row, column]]
    mean = dict.fromkeys(range(valid.shape[1]), 0.0)
    for head in range(HEADS):
        query_vector = key_in_loops(layer, row, query, head, "q_proj")
        logits = [
            float(query_vector @ key_in_loops(layer, row, column, head // 2)) / HEAD**0.5
            for column in columns
        ]
        total = sum(map(math.exp, logits))
        for column, logit in zip(columns, logits, strict=True):
            mean[column] += math.exp(logit) / total / HEADS
    return mean


def highest(score: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda token: -score[token])[:count])


@pytest.mark.parametrize("keep", [1, 5, 11])
@pytest.mark.parametrize("name", ["fastv", "pdrop"])
def test_fastv_and_pdrop_keep_what_the_last_token_attends_to(name: str, keep: int) -> None:
    view = decoder_view(keep)
    site = view.decoder
    assert site
    assert site.previous_layer
    kept = method(name).select(view)
    for group, row in enumerate(view.rows[:, 0].tolist()):
        layer = {"fastv": site.previous_layer, "pdrop": site.next_layer}[name]
        attention = attention_in_loops(layer, site.sequence.valid, row, 39)
        want = highest([attention[column] for column in view.columns[group].tolist()], keep)
        assert kept.indices[group].tolist() == want
        assert torch.equal(kept.tokens[group], view.tokens[group, want])


def test_pdrop_finds_the_last_token_under_right_padding() -> None:
    view = decoder_view(5)
    site = view.decoder
    assert site
    site.sequence.valid[2, 35:] = False
    attention = attention_in_loops(site.next_layer, site.sequence.valid, 2, 34)
    assert method("pdrop").select(view).indices[3].tolist() == highest(
        [attention[c] for c in view.columns[3].tolist()], 5
    )


@pytest.mark.parametrize(
    ("keep", "pivots"), [(1, (4, 4)), (4, (4, 4)), (5, (4, 4)), (11, (4, 4)), (9, (1, 2))]
)
def test_dart_equals_its_rule_in_loops(keep: int, pivots: tuple[int, int]) -> None:
    view = decoder_view(keep)
    site = view.decoder
    assert site
    assert site.previous_layer
    kept = method("dart", pivot_image=pivots[0], pivot_text=pivots[1]).select(view)
    normed = site.norm(site.sequence.hidden)
    for group, row in enumerate(view.rows[:, 0].tolist()):
        image = view.columns[group].tolist()
        text = [c for c in range(40) if c > (33 if row else 27)]  # after the row's last image
        size = {
            column: sum(
                float(key_in_loops(site.previous_layer, row, column, head).abs().sum())
                for head in range(SHARED)
            )
            for column in image + text
        }
        chosen = sorted(sorted(image, key=lambda column: -size[column])[: min(pivots[0], keep)])
        order = chosen + sorted(sorted(text, key=lambda column: -size[column])[: pivots[1]])
        quota = [0] * len(order)
        for turn in range(keep - len(chosen)):
            quota[turn % len(order)] += 1
        for pivot, count in zip(order, quota, strict=True):
            alike = {
                column: float(
                    torch.cosine_similarity(normed[row, pivot], normed[row, column], dim=0)
                )
                for column in image
                if column not in chosen
            }
            chosen = chosen + sorted(alike, key=lambda column: alike[column])[:count]
        assert kept.indices[group].tolist() == sorted(image.index(column) for column in chosen)
        assert torch.equal(kept.tokens[group], view.tokens[group, kept.indices[group]])


def test_fewer_words_than_pivots_take_turns() -> None:
    size = torch.tensor([[5.0, 4, 3, 2, 1], [1.0, 2, 3, 4, 5]])
    text = torch.tensor([[False, True, False, False, True], [False, True, True, True, True]])
    assert text_pivots(size, text, 3).tolist() == [[1, 1, 4], [2, 3, 4]]
    assert text_pivots(size, text, 8).tolist() == [
        [1, 1, 1, 1, 4, 4, 4, 4],
        [1, 1, 2, 2, 3, 3, 4, 4],
    ]


def recycle_in_loops(tokens: Tensor, score: list[float], keep: int) -> tuple[list[int], Tensor]:
    """SparseVLM's step for one image. `keep` includes clusters."""
    count, kept = len(tokens), keep
    while True:  # the largest count that leaves room for clusters of the rest
        again = int(0.3 * (count - kept)) + 1
        clusters = min(int(again / 10) + 1, keep // 2)
        if kept + clusters <= keep:
            break
        kept -= 1
    chosen = highest(score, kept)
    values = {token: tokens[token].double() for token in chosen}
    rest = [token for token in range(count) if token not in chosen]
    pool = sorted(sorted(rest, key=lambda token: -score[token])[:again])
    if clusters:
        distance = {
            (i, j): float((tokens[i] - tokens[j]).double().norm()) / WIDTH**0.5
            for i in pool
            for j in pool
        }
        near = {i: sorted(distance[i, j] ** 2 for j in pool)[:clusters] for i in pool}
        density = {i: math.exp(-sum(near[i]) / clusters) for i in pool}

        def reach(i: int) -> float:
            def leads(j: int) -> bool:
                return density[j] > density[i] * (1 + 1e-9) or (
                    j < i and density[j] > density[i] * (1 - 1e-9)
                )

            return min((distance[i, j] for j in pool if leads(j)), default=max(distance.values()))

        centres = sorted(sorted(pool, key=lambda i: -reach(i) * density[i])[:clusters])
        for centre in centres:
            members = [i for i in pool if min(centres, key=lambda c: distance[c, i]) == centre]
            values[centre] = torch.stack([tokens[i].double() for i in members]).mean(dim=0)
    indices = sorted(values)
    return indices, torch.stack([values[token] for token in indices])


@pytest.mark.parametrize(
    ("count", "keep"),
    [(12, 1), (12, 2), (12, 3), (12, 11), (90, 10), (90, 30), (90, 60), (240, 40)],
)
def test_sparsevlm_recycles_dropped_tokens_into_clusters(count: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(count + keep)
    tokens, score = (
        torch.randn(3, count, WIDTH, generator=generator),
        torch.rand(3, count, generator=generator),
    )
    kept = unchanged_count(count, keep)
    kept = recycle(tokens, score, kept, keep - kept)
    for group in range(3):
        indices, values = recycle_in_loops(tokens[group], score[group].tolist(), keep)
        assert kept.indices[group].tolist() == indices
        torch.testing.assert_close(kept.tokens[group].double(), values, rtol=0, atol=1e-6)


def test_sparsevlm_counts_equal_those_of_the_code() -> None:
    for before, table in ((576, 300), (309, 200), (204, 110), (576, 66), (82, 30), (32, 17)):
        clusters = int((int((before - table) * 0.3) + 1) / 10) + 1
        assert unchanged_count(before, table + clusters) == table


def test_sparsevlm_equals_its_rule_in_loops() -> None:
    views = {keep: decoder_view(keep) for keep in (2, 5, 11)}
    kept = {keep: method("sparsevlm").select(view) for keep, view in views.items()}
    view = views[2]
    site = view.decoder
    assert site
    assert site.previous_layer
    assert site.entry_sequence
    assert site.entry_columns is not None
    start = site.entry_sequence
    for group, row in enumerate(view.rows[:, 0].tolist()):
        image = [column for column in range(48) if start.visual[row, column]]
        text = list(range(max(image) + 1, 48))
        rating = dict.fromkeys(text, 0.0)
        for column in image:
            likeness = [
                math.exp(float(start.hidden[row, column] @ start.hidden[row, word]))
                for word in text
            ]
            for word, value in zip(text, likeness, strict=True):
                rating[word] += value / sum(likeness) / len(image)
        raters = [word for word in text if rating[word] > sum(rating.values()) / len(text)]
        columns = site.entry_columns[row].tolist()
        queries = [columns.index(word) for word in raters if word in columns]
        attention = [
            attention_in_loops(site.previous_layer, site.sequence.valid, row, query)
            for query in queries
        ]
        score = [
            sum(one[c] for one in attention) / len(attention) for c in view.columns[group].tolist()
        ]
        for keep, (tokens, indices) in kept.items():
            expected, values = recycle_in_loops(view.tokens[group], score, keep)
            assert indices[group].tolist() == expected
            torch.testing.assert_close(tokens[group].double(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("case", ["alike", "zero", "twins", "bfloat16", "no words", "one word"])
def test_degenerate_tokens_give_distinct_finite_ones(name: str, case: str) -> None:
    for keep in (1, 3, 6, 11):
        view = decoder_view(keep)
        site = view.decoder
        assert site
        assert site.entry_sequence
        for sequence in (site.sequence, site.entry_sequence):
            if case == "no words":
                sequence.visual[:] = sequence.valid
            elif case == "one word":
                sequence.visual[:, :-1] = sequence.valid[:, :-1]
        tokens = view.tokens
        if case == "alike":
            tokens = tokens[:, :1].expand_as(tokens)
        elif case == "zero":
            tokens = torch.zeros_like(tokens)
        elif case == "twins":
            tokens = tokens[:, :6].repeat(1, 2, 1)
        elif case == "bfloat16":
            tokens = tokens.bfloat16()
        dtype = tokens.dtype
        hidden = site.sequence.hidden.to(dtype).index_put((view.rows, view.columns), tokens)
        cos, sin = site.next_layer.cos.to(dtype), site.next_layer.sin.to(dtype)
        layer = LayerInput(site.next_layer.layer.to(dtype), hidden, cos, sin)
        site = replace(
            site,
            sequence=Sequence(hidden, site.sequence.valid, site.sequence.visual),
            next_layer=layer,
            previous_layer=layer,
            norm=site.norm.to(dtype),
        )
        view = replace(view, tokens=tokens, decoder=site)
        kept = method(name).select(view)
        assert kept.indices.shape == (4, keep)
        assert kept.tokens.shape == (4, keep, WIDTH)
        assert (kept.indices.diff(dim=1) > 0).all()
        assert kept.tokens.isfinite().all()
        assert torch.equal(kept.indices, method(name).select(view).indices)


def test_ties_go_to_the_lower_index() -> None:
    tokens = torch.ones(1, 12, WIDTH)
    kept = recycle(tokens, torch.ones(1, 12), 4, 1)
    assert kept.indices.tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(kept.tokens, tokens[:, :5])


# ---- in a model


@pytest.mark.parametrize("name", RIVALS)
def test_eager_and_sdpa_keep_the_same_tokens(name: str) -> None:
    kept = []
    for kernel in ("eager", "sdpa"):
        vlm = tiny.model("llava", attn=kernel)
        with torch.no_grad(), attach(vlm, method(name, budget="40%"), keep_index=True) as run:
            vlm(**tiny.inputs("llava", ROWS))
            kept.append(
                [
                    {site: index.tolist() for site, index in (row.index or {}).items()}
                    for row in run.stats
                ]
            )
    assert kept[0] == kept[1]
