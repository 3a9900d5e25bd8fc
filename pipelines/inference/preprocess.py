"""From a row to what a model reads, on CPU tasks; and from several rows to a batch, in the actor.

The model's own processor does all of it: chat template, resizing, cropping, placeholders, tokens. Only its last step,
from bytes to normalised floats, is left to the actor, so that what travels is a quarter of the size. A row that
cannot be prepared becomes a row that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin

from apet.models import load_config, load_processor
from pipelines.benchmarks import benchmark
from pipelines.data.manifest import Manifest
from pipelines.data.media import images, videos
from pipelines.data.media.content import Pixels
from pipelines.data.rows import Kind, Row
from pipelines.text import describe_error

PIXELS = {"pixel_values", "pixel_values_images", "pixel_values_videos"}
UNKNOWN_FPS = 24.0  # of a video that does not say: what transformers assumes, too
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
    " and polite answers to the user's questions. USER: {media}{question} ASSISTANT:"
)


@dataclass(frozen=True)
class PromptSpec:
    """How rows become inputs; the same for all points of a job."""

    model: str
    revision: str | None
    trust_remote_code: bool
    benchmark: str
    conversation: str
    frames: int
    min_pixels: int | None
    max_pixels: int | None
    room: int  # tokens that the answer may need


class Preprocessor:
    """Turns rows into model inputs, one at a time."""

    def __init__(self, recipe: PromptSpec) -> None:
        self.recipe, self.benchmark = recipe, benchmark(recipe.benchmark)
        self.processor = processor_of(recipe)
        config = load_config(
            recipe.model, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )
        self.context: int | None = getattr(
            config.get_text_config(), "max_position_embeddings", None
        )

    def prompt(self, row: Row) -> str:
        """The row's conversation with the media's placeholders."""
        kinds = [medium.kind for medium in row.media]
        return render_prompt(
            self.processor, self.recipe.conversation, kinds, self.benchmark.prompt(row)
        )

    def __call__(self, row: Row, manifest: Manifest) -> tuple[str, dict[str, Tensor]]:
        """The prompt and the model's inputs for it, pixels still bytes. Whatever is wrong is an exception."""
        if row.error is not None:
            raise RowError(row.error)
        if not row.question.strip():
            raise ValueError("the question is empty")
        prompt = self.prompt(row)
        pictures = [
            images.decode(manifest.fetch(each)) for each in row.media if each.kind == "image"
        ]
        clips = [
            videos.decode(manifest.fetch(each), self.recipe.frames)
            for each in row.media
            if each.kind == "video"
        ]
        inputs = encode(self.processor, prompt, pictures, clips)
        if (pictures or clips) and not PIXELS & inputs.keys():
            raise ValueError(f"{self.recipe.model} takes no {'videos' if clips else 'images'}")
        tokens = inputs["input_ids"].shape[1]
        if self.context is not None and tokens + self.recipe.room > self.context:
            raise ValueError(
                f"the prompt has {tokens} tokens with its media and the answer may need {self.recipe.room};"
                f" the model reads at most {self.context}"
            )
        return prompt, inputs


def render_prompt(
    processor: ProcessorMixin, style: str, kinds: Sequence[Kind], question: str
) -> str:
    """A question about media as the model is asked it, with the media's placeholders."""
    if style == "vicuna_v1":
        return VICUNA.format(media="".join(f"<{kind}>\n" for kind in kinds), question=question)
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


def encode(
    processor: ProcessorMixin, prompt: str, pictures: Sequence[Pixels], clips: Sequence[videos.Clip]
) -> dict[str, Tensor]:
    """The model's inputs for one conversation, pixels still bytes."""
    given: dict[str, Any] = {}
    if pictures:
        given["images"] = list(pictures)
    if clips:
        least = getattr(getattr(processor, "video_processor", None), "temporal_patch_size", 1)
        given["videos"] = [_lasting(clip.frames, least) for clip in clips]
        given["video_metadata"] = [
            {
                "fps": clip.fps or UNKNOWN_FPS,
                "total_num_frames": clip.total,
                "frames_indices": list(clip.indices),
            }
            for clip in clips
        ]
        given["do_sample_frames"] = False
    begin = processor.tokenizer.bos_token
    if begin is not None and prompt.startswith(begin):
        given["add_special_tokens"] = (
            False  # the template has written what the tokenizer would begin with
        )
    return dict(
        processor(text=[prompt], **given, return_tensors="pt", do_rescale=False, do_normalize=False)
    )


def _lasting(frames: Pixels, least: int) -> Pixels:
    """At least so many frames, the last one repeated: Qwen3-VL refuses fewer than it puts into one patch."""
    missing = max(0, least - len(frames))
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames


class RowError(Exception):
    """An error that was described where the row was read."""


def error_of(error: Exception) -> str:
    return str(error) if isinstance(error, RowError) else describe_error(error)


def serialize_inputs(inputs: dict[str, Tensor]) -> bytes:
    return save({name: value.contiguous() for name, value in inputs.items()})


def deserialize_inputs(data: bytes) -> dict[str, Tensor]:
    return load(data)


@cache
def preprocessor_for(recipe: PromptSpec) -> Preprocessor:
    """One a process, whatever the number of tasks it runs."""
    torch.set_num_threads(1)  # the tasks are what runs side by side
    return Preprocessor(recipe)


def processor_of(recipe: PromptSpec) -> ProcessorMixin:
    """The model's processor, with the job's limits on pixels."""
    processor = load_processor(
        recipe.model, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
    )
    if recipe.conversation == "model" and not processor.chat_template:
        raise ValueError(f"{recipe.model} brings no chat template; choose --conversation vicuna_v1")
    if recipe.conversation == "vicuna_v1" and processor.image_token != "<image>":
        raise ValueError(
            f"{recipe.model} marks an image by {processor.image_token}, and --conversation vicuna_v1 by <image>:"
            " leave it out"
        )
    limits = {"shortest_edge": recipe.min_pixels, "longest_edge": recipe.max_pixels}
    if any(limits.values()):
        size = processor.image_processor.size
        if not (size.get("shortest_edge") and size.get("longest_edge")):
            raise ValueError(
                f"{recipe.model} scales every image to {dict(size)}: leave out --min-pixels and --max-pixels,"
                " which are for models of dynamic resolution"
            )
        for part in {processor.image_processor, getattr(processor, "video_processor", None)} - {
            None
        }:
            part.size = type(part.size)(
                **{**dict(part.size), **{edge: at for edge, at in limits.items() if at}}
            )
    return processor


class Collator:
    """Rows' inputs to a left-padded batch, as the processor itself would have made it of all rows at once."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.pad = processor.tokenizer.pad_token_id
        self.image = processor.image_processor
        self.video = getattr(processor, "video_processor", None) or processor.image_processor

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        width = max(row["input_ids"].shape[1] for row in rows)
        batch: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            parts = [row[name] for row in rows if name in row]
            if all(
                row[name].shape == row["input_ids"].shape for row in rows if name in row
            ) and len(parts) == len(rows):
                fill = self.pad if name == "input_ids" else 0
                batch[name] = torch.cat(
                    [F.pad(part, (width - part.shape[1], 0), value=fill) for part in parts]
                )
            else:
                most = [
                    max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)
                ]
                batch[name] = torch.cat(
                    [_grown(part, most) for part in parts]
                )  # crops that an image has not: zeros
        return batch

    def normalised(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """With pixels as the model expects them, computed on the device that they are on."""
        done = dict(batch)
        for name in PIXELS & batch.keys():
            done[name] = _normalised(
                batch[name], self.video if name == "pixel_values_videos" else self.image
            )
        return done


def _grown(part: Tensor, sizes: Sequence[int]) -> Tensor:
    extra = [size - have for size, have in zip(sizes, part.shape[1:], strict=True)]
    return (
        F.pad(part, [pad for each in reversed(extra) for pad in (0, each)]) if any(extra) else part
    )


def _normalised(pixels: Tensor, processor: Any) -> Tensor:
    """Bytes to floats in the order of operations of transformers' own processors: the same to the last bit."""
    scale = 1.0 / processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return pixels.float() / scale
    mean, deviation = (
        torch.tensor(numbers, device=pixels.device) * scale
        for numbers in (processor.image_mean, processor.image_std)
    )
    channels = (
        pixels.unflatten(-1, (len(mean), -1)) if pixels.ndim == 2 else pixels
    )  # Qwen's patches are flat
    shape = (-1, 1) if pixels.ndim == 2 else (-1, 1, 1)
    out = (channels.float() - mean.view(shape)) / deviation.view(shape)
    return out.view(pixels.shape)


def warm_up_inputs(
    processor: ProcessorMixin, recipe: PromptSpec, kind: Kind, side: int = 64
) -> dict[str, Tensor]:
    """The inputs of a short question about something grey, of so many pixels a side."""
    prompt = render_prompt(processor, recipe.conversation, [kind], "?")
    grey = np.full((recipe.frames, side, side, 3), 127, dtype=np.uint8)
    if kind == "image":
        return encode(processor, prompt, [grey[0]], [])
    return encode(
        processor, prompt, [], [videos.Clip(grey, list(range(len(grey))), len(grey), UNKNOWN_FPS)]
    )
