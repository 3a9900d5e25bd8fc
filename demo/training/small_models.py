"""Models, tokenizers and processors to train: small, but ordinary transformers checkpoints.

Every class is the library's own, so `AutoModelForImageTextToText` and `AutoProcessor` load the
folder. The decoder is deep for its width, because compression happens in the middle of it.
"""

from collections.abc import Iterable

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo.training.patch_labels import PATCH

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
IMAGE, VIDEO = "<image>", "<video>"
WIDTH = 128
PATCHES_PER_SIDE = {"demo-llava": 24, "demo-video-llava": 12}  # patches
FRAMES = 8
# As in LLaVA-1.5 and Video-LLaVA: media first, then the text.
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] != 'text' %}<{{ part['type'] }}>\n"
    "{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %} "
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# The template's text around the media and the text of one question.
BEFORE_QUESTION, BEFORE_ANSWER = "USER: ", " ASSISTANT:"


def tokenizer(texts: Iterable[str]) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE: every word of `texts` is one token; any other text takes several."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, UNKNOWN, IMAGE, VIDEO]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2_000,
            min_frequency=2,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    begin = (BOS, backend.token_to_id(BOS))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[begin]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=4096,
    )


def processor(name: str, words: hf.PreTrainedTokenizerFast) -> hf.ProcessorMixin:
    side = PATCHES_PER_SIDE[name] * PATCH
    size = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    shared = {
        "tokenizer": words,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": _TEMPLATE,
    }
    if name == "demo-llava":
        return hf.LlavaProcessor(hf.CLIPImageProcessor(**size), **shared)
    return hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**size),
        hf.VideoLlavaVideoProcessor(**size, num_frames=FRAMES),
        **shared,
    )


def model(name: str, words: hf.PreTrainedTokenizerFast) -> hf.PreTrainedModel:
    """A new model with random weights, in float32."""
    ids = {token: words.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, IMAGE, VIDEO)}
    side = PATCHES_PER_SIDE[name]
    vision = hf.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=8,
        patch_size=PATCH,
        image_size=side * PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    text = hf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=5 * WIDTH // 2,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        initializer_range=WIDTH**-0.5,
        tie_word_embeddings=True,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    shared = {
        "vision_config": vision,
        "text_config": text,
        "vision_feature_layer": -1,  # the tower ends where its features are read
        "vision_feature_select_strategy": "default",
        "image_token_index": ids[IMAGE],
        "image_seq_length": side * side,
        "tie_word_embeddings": True,
    }
    if name == "demo-llava":
        config: hf.PreTrainedConfig = hf.LlavaConfig(**shared)
    else:
        config = hf.VideoLlavaConfig(
            **shared, video_token_index=ids[VIDEO], video_seq_length=FRAMES * (side * side + 1)
        )
    built = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    built.generation_config = hf.GenerationConfig(
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        do_sample=False,
        max_new_tokens=8,
    )
    return built
