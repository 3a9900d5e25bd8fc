"""Rows to model inputs on CPU tasks, and inputs of several rows to a batch in the worker.

The model's own processor does the work: chat template, resizing, cropping, placeholders, tokens.
Only its last step, from bytes to normalised floats, is left to the worker, so that a quarter of
the data travels. A row that cannot be preprocessed becomes a row that says why.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin

from apet.models import load_config, load_processor
from apet.models.processors import pad_to_square
from pipelines.benchmarks import benchmark
from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.media import images, videos
from pipelines.data.media.content import Pixels
from pipelines.data.rows import Row
from pipelines.inference.conversations import check_conversation, render_prompt
from pipelines.text import describe_error

PIXELS = {"pixel_values", "pixel_values_images", "pixel_values_videos"}
# Fields that decide how a question about media becomes the model's inputs.
INPUT_FIELDS = (
    *("model", "revision", "trust_remote_code", "frames", "min_pixels", "max_pixels"),
    *("image_fit", "conversation"),
)
DEFAULT_FPS = 24.0  # of a video that does not state it; transformers assumes the same


class Preprocessor:
    """Turns rows into model inputs, one at a time."""

    def __init__(self, config: EvalConfig) -> None:
        self.config, self.benchmark = config, benchmark(config.benchmark)
        self.processor = job_processor(config)
        self.placeholders = placeholder_ids(config)
        self.special = set(self.processor.tokenizer.all_special_ids)
        self.context: int | None = getattr(
            _model_config(config).get_text_config(), "max_position_embeddings", None
        )

    def prompt(self, row: Row) -> str:
        """The row's conversation, with a placeholder for each medium."""
        kinds = [medium.kind for medium in row.media]
        question = self.benchmark.prompt(row)
        return render_prompt(self.processor, self.config.conversation, kinds, question)

    def __call__(self, row: Row, manifest: Manifest) -> tuple[str, dict[str, Tensor]]:
        """The prompt and the model's inputs, pixels still bytes. Raises if the row is unusable."""
        self.check(row)
        config, prompt = self.config, self.prompt(row)
        pictures, clips = [], []
        for medium in row.media:
            content = manifest.fetch(medium)
            if medium.kind == "image":
                pictures.append(images.decode(content))
            else:
                clips.append(videos.decode(content, config.frames))
        inputs = encode(self.processor, prompt, pictures, clips)
        if (pictures or clips) and not PIXELS & inputs.keys():
            raise ValueError(f"{config.model} does not take {'videos' if clips else 'images'}")
        self.check_length(inputs["input_ids"].shape[1])
        return prompt, inputs

    def check(self, row: Row) -> None:
        """Raise if the row could not be read or asks nothing."""
        if row.error is not None:
            raise RowError(row.error)
        if not row.question.strip():
            raise ValueError("the question is empty")

    def check_length(self, tokens: int) -> None:
        """Raise ValueError if the model cannot read a prompt of so many tokens and answer it."""
        answer = self.config.max_new_tokens
        if self.context is not None and tokens + answer > self.context:
            raise ValueError(
                f"the prompt has {tokens} tokens with its media and the answer may need"
                f" {answer}; the model reads at most {self.context}"
            )

    def plain_ids(self, prompt: str) -> list[int]:
        """The prompt's token ids, with one placeholder for each medium."""
        options = _special_tokens(self.processor, prompt)
        ids: list[int] = self.processor.tokenizer(prompt, **options)["input_ids"]
        return ids


def encode(
    processor: ProcessorMixin,
    prompt: str,
    pictures: Sequence[Pixels],
    clips: Sequence[videos.Clip],
) -> dict[str, Tensor]:
    """The model's inputs for one conversation, pixels still bytes."""
    options: dict[str, Any] = {}
    if pictures:
        options["images"] = list(pictures)
    if clips:
        video_processor = getattr(processor, "video_processor", None)
        min_frames = getattr(video_processor, "temporal_patch_size", 1)
        options["videos"] = [_extend(clip.frames, min_frames) for clip in clips]
        options["video_metadata"] = [
            {
                "fps": clip.fps or DEFAULT_FPS,
                "total_num_frames": clip.total,
                "frames_indices": list(clip.indices),
            }
            for clip in clips
        ]
        options["do_sample_frames"] = False
    options |= _special_tokens(processor, prompt)
    raw = {"do_rescale": False, "do_normalize": False}
    # Without it, a picture one or three pixels high is taken for one with the channels first.
    layout = {"input_data_format": "channels_last"} if pictures or clips else {}
    return dict(processor(text=[prompt], **options, return_tensors="pt", **raw, **layout))


def _special_tokens(processor: ProcessorMixin, prompt: str) -> dict[str, bool]:
    """Options of the tokenizer: no second BOS where the template has written one."""
    bos = processor.tokenizer.bos_token
    written = bos is not None and prompt.startswith(bos)
    return {"add_special_tokens": False} if written else {}


def _extend(frames: Pixels, min_frames: int) -> Pixels:
    """Repeat the last frame up to `min_frames`: Qwen3-VL refuses clips shorter than a patch."""
    missing = max(0, min_frames - len(frames))
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames


class RowError(Exception):
    """An error that was already described where the row was read."""


def row_error(error: Exception) -> str:
    return str(error) if isinstance(error, RowError) else describe_error(error)


def _model_config(config: EvalConfig) -> Any:
    return load_config(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )


def placeholder_ids(config: EvalConfig) -> set[int]:
    """The ids that stand for visual tokens in the model's prompts."""
    model_config, names = _model_config(config), ("image_token_id", "video_token_id")
    return {getattr(model_config, name) for name in names if hasattr(model_config, name)} - {None}


@cache
def preprocessor_for(config: EvalConfig) -> Preprocessor:
    """One a process, however many tasks it runs."""
    torch.set_num_threads(1)  # tasks run side by side, each on one core
    return Preprocessor(config)


def job_processor(config: EvalConfig) -> ProcessorMixin:
    """The model's processor with the job's conversation checked, its image fit and pixel limits."""
    # its only warning says that a model without a fast image processor uses its ordinary one
    logging.getLogger("transformers.models.auto.image_processing_auto").setLevel(logging.ERROR)
    processor: Any = load_processor(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    check_conversation(processor, config.model, config.conversation, config.kind)
    if config.image_fit == "pad":
        try:
            pad_to_square(processor)
        except ValueError as error:
            raise ValueError(f"{config.model}, --image-fit pad: {error}") from None
    limits = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    limits = {edge: pixels for edge, pixels in limits.items() if pixels}
    if limits:
        size = processor.image_processor.size
        if not (size.get("shortest_edge") and size.get("longest_edge")):
            raise ValueError(
                f"{config.model} scales every image to {dict(size)}: leave out --min-pixels and"
                " --max-pixels, which are for models of dynamic resolution"
            )
        media_processors = {processor.image_processor, getattr(processor, "video_processor", None)}
        for media_processor in media_processors - {None}:
            size = media_processor.size
            media_processor.size = type(size)(**{**dict(size), **limits})
    return cast(ProcessorMixin, processor)


class Collator:
    """Collates rows' inputs to the left-padded batch that the processor would make of them all."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.pad = processor.tokenizer.pad_token_id
        self.image = processor.image_processor
        self.video = getattr(processor, "video_processor", None) or processor.image_processor

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        width = max(row["input_ids"].shape[1] for row in rows)
        batch: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            parts = [row[name] for row in rows if name in row]
            per_token = len(parts) == len(rows) and all(
                row[name].shape == row["input_ids"].shape for row in rows
            )
            if per_token:
                fill = self.pad if name == "input_ids" else 0
                padded = [F.pad(part, (width - part.shape[1], 0), value=fill) for part in parts]
            else:  # images of fewer crops are filled with zeros
                sizes = [
                    max(size) for size in zip(*(part.shape[1:] for part in parts), strict=True)
                ]
                padded = [_pad_to(part, sizes) for part in parts]
            batch[name] = torch.cat(padded)
        return batch

    def normalise(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with pixels as the model expects them, computed on the device they are on."""
        normalised = dict(batch)
        for name in PIXELS & batch.keys():
            processor = self.video if name == "pixel_values_videos" else self.image
            normalised[name] = _normalise(batch[name], processor)
        return normalised


def _pad_to(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Zeros behind all dimensions but the first, up to `sizes`."""
    extra = [size - own for size, own in zip(sizes, part.shape[1:], strict=True)]
    pads = [pad for more in reversed(extra) for pad in (0, more)]
    return F.pad(part, pads) if any(extra) else part  # padding by nothing would still copy


def _normalise(pixels: Tensor, processor: Any) -> Tensor:
    """Bytes to floats in the order of operations of transformers: equal to the last bit."""
    scale = 1.0 / processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return pixels.float() / scale
    mean, deviation = (
        torch.tensor(numbers, device=pixels.device) * scale
        for numbers in (processor.image_mean, processor.image_std)
    )
    flat = pixels.ndim == 2  # Qwen's patches: (patches, channels * pixels)
    channels = pixels.unflatten(-1, (len(mean), -1)) if flat else pixels
    shape = (-1, 1) if flat else (-1, 1, 1)
    out = (channels.float() - mean.view(shape)) / deviation.view(shape)
    return out.view(pixels.shape)


def warm_up_inputs(
    processor: ProcessorMixin, config: EvalConfig, side: int = 64
) -> dict[str, Tensor]:
    """The inputs of a short question about a grey picture or clip of side x side pixels."""
    prompt = render_prompt(processor, config.conversation, [config.kind], "?")
    grey = np.full((config.frames, side, side, 3), 127, dtype=np.uint8)
    if config.kind == "image":
        return encode(processor, prompt, [grey[0]], [])
    clip = videos.Clip(grey, list(range(len(grey))), len(grey), DEFAULT_FPS)
    return encode(processor, prompt, [], [clip])


def check_inputs(config: EvalConfig) -> None:
    """Raise a ValueError if the model cannot be asked about such media in the job's conversation.

    Prepares a question about a grey picture or clip, as tasks and workers will prepare the rows.
    """
    if config.conversation is None:
        raise ValueError(
            f"cannot read config.json of {config.model}, which the default of --conversation"
            " depends on; try again, or give --conversation"
        )
    _check_inputs(EvalConfig.of(config.kind, **{key: getattr(config, key) for key in INPUT_FIELDS}))


@cache  # a sweep asks again for each benchmark
def _check_inputs(config: EvalConfig) -> None:
    processor = job_processor(config)
    try:
        inputs = warm_up_inputs(processor, config)
    except Exception as error:  # anything: of a template or of a processor
        raise ValueError(
            f"{config.model} cannot be asked about {config.kind}s with --conversation"
            f" {config.conversation}: {describe_error(error)}"
        ) from error
    if not PIXELS & inputs.keys():
        raise ValueError(f"{config.model} does not take {config.kind}s")
