"""Models of real shapes with random weights, and their prefill, timed; shared by the benchmarks.

A `Subject` is a model of the paper with the prompt that the paper's figures are for. It has two
sizes: `7b`, the real one, and `small`, which two CPU cores prefill in seconds. The LLaVAs also have
`tiny`. Weights are random, bfloat16 on a GPU and float32 on a CPU. Nothing is downloaded.
"""

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
from apet.methods.base import Method, ModelLayout
from apet.models import family_of, pack_windows
from apet.schedule import Schedule
from apet.transformers_api import cache_of
from jobs.bench.timing import peak_mib

# Placeholder tokens of LLaVA and Video-LLaVA.
IMAGE, VIDEO = 32000, 32001


def llama_shape(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    """Sizes as Llama, Qwen2.5 and CLIP name them in their configs."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


LLAMA = {
    "tiny": llama_shape(512, 1408, 8, 8),
    "small": llama_shape(1024, 2816, 16, 16),
    "7b": llama_shape(4096, 11008, 32, 32),
}
CLIP = {
    "tiny": llama_shape(128, 512, 4, 2),
    "small": llama_shape(256, 1024, 12, 4),
    "7b": llama_shape(1024, 4096, 24, 16),
}
QWEN_TEXT = {"small": llama_shape(512, 2048, 16, 4), "7b": llama_shape(3584, 18944, 28, 28)}
QWEN_VISION = {
    "small": {"hidden_size": 256, "intermediate_size": 688, "depth": 8, "num_heads": 4},
    "7b": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16},
}
QWEN_WINDOWS = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
QWEN_PATCHES = (1, 40, 74)  # four patches a token: 740 tokens


@dataclass(frozen=True)
class Subject:
    """A model and its prompt."""

    name: str
    config: Callable[[str], Any]  # by size
    media: Callable[[int], dict[str, Tensor]]  # by number of rows
    placeholder: int
    visual: int  # tokens that the budget counts
    text: int  # words, and visual tokens that the budget does not count
    groups: int | None = None  # of visual tokens, if one prompt has several
    uncounted: int = 0  # placeholders among `text`: the CLS tokens of frames

    def make(self, size: str, device: torch.device, attn: str) -> Any:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            model = hf.AutoModelForImageTextToText.from_config(
                self.config(size), attn_implementation=attn, dtype=dtype
            )
        pack_windows(model)  # as `load` does
        return model.eval()

    def prompts(self, batch: int, model: Any) -> dict[str, Tensor]:
        """Inputs of a batch: one picture or video and one question a row, without padding."""
        words = self.text - self.uncounted
        before = words // 2 + 2
        ids = torch.randint(3, 20_000, (batch, words), generator=torch.Generator().manual_seed(0))
        media = torch.full((batch, self.visual + self.uncounted), self.placeholder)
        ids = torch.cat([ids[:, :before], media, ids[:, before:]], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.media(batch)}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self.placeholder).long()
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        return {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }

    def flops(self, model: Any, method: Method) -> Flops:
        """Operations of the prefill of one row under the method's own schedule."""
        shape = shape_of(model.config)
        shape = replace(shape, projects_first=shape.projects_first or method.after_projector)
        return prefill_flops(shape, self.schedule(model, method), self.text, groups=self.groups)

    def schedule(self, model: Any, method: Method) -> Schedule:
        family = family_of(model)
        layout = ModelLayout(
            len(family.layers), family.tower_layers, family.first_decoder_site, family.encoder_only
        )
        return method.plan(self.visual, layout)

    def kv_bytes(self, model: Any, method: Method, batch: int) -> int:
        """Size of keys and values that the schedule predicts."""
        schedule, decoder = self.schedule(model, method), shape_of(model.config).decoder
        tokens = sum(schedule.tokens_at(layer) + self.text for layer in range(decoder.layers))
        return batch * tokens * 2 * decoder.kv_heads * decoder.head_dim * model.dtype.itemsize


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def llava(size: str) -> Any:
    tower = CLIP["tiny" if size == "tiny" else "7b"]
    vision = hf.CLIPVisionConfig(**tower, patch_size=14, image_size=336, projection_dim=768)
    return hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**LLAMA[size], vocab_size=32064),
        image_token_index=IMAGE,
        image_seq_length=576,
    )


def video_llava(size: str) -> Any:
    vision = hf.CLIPVisionConfig(**CLIP[size], patch_size=14, image_size=224, projection_dim=768)
    text = LLAMA[size]
    if size == "small":  # eight frames take longer than one picture
        text = {**text, "hidden_size": 512, "intermediate_size": 1408}
    return hf.VideoLlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**text, vocab_size=32064, max_position_embeddings=4096),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=256,
        video_seq_length=8 * 257,
    )


def qwen(size: str) -> Any:
    text = {**QWEN_TEXT[size], "num_key_value_heads": 4, "vocab_size": 152064}
    half_head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half_head // 4, half_head * 3 // 8, half_head * 3 // 8]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    vision = {**QWEN_VISION[size], **QWEN_WINDOWS, "patch_size": 14}
    return hf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    )


def _qwen_media(rows: int) -> dict[str, Tensor]:
    _, height, width = QWEN_PATCHES
    patches = _noise(rows * height * width, 3 * 2 * 14 * 14)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([QWEN_PATCHES] * rows)}


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            name="llava-1.5-7b",
            config=llava,
            media=lambda rows: {"pixel_values": _noise(rows, 3, 336, 336)},
            placeholder=IMAGE,
            visual=576,
            text=66,
        ),
        Subject(
            name="qwen2.5-vl-7b",
            config=qwen,
            media=_qwen_media,
            placeholder=151655,
            visual=740,
            text=56,
        ),
        Subject(
            name="video-llava-7b",
            config=video_llava,
            media=lambda rows: {"pixel_values_videos": _noise(rows, 8, 3, 224, 224)},
            placeholder=VIDEO,
            visual=2048,
            text=60 + 8,
            groups=8,
            uncounted=8,
        ),
    )
}


@dataclass
class Measurement:
    """A method at a budget, and what was measured of its prefill."""

    method: Method
    budget: str
    prefill: list[float] = field(default_factory=list)  # ms, one a turn
    decoder: list[float] = field(default_factory=list)
    compress: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    kv_bytes: int = 0
    kept: str = "full"  # tokens by site
    refused: str | None = None


def timestamp(device: torch.device) -> Any:
    if device.type != "cuda":
        return perf_counter()
    return torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))


def elapsed_ms(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return 1e3 * float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end))


@torch.inference_mode()
def run_prefill(model: Any, measurement: Measurement, inputs: dict[str, Tensor]) -> None:
    """Run one prefill and add its measurements. Vanilla is the model with nothing attached."""
    device, batch = model.device, len(inputs["input_ids"])
    times: dict[str, Any] = {}

    def prefill() -> None:
        times["start"] = timestamp(device)
        times["output"] = model(**inputs, use_cache=True, logits_to_keep=1)
        times["end"] = timestamp(device)

    with ExitStack() as stack:
        method, attached = measurement.method, None
        if method.name != "vanilla":
            attached = stack.enter_context(attach(model, method))
        # Registered after the attached hooks, so that it runs after them.
        decoder = model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda *_: times.update(decoder=timestamp(device)))
        stack.callback(hook.remove)
        peak = peak_mib(prefill, device, interval_s=0.01)
    measurement.peak_mib = max(measurement.peak_mib, peak)
    measurement.prefill.append(elapsed_ms(times["start"], times["end"]))
    measurement.decoder.append(elapsed_ms(times["decoder"], times["end"]))
    layers = cache_of(times["output"]).layers
    measurement.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    if attached:
        row = attached.stats[0]
        measurement.compress.append(row.compress_ms * batch)
        kept = (f"{site}={kept}" for site, kept in row.kept.items() if kept < row.visual_tokens)
        measurement.kept = ",".join(kept) or "full"


def measure(
    model: Any, measurements: Sequence[Measurement], inputs: dict[str, Tensor], turns: int
) -> None:
    """Run all methods in turn; on a GPU after one turn that does not count.

    The first method is vanilla. If the memory is not enough for it, OutOfMemoryError is raised;
    other methods are then marked as refused.
    """
    for turn in range(-int(model.device.type == "cuda"), turns):
        for measurement in measurements:
            if measurement.refused:
                continue
            try:
                run_prefill(model, measurement, inputs)
            except ValueError as error:
                measurement.refused = str(error)
            except torch.OutOfMemoryError as error:
                if measurement is measurements[0]:
                    raise
                measurement.refused = f"out of memory: {error}"
            if measurement.refused and model.device.type == "cuda":
                # Not inside `except`: the error holds the tensors.
                torch.cuda.empty_cache()
            if turn < 0:
                measurement.prefill, measurement.decoder, measurement.compress = [], [], []


def summarise(
    subject: Subject, model: Any, measurements: Sequence[Measurement]
) -> list[dict[str, Any]]:
    """Medians, speed-ups and their limits, one row a method; the first is vanilla."""
    vanilla, rows = measurements[0], []
    vanilla_flops = subject.flops(model, vanilla.method)
    for measurement in measurements:
        row: dict[str, Any] = {"method": measurement.method.name, "budget": measurement.budget}
        if measurement.refused:
            rows.append(row | {"refused": measurement.refused})
            continue
        flops = subject.flops(model, measurement.method)
        limits = {
            "prefill": vanilla_flops.total / flops.total,
            "decoder": vanilla_flops.decoder / flops.decoder,
        }
        for span, limit in limits.items():
            median = statistics.median(getattr(measurement, span))
            speedup = statistics.median(getattr(vanilla, span)) / median
            share = 100 * speedup / limit
            row[span] = {"ms": median, "speedup": speedup, "limit": limit, "share": share}
        compress = statistics.median(measurement.compress) if measurement.compress else 0.0
        rows.append(
            row
            | {
                "kept": measurement.kept,
                "compress_ms": compress,
                "kv_bytes": measurement.kv_bytes,
                "flops": flops.total,
                "compress_share": 100 * compress / row["prefill"]["ms"],
                "peak_mib": measurement.peak_mib,
            }
        )
    return rows


HEAD = (
    f"{'':20}---------- prefill ---------   ---------- decoder ---------"
    "     compress         KV     peak\n"
    "method      budget       ms speed-up limit  share       ms speed-up limit  share"
    "      ms      %      MiB      MiB"
)


def format_row(row: dict[str, Any]) -> str:
    name = f"{row['method']:12} {row['budget']:>5}"
    if "refused" in row:
        return f"{name}  refuses: {row['refused'].splitlines()[0]}"
    spans = [
        f"{span['ms']:9.1f} {span['speedup']:7.2f}x {span['limit']:4.2f}x {span['share']:4.0f} %"
        for span in (row["prefill"], row["decoder"])
    ]
    compress = f"{row['compress_ms']:9.1f} {row['compress_share']:6.1f}"
    memory = f"{row['kv_bytes'] / 2**20:8.1f} {row['peak_mib']:8.0f}"
    return f"{name} {' '.join(spans)}{compress} {memory}  {row['kept']}"
