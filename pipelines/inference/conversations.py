"""Prompt formats: a question about media as the text that a model was trained to continue."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin, Qwen3VLProcessor, VideoLlavaProcessor

from pipelines.data.rows import Kind

# The system prompts of LLaVA's scripts. They differ in one word, which occurs twice.
_SYSTEM = (
    "A chat between a curious {person} and an artificial intelligence assistant. The assistant"
    " gives helpful, detailed, and polite answers to the {person}'s questions."
)
SYSTEM_PROMPTS = {
    "vicuna_v1": _SYSTEM.format(person="user"),
    "llava_v1": _SYSTEM.format(person="human"),
}


def render_prompt(
    processor: ProcessorMixin, conversation: str | None, kinds: Sequence[Kind], question: str
) -> str:
    """A question about media in a conversation format, with the media's placeholders.

    conversation: of SYSTEM_PROMPTS; "model" or None: the model's own chat template
    """
    if conversation in SYSTEM_PROMPTS:
        media = "".join(f"<{kind}>\n" for kind in kinds)
        return f"{SYSTEM_PROMPTS[conversation]} USER: {media}{question} ASSISTANT:"
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": question}]
    messages: Any = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return _without_video_marks(processor, text)


def _without_video_marks(processor: Any, text: str) -> str:
    """The prompt without the marks that the template of Qwen3-VL writes around a video.

    Its processor writes them around each step of the video, as in training; the outer pair is not
    of the original code.
    """
    if not isinstance(processor, Qwen3VLProcessor):
        return text
    video = processor.video_token
    return text.replace(f"{processor.vision_start_token}{video}{processor.vision_end_token}", video)


def check_conversation(processor: Any, model: str, conversation: str | None, kind: Kind) -> None:
    """Raise a ValueError if the model cannot take a medium of the kind in the conversation."""
    mark = getattr(processor, f"{kind}_token", None)
    if conversation not in SYSTEM_PROMPTS:
        if not processor.chat_template:
            official = "llava_v1" if isinstance(processor, VideoLlavaProcessor) else "vicuna_v1"
            raise ValueError(
                f"{model} has no chat template: choose another format, e.g. --conversation"
                f" {official}"
            )
    elif mark not in (f"<{kind}>", None):
        raise ValueError(
            f"{model} marks {'an image' if kind == 'image' else 'a video'} by {mark}, but"
            f" --conversation {conversation} marks it by <{kind}>: leave the flag out"
        )
