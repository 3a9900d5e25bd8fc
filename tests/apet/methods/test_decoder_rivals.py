"""FastV, PyramidDrop, SparseVLM and DART: against plain loops, against the model's own attention, and in a model."""

from __future__ import annotations

import math
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
from apet.attention.weights import attended, keys, of_rows, weights
from apet.methods import METHODS
from apet.methods.base import Method, Model
from apet.methods.dart import text_pivots
from apet.methods.sparsevlm import TABLE, recycle, split
from apet.schedule import Budget
from apet.view import DecoderSite, LayerInput, Sequence, View
from tests.support import tiny

RIVALS = ["fastv", "pdrop", "sparsevlm", "dart"]
WIDTH, HEADS, SHARED, HEAD = (
    16,
    4,
    2,
    4,
)  # of the layers below: four heads, of which two and two share keys


def method(name: str, **options: Any) -> Method:
    return METHODS[name](**({"budget": 1} | options))


def model(layers: int, first: int = 0) -> Model:
    asked = {
        "layers": layers,
        "first_decoder_site": first,
        "encoder_only": False,
        "tower_layers": 0,
    }
    return Model(**{name: asked[name] for name in Model._fields})


# ---- budgets


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("layers", [6, 28, 32])
@pytest.mark.parametrize("tokens", [36, 576, 740])
def test_the_average_is_the_budget(name: str, layers: int, tokens: int) -> None:
    budgets = [
        192,
        128,
        64,
        "33.3%",
        "22.2%",
        "11.1%",
        "5%",
        *range(1, tokens + 9, max(1, tokens // 40)),
    ]
    refused = []
    for budget in budgets:
        asked = float(min(Budget.parse(budget).of(tokens), tokens))
        try:
            schedule = method(name, budget=budget).plan(tokens, model(layers))
        except ValueError:
            refused.append(asked)
            continue
        assert abs(schedule.average - asked) <= 1
        assert all(site.stage == "decoder" and site.layer >= 1 for site in schedule.sites)
        if asked == tokens:
            assert {site.keep for site in schedule.sites} == {tokens}
    assert (
        max(refused, default=0) < tokens / layers + (3 + 0.2 * tokens) / layers + 1
    )  # what one layer and one each need


@pytest.mark.parametrize("name", RIVALS)
def test_the_smallest_budget_is_told(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a budget of 4 leaves {name} none of .* 576 visual .*possible is \d+"
    ) as told:
        method(name, budget=4).plan(576, model(32))
    least = int(str(told.value).rsplit(" ", 1)[1])
    assert abs(method(name, budget=least).plan(576, model(32)).average - least) <= 1
    with pytest.raises(ValueError, match="possible is"):
        method(name, budget=least - 1).plan(576, model(32))


@pytest.mark.parametrize(
    ("name", "budget", "schedule"),
    [
        ("fastv", 192, "2=166"),
        ("fastv", 128, "2=98"),
        ("fastv", 64, "2=30"),
        ("fastv", 28, "1=10"),
        ("dart", 64, "2=30"),
        ("pdrop", 270, "8=288,16=144,24=72"),  # the paper's: a half, a quarter, an eighth
        ("pdrop", 192, "8=146,16=37,24=9"),
        (
            "pdrop",
            64,
            "2=110,8=21,16=4",
        ),  # the author's advice for budgets that [8, 16, 24] cannot reach
        ("pdrop", 30, "1=91,4=14,8=2"),
        ("sparsevlm", 192, "3=280,7=185,16=102"),
        ("sparsevlm", 64, "3=29,7=11,16=6"),
        ("sparsevlm", 30, "1=42,3=16,8=9"),
        ("sparsevlm", 576, "3=576,7=576,16=576"),
    ],
)
def test_schedules(name: str, budget: int, schedule: str) -> None:
    assert str(method(name, budget=budget).plan(576, model(32))) == schedule


@pytest.mark.parametrize("budget", [64, 96, 128, 192])
def test_sparsevlm_scales_the_table(budget: int) -> None:
    sites = method("sparsevlm", budget=budget).plan(576, model(32)).sites
    factor = (32 * budget - 3 * 576) / sum(
        span * kept for span, kept in zip((4, 9, 16), TABLE[budget], strict=True)
    )
    assert [site.keep for site in sites] == [round(factor * kept) for kept in TABLE[budget]]


def test_layers_follow_the_depth_and_the_model() -> None:
    assert [site.layer for site in method("pdrop", budget="50%").plan(576, model(28)).sites] == [
        7,
        14,
        21,
    ]
    assert [
        site.layer for site in method("sparsevlm", budget="50%").plan(576, model(28)).sites
    ] == [3, 6, 14]
    assert [
        site.layer for site in method("sparsevlm", budget="50%").plan(576, model(36, first=5)).sites
    ] == [5, 8, 18]
    assert [
        site.layer for site in method("fastv", budget="60%").plan(576, model(6, first=3)).sites
    ] == [3]
    assert [site.layer for site in method("pdrop", budget="60%").plan(576, model(3)).sites] == [
        1,
        2,
    ]  # no third
    assert method("fastv", budget="100%").plan(576, model(1)).sites == ()
    assert method("fastv", budget="10%").plan(0, model(32)).sites == ()


def test_schedules_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"'encoder=96'.*fastv ranks .* layers 1 to 31"):
        method("fastv", budget=None, schedule="encoder=96,16=32").plan(576, model(32))
    with pytest.raises(ValueError, match=r"'0=96'.*layers 1 to 31"):
        method("dart", budget=None, schedule="0=96").plan(576, model(32))
    assert str(method("pdrop", budget=None, schedule="0=96").plan(576, model(32))) == "0=96"
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
def test_attention_is_the_models_own(family: str) -> None:
    vlm, inputs = tiny.model(family, attn="eager"), tiny.inputs(family, ROWS)
    seen: list[LayerInput] = []

    def note(layer: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        seen.append(LayerInput(layer, args[0], *kwargs["position_embeddings"]))

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
        for layer, want in zip(seen, out.attentions, strict=True):
            found = weights(layer, valid, queries)
            assert found.dtype == torch.float32
            torch.testing.assert_close(
                found, want[torch.arange(3)[:, None], :, queries].transpose(1, 2)
            )
            some = attended(layer, valid, torch.tensor([2, 0, 0]), queries)
            want = torch.stack(
                [want[2, :, queries[0]], want[0, :, queries[1]], want[0, :, queries[2]]]
            ).mean(dim=1)
            torch.testing.assert_close(some, want)
        cache = vlm(**inputs, use_cache=True).past_key_values
        torch.testing.assert_close(
            keys(of_rows(seen[1], torch.tensor([1]))), cache.layers[1].keys[1:2]
        )


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    view = a_view(keep=5)
    assert view.decoder
    asked = view.decoder.here, view.decoder.sequence.valid, view.rows[:, 0], torch.full((4, 2), 39)
    whole = attended(*asked)
    monkeypatch.setattr("apet.attention.weights.CHUNK", 1)
    torch.testing.assert_close(attended(*asked), whole)


def test_layers_that_cannot_be_asked() -> None:
    hidden = torch.randn(1, 8, WIDTH)
    with pytest.raises(
        ValueError, match=r"Linear: it has no q_proj, .*input_layernorm, apply_rotary_pos_emb"
    ):
        keys(LayerInput(nn.Linear(2, 2), hidden, hidden, hidden))
    layer = a_layer(0)
    layer.self_attn.sliding_window = 4
    with pytest.raises(ValueError, match="8 tokens: it looks 4 tokens back"):
        keys(LayerInput(layer, hidden, hidden, hidden))


# ---- what is kept, against loops


def a_layer(seed: int) -> Any:
    """Llama's, with weights of a useful size."""
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


def a_view(keep: int, seed: int = 0) -> View:
    """Three rows, left-padded to 40 columns, at a site where 8 columns went before; the second has two groups of 12."""
    generator = torch.Generator().manual_seed(seed)
    entered, hidden, earlier = (
        torch.randn(3, count, WIDTH, generator=generator) for count in (48, 40, 40)
    )
    valid, visual = torch.zeros(2, 3, 48, dtype=torch.bool)
    groups = [(0, 20), (1, 8), (1, 22), (2, 22)]
    for row, padding in enumerate((16, 2, 12)):
        valid[row, padding:] = True
    for row, start in groups:
        visual[row, start : start + 16] = True  # as it was
    visual[1, 22:24] = False  # there is some text between them
    source = torch.stack(
        [torch.randperm(48, generator=generator)[:40].sort().values for _ in range(3)]
    )
    short_valid, short_visual = torch.zeros(2, 3, 40, dtype=torch.bool)
    for row, start in groups:
        short_visual[row, start - 4 * (row == 0) : start - 4 * (row == 0) + 12] = True
    for row, padding in enumerate((12, 3, 9)):
        short_valid[row, padding:] = True
    rows = torch.tensor([[row] for row, _ in groups])
    columns = torch.tensor(
        [[start - 4 * (row == 0) + place for place in range(12)] for row, start in groups]
    )
    rotary = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, head_dim=HEAD)
    )
    cos, sin = rotary(hidden, torch.arange(40)[None] * 3)  # of one row for all
    norm = LlamaRMSNorm(WIDTH).requires_grad_(False)
    norm.weight.data = torch.rand(WIDTH, generator=generator)
    site = DecoderSite(
        sequence=Sequence(hidden, short_valid, short_visual),
        here=LayerInput(a_layer(1), hidden, cos, sin),
        before=LayerInput(a_layer(2), earlier, cos, sin),
        norm=norm,
        entered=Sequence(entered, valid, visual),
        source=source,
    )
    return View(
        "decoder", 3, hidden[rows, columns], keep, (1, 12), (0, 1, 1, 2), rows, columns, site
    )


def turned(vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.stack(
        [
            vector[place] * cos[place]
            + (-vector[place + 2] if place < 2 else vector[place - 2]) * sin[place]
            for place in range(HEAD)
        ]
    )


def key_by_hand(
    layer: LayerInput, row: int, column: int, head: int, which: str = "k_proj"
) -> Tensor:
    normed = layer.layer.input_layernorm(layer.hidden[row, column])
    projected = (
        getattr(layer.layer.self_attn, which).weight[head * HEAD : (head + 1) * HEAD] @ normed
    )
    return turned(projected, layer.cos[0, column], layer.sin[0, column])


def attention_by_hand(layer: LayerInput, valid: Tensor, row: int, query: int) -> dict[int, float]:
    """The mean over the heads of what one token attends to."""
    places = [column for column in range(query + 1) if valid[row, column]]
    mean = dict.fromkeys(range(valid.shape[1]), 0.0)
    for head in range(HEADS):
        asked = key_by_hand(layer, row, query, head, "q_proj")
        logits = [
            float(asked @ key_by_hand(layer, row, place, head // 2)) / HEAD**0.5 for place in places
        ]
        total = sum(map(math.exp, logits))
        for place, logit in zip(places, logits, strict=True):
            mean[place] += math.exp(logit) / total / HEADS
    return mean


def best(score: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda place: -score[place])[:count])


@pytest.mark.parametrize("keep", [1, 5, 11])
@pytest.mark.parametrize("name", ["fastv", "pdrop"])
def test_what_the_last_token_attends_to(name: str, keep: int) -> None:
    view = a_view(keep)
    site = view.decoder
    assert site
    assert site.before
    found = method(name).select(view)
    for group, row in enumerate(view.rows[:, 0].tolist()):
        layer = {"fastv": site.before, "pdrop": site.here}[name]
        seen = attention_by_hand(layer, site.sequence.valid, row, 39)
        want = best([seen[column] for column in view.columns[group].tolist()], keep)
        assert found.places[group].tolist() == want
        assert torch.equal(found.tokens[group], view.tokens[group, want])


def test_the_last_token_under_right_padding() -> None:
    view = a_view(5)
    site = view.decoder
    assert site
    site.sequence.valid[2, 35:] = False
    seen = attention_by_hand(site.here, site.sequence.valid, 2, 34)
    assert method("pdrop").select(view).places[3].tolist() == best(
        [seen[c] for c in view.columns[3].tolist()], 5
    )


@pytest.mark.parametrize("keep", [1, 4, 5, 9, 11])
@pytest.mark.parametrize("pivots", [(4, 4), (1, 2)])
def test_dart(keep: int, pivots: tuple[int, int]) -> None:
    view = a_view(keep)
    site = view.decoder
    assert site
    assert site.before
    found = method("dart", pivot_image=pivots[0], pivot_text=pivots[1]).select(view)
    normed = site.norm(site.sequence.hidden)
    for group, row in enumerate(view.rows[:, 0].tolist()):
        image = view.columns[group].tolist()
        text = [c for c in range(40) if c > (33 if row else 27)]  # after the row's last image
        size = {
            column: sum(
                float(key_by_hand(site.before, row, column, head).abs().sum())
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
        assert found.places[group].tolist() == sorted(image.index(column) for column in chosen)
        assert torch.equal(found.tokens[group], view.tokens[group, found.places[group]])


def test_few_words_take_turns_as_pivots() -> None:
    size = torch.tensor([[5.0, 4, 3, 2, 1], [1.0, 2, 3, 4, 5]])
    text = torch.tensor([[False, True, False, False, True], [False, True, True, True, True]])
    assert text_pivots(size, text, 3).tolist() == [[1, 1, 4], [2, 3, 4]]
    assert text_pivots(size, text, 8).tolist() == [
        [1, 1, 1, 1, 4, 4, 4, 4],
        [1, 1, 2, 2, 3, 3, 4, 4],
    ]


def recycled_by_hand(tokens: Tensor, score: list[float], keep: int) -> tuple[list[int], Tensor]:
    """SparseVLM's step for one image, clusters among the `keep`."""
    count, kept = len(tokens), keep
    while True:  # as many are left alone as leaves room for the clusters of the rest
        again = int(0.3 * (count - kept)) + 1
        clusters = min(int(again / 10) + 1, keep // 2)
        if kept + clusters <= keep:
            break
        kept -= 1
    chosen = best(score, kept)
    values = {place: tokens[place].double() for place in chosen}
    rest = [place for place in range(count) if place not in chosen]
    pool = sorted(sorted(rest, key=lambda place: -score[place])[:again])
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
    places = sorted(values)
    return places, torch.stack([values[place] for place in places])


@pytest.mark.parametrize(
    ("count", "keep"),
    [(12, 1), (12, 2), (12, 3), (12, 11), (90, 10), (90, 30), (90, 60), (240, 40)],
)
def test_sparsevlm_recycles(count: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(count + keep)
    tokens, score = (
        torch.randn(3, count, WIDTH, generator=generator),
        torch.rand(3, count, generator=generator),
    )
    kept = split(count, keep)
    found = recycle(tokens, score, kept, keep - kept)
    for group in range(3):
        places, values = recycled_by_hand(tokens[group], score[group].tolist(), keep)
        assert found.places[group].tolist() == places
        torch.testing.assert_close(found.tokens[group].double(), values, rtol=0, atol=1e-6)


def test_sparsevlm_counts_are_the_codes() -> None:
    for before, table in ((576, 300), (309, 200), (204, 110), (576, 66), (82, 30), (32, 17)):
        clusters = int((int((before - table) * 0.3) + 1) / 10) + 1
        assert split(before, table + clusters) == table


@pytest.mark.parametrize("keep", [2, 5, 11])
def test_sparsevlm(keep: int) -> None:
    view = a_view(keep)
    site = view.decoder
    assert site
    assert site.before
    assert site.entered
    assert site.source is not None
    found = method("sparsevlm").select(view)
    start = site.entered
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
        queries = [
            site.source[row].tolist().index(word) for word in raters if word in site.source[row]
        ]
        seen = [
            attention_by_hand(site.before, site.sequence.valid, row, query) for query in queries
        ]
        score = [sum(one[c] for one in seen) / len(seen) for c in view.columns[group].tolist()]
        places, values = recycled_by_hand(view.tokens[group], score, keep)
        assert found.places[group].tolist() == places
        torch.testing.assert_close(found.tokens[group].double(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("what", ["alike", "zero", "twins", "bfloat16", "no words", "one word"])
def test_nasty_data(name: str, what: str) -> None:
    for keep in (1, 3, 6, 11):
        view = a_view(keep)
        site = view.decoder
        assert site
        assert site.entered
        for sequence in (site.sequence, site.entered):
            if what == "no words":
                sequence.visual[:] = sequence.valid
            elif what == "one word":
                sequence.visual[:, :-1] = sequence.valid[:, :-1]
        tokens = view.tokens
        if what == "alike":
            tokens = tokens[:, :1].expand_as(tokens)
        elif what == "zero":
            tokens = torch.zeros_like(tokens)
        elif what == "twins":
            tokens = tokens[:, :6].repeat(1, 2, 1)
        elif what == "bfloat16":
            tokens = tokens.bfloat16()
        dtype = tokens.dtype
        hidden = site.sequence.hidden.to(dtype).index_put((view.rows, view.columns), tokens)
        cos, sin = site.here.cos.to(dtype), site.here.sin.to(dtype)
        here = LayerInput(site.here.layer.to(dtype), hidden, cos, sin)
        view = View(
            "decoder", 3, tokens, keep, view.grid, view.seeds, view.rows, view.columns,
            DecoderSite(Sequence(hidden, site.sequence.valid, site.sequence.visual), here, here, site.norm.to(dtype),
                        site.entered, site.source),
        )  # fmt: skip
        found = method(name).select(view)
        assert found.places.shape == (4, keep)
        assert found.tokens.shape == (4, keep, WIDTH)
        assert (found.places.diff(dim=1) > 0).all()
        assert found.tokens.isfinite().all()
        assert torch.equal(found.places, method(name).select(view).places)


def test_equals_lose_to_the_first() -> None:
    tokens = torch.ones(1, 12, WIDTH)
    found = recycle(tokens, torch.ones(1, 12), 4, 1)
    assert found.places.tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(found.tokens, tokens[:, :5])


# ---- in a model


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", RIVALS)
def test_a_batch_is_its_rows(family: str, name: str) -> None:
    vlm, rows = tiny.model(family), [*ROWS, ROWS[0] | {"text": "And what is this one here?"}]
    if family in tiny.VIDEO_FAMILIES:
        rows.append({"text": "a video", "videos": [tiny.video(8, 24, 24, 5)]})
    asked: dict[str, Any] = {
        "max_new_tokens": 2,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with attach(vlm, method(name, budget="50%"), keep_index=True) as run:
        together, stats = vlm.generate(**tiny.inputs(family, rows), **asked), run.stats
        for place, row in enumerate(rows):
            alone = vlm.generate(**tiny.inputs(family, [row]), **asked)
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(
                    together.logits[step][place], logits[0], rtol=0, atol=1e-4
                )
            if len(row) == 1:
                continue  # text
            one, other = stats[place], run.stats[0]
            assert one.index
            assert other.index
            assert {site: kept.tolist() for site, kept in one.index.items()} == {
                site: kept.tolist() for site, kept in other.index.items()
            }
            assert one.kept == other.kept
            assert abs(one.budget - one.visual_tokens / 2) <= len(row.get("images", "v"))


@pytest.mark.parametrize("name", RIVALS)
def test_all_kernels_keep_the_same(name: str) -> None:
    found = []
    for kernel in ("eager", "sdpa"):
        vlm = tiny.model("llava", attn=kernel)
        with torch.no_grad(), attach(vlm, method(name, budget="40%"), keep_index=True) as run:
            vlm(**tiny.inputs("llava", ROWS))
            found.append(
                [
                    {site: index.tolist() for site, index in (row.index or {}).items()}
                    for row in run.stats
                ]
            )
    assert found[0] == found[1]
