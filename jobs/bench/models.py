"""Models of the real shapes with random weights, and one prefill of them, timed: what the benchmarks share.

A `Subject` is a model of the paper and the prompt that its figures are for. Each has two sizes: `7b`, the real one, and
`small`, which two CPU cores prefill in seconds; the LLaVAs also have `tiny`. Weights are random, in bfloat16 on a GPU
and float32 on a CPU, and are made where they are used: nothing is downloaded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from apet import Flops, attach, prefill_flops
from apet.flops import shape_of
from apet.methods.base import Method, Model
from apet.models import family_of, pack_windows
from apet.schedule import Schedule
from jobs.bench.compress import peak_mib

IMAGE, VIDEO = 32000, 32001  # ids of the placeholders of LLaVA and Video-LLaVA
LLAMA: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    "small": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
QWEN: dict[str, dict[str, Any]] = {
    "small": {
        "text": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 4,
        },
        "vision": {
            "hidden_size": 256,
            "intermediate_size": 688,
            "depth": 8,
            "num_heads": 4,
            "out_hidden_size": 512,
        },
    },
    "7b": {
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
        },
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
        | {"out_hidden_size": 3584},
    },
}
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
CLIP_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
}
CLIP_TINY = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
GRID = (1, 40, 74)  # Qwen's patches: 740 tokens of four
WINDOWS = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}


@dataclass(frozen=True)
class Subject:
    """A model and its prompt."""

    name: str
    config: Callable[[str], Any]  # of a size
    media: Callable[[int], dict[str, Tensor]]  # of so many rows
    placeholder: int
    visual: int  # tokens with a budget
    text: int  # words, and tokens outside the budget
    groups: int | None = None  # of the visual tokens, where one prompt has several
    inside: int = 0  # of `text`, placeholders that no budget counts: a frame's CLS

    def make(self, size: str, device: torch.device, attn: str) -> Any:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            made = hf.AutoModelForImageTextToText.from_config(
                self.config(size), attn_implementation=attn, dtype=dtype
            )
        pack_windows(made)  # as `load` does
        return made.eval()

    def prompts(self, batch: int, model: Any) -> dict[str, Tensor]:
        """A picture or video, and a question a row, none padded."""
        words = self.text - self.inside
        before = words // 2 + 2
        ids = torch.randint(3, 20_000, (batch, words), generator=torch.Generator().manual_seed(0))
        seen = torch.full((batch, self.visual + self.inside), self.placeholder)
        ids = torch.cat([ids[:, :before], seen, ids[:, before:]], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.media(batch)}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self.placeholder).long()
        to = {name: value.to(model.device) for name, value in inputs.items()}
        return {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in to.items()
        }

    def flops(self, model: Any, method: Method) -> Flops:
        """Of one row's prefill, for the method's own schedule."""
        shape = shape_of(model.config)
        shape = replace(shape, projects_first=shape.projects_first or method.after_projector)
        return prefill_flops(shape, self.schedule(model, method), self.text, groups=self.groups)

    def schedule(self, model: Any, method: Method) -> Schedule:
        family = family_of(model)
        known = Model(
            len(family.layers), family.tower_layers, family.first_decoder_site, family.encoder_only
        )
        return method.plan(self.visual, known)

    def kv_bytes(self, model: Any, method: Method, batch: int) -> int:
        """What the schedule says that keys and values take."""
        schedule, decoder = self.schedule(model, method), shape_of(model.config).decoder
        tokens = sum(schedule.tokens_at(layer) + self.text for layer in range(decoder.layers))
        return batch * tokens * 2 * decoder.kv_heads * decoder.head_dim * model.dtype.itemsize


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def llava(size: str) -> Any:
    tower = CLIP_TINY if size == "tiny" else CLIP
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            **tower, patch_size=14, image_size=336, projection_dim=768
        ),
        text_config=hf.LlamaConfig(**LLAMA[size], vocab_size=32064),
        image_token_index=IMAGE,
        image_seq_length=576,
    )


def video_llava(size: str) -> Any:
    tower = {"7b": CLIP, "small": CLIP_SMALL, "tiny": CLIP_TINY}[size]
    text = (
        LLAMA[size]
        if size != "small"
        else {**LLAMA["small"], "hidden_size": 512, "intermediate_size": 1408}
    )
    return hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            **tower, patch_size=14, image_size=224, projection_dim=768
        ),
        text_config=hf.LlamaConfig(**text, vocab_size=32064, max_position_embeddings=4096),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=256,
        video_seq_length=8 * 257,
    )


def qwen(size: str) -> Any:
    text = {**QWEN[size]["text"], "num_key_value_heads": 4, "vocab_size": 152064}
    head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [head // 4, head * 3 // 8, head * 3 // 8]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    ids = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    vision = {**QWEN[size]["vision"], **WINDOWS, "patch_size": 14}
    return hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **ids, vision_end_token_id=151653
    )


def _grid(rows: int) -> dict[str, Tensor]:
    patches = _noise(rows * GRID[1] * GRID[2], 3 * 2 * 14 * 14)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([GRID] * rows)}


SUBJECTS = {
    each.name: each
    for each in (
        Subject(
            "llava-1.5-7b",
            llava,
            lambda rows: {"pixel_values": _noise(rows, 3, 336, 336)},
            IMAGE,
            576,
            66,
        ),
        Subject("qwen2.5-vl-7b", qwen, _grid, 151655, 740, 56),
        Subject(
            "video-llava-7b",
            video_llava,
            lambda rows: {"pixel_values_videos": _noise(rows, 8, 3, 224, 224)},
            VIDEO,
            2048,
            60 + 8,
            groups=8,
            inside=8,
        ),
    )
}


@dataclass
class Point:
    """A method at a budget, and what was measured."""

    method: Method
    budget: str
    prefill: list[float] = field(default_factory=list)  # ms, one a turn
    decoder: list[float] = field(default_factory=list)
    compress: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    kv_bytes: int = 0
    kept: str = "full"  # by site
    refused: str | None = None


def now(device: torch.device) -> Any:
    event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
    return torch.cuda.current_stream().record_event(event) if event else perf_counter()


def ms(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return 1e3 * float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end))


@torch.inference_mode()
def run(model: Any, point: Point, inputs: dict[str, Tensor]) -> None:
    """One prefill, added to the point's measurements. Vanilla is the model without anything attached."""
    device, batch = model.device, len(inputs["input_ids"])
    seen: dict[str, Any] = {}

    def prefill() -> None:
        seen["start"] = now(device)
        seen["output"] = model(**inputs, use_cache=True, logits_to_keep=1)
        seen["end"] = now(device)

    with ExitStack() as stack:
        attached = (
            None
            if point.method.name == "vanilla"
            else stack.enter_context(attach(model, point.method))
        )
        decoder = model.model.language_model  # our hook comes after the attached ones
        hook = decoder.register_forward_pre_hook(lambda *_: seen.update(decoder=now(device)))
        stack.callback(hook.remove)
        point.peak_mib = max(point.peak_mib, peak_mib(prefill, device, interval=0.01))
    point.prefill.append(ms(seen["start"], seen["end"]))
    point.decoder.append(ms(seen["decoder"], seen["end"]))
    point.kv_bytes = sum(
        part.keys.nbytes + part.values.nbytes for part in seen["output"].past_key_values.layers
    )
    if attached:
        row = attached.stats[0]
        point.compress.append(row.compress_ms * batch)
        kept = (f"{site}={kept}" for site, kept in row.kept.items() if kept < row.visual_tokens)
        point.kept = ",".join(kept) or "full"


def measure(model: Any, points: Sequence[Point], inputs: dict[str, Tensor], turns: int) -> None:
    """All points in turn; on a GPU after a turn that does not count. Memory must suffice for vanilla alone."""
    for turn in range(-int(model.device.type == "cuda"), turns):
        for point in points:
            if point.refused:
                continue
            try:
                run(model, point, inputs)
            except ValueError as error:
                point.refused = str(error)
            except torch.OutOfMemoryError as error:
                if point is points[0]:
                    raise
                point.refused = f"out of memory: {error}"
            if point.refused and model.device.type == "cuda":
                torch.cuda.empty_cache()  # not before `error` is gone, which holds the tensors
            if turn < 0:
                point.prefill, point.decoder, point.compress = [], [], []


def report(subject: Subject, model: Any, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Medians and what follows from them; the first point is vanilla."""
    base, rows = points[0], []
    most = subject.flops(model, base.method)
    for point in points:
        row: dict[str, Any] = {"method": point.method.name, "budget": point.budget}
        if point.refused:
            rows.append(row | {"refused": point.refused})
            continue
        counted = subject.flops(model, point.method)
        limits = {"prefill": most.total / counted.total, "decoder": most.decoder / counted.decoder}
        for span, limit in limits.items():
            took, took_base = (statistics.median(getattr(of, span)) for of in (point, base))
            faster = took_base / took
            row[span] = {
                "ms": took,
                "speedup": faster,
                "limit": limit,
                "share": 100 * faster / limit,
            }
        compress = statistics.median(point.compress) if point.compress else 0.0
        row |= {
            "kept": point.kept,
            "compress_ms": compress,
            "kv_bytes": point.kv_bytes,
            "flops": counted.total,
        }
        rows.append(
            row
            | {"compress_share": 100 * compress / row["prefill"]["ms"], "peak_mib": point.peak_mib}
        )
    return rows


HEAD = """\
                    ---------- prefill ---------   ---------- decoder ---------     compress         KV     peak
method      budget       ms speed-up limit  share       ms speed-up limit  share      ms      %      MiB      MiB"""


def line(row: dict[str, Any]) -> str:
    name = f"{row['method']:12} {row['budget']:>5}"
    if "refused" in row:
        return f"{name}  refuses: {row['refused'].splitlines()[0]}"
    spans = [
        f"{span['ms']:9.1f} {span['speedup']:7.2f}x {span['limit']:4.2f}x {span['share']:4.0f} %"
        for span in (row["prefill"], row["decoder"])
    ]
    memory = f"{row['kv_bytes'] / 2**20:8.1f} {row['peak_mib']:8.0f}"
    return f"{name} {' '.join(spans)}{row['compress_ms']:9.1f} {row['compress_share']:6.1f} {memory}  {row['kept']}"
