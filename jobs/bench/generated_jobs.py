"""Whole jobs on generated files, for speed.py: through the pipeline, and one row after the other.

A checkpoint of the real shape with random weights lies in a temporary folder, with the tokenizer
and chat template of a demo model, beside JPEG files or video clips and a manifest. The worker of
each job has the GPU to itself. Rates are of the steady state: from the end of the first batch to
the last answer.
"""

import contextlib
import gc
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers as hf
from PIL import Image

from apet.models import load
from jobs.bench.common import DEMO, blurred_noise, run_folders, write_manifest, write_photo
from jobs.bench.prefill_models import llava, video_llava
from pipelines.config.eval_config import EvalConfig
from pipelines.data.rows import Kind
from pipelines.inference.conversations import render_prompt
from pipelines.job import run
from pipelines.results import answers
from pipelines.results.run_record import RunRecord

QUESTION = "Is there a dog in the image?\nAnswer the question using a single word or phrase."
MAX_NEW_TOKENS = 2  # yes or no, and the end
QUESTIONS_PER_PICTURE = 6  # as in POPE
CLIP_FRAMES, CLIP_RATE = 200, 25
# Encoding a clip takes most of a second while a GPU waits. The others are links to these.
DISTINCT_CLIPS = 16


def write_checkpoint(kind: Kind, size: str, folder: Path, device: torch.device) -> Path:
    """Write LLaVA-1.5 or Video-LLaVA of a size to a folder that `from_pretrained` reads."""
    if kind == "image":
        demo, make_config, side = "demo-llava", llava, 336
    else:
        demo, make_config, side = "demo-video-llava", video_llava, 224
    processor = hf.AutoProcessor.from_pretrained(DEMO / demo)
    video_processor = getattr(processor, "video_processor", None)
    for part in filter(None, (processor.image_processor, video_processor)):
        part.size, part.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    processor.patch_size = 14
    config, tokenizer = make_config(size), processor.tokenizer
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    if kind == "video":
        config.video_token_index = tokenizer.convert_tokens_to_ids("<video>")
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config.text_config.update(special)
    with device:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.update(**special)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return folder


def write_questions(kind: Kind, count: int, folder: Path) -> Path:
    """Write pictures or clips, and return the manifest of questions about them."""
    folder.mkdir()
    per_medium, suffix = (QUESTIONS_PER_PICTURE, "jpg") if kind == "image" else (1, "mp4")
    names = [f"{number // per_medium:05}.{suffix}" for number in range(count)]
    for medium, name in enumerate(dict.fromkeys(names)):
        if kind == "image":
            write_photo(folder / name, seed=medium)
        elif medium < DISTINCT_CLIPS:
            write_clip(folder / name, seed=medium)
        else:
            (folder / name).hardlink_to(folder / f"{medium % DISTINCT_CLIPS:05}.mp4")
    rows = (
        {"id": f"{number:06}", "media": name, "question": QUESTION}
        for number, name in enumerate(names)
    )
    return write_manifest(folder, rows)


def write_clip(path: Path, seed: int) -> None:
    """Write eight seconds of a picture that slides to the right."""
    picture = np.asarray(blurred_noise(320, 240, seed))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for shift in range(CLIP_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def run_job(
    kind: Kind, model: Path, data: Path, method: str, budget: str, attn: str, output: Path
) -> dict[str, Any]:
    """Run one method's job as the command does: rows a second, and how busy the device was."""
    config = EvalConfig.of(
        kind,
        model=str(model),
        data=str(data),
        methods=(method,),
        budgets=(budget,),
        attn=attn,
        max_new_tokens=MAX_NEW_TOKENS,
        output=str(output),
        actors=(1, 1),
    )
    # Standard output is for this benchmark's table.
    with contextlib.redirect_stdout(sys.stderr):
        if run(config):
            raise SystemExit(f"the {method} job failed; see above")
    [folder] = run_folders(output)
    table, metrics = answers.read(folder).sort_by("answered_at"), RunRecord.load(folder).metrics
    times = [moment.timestamp() for moment in table["answered_at"].to_pylist()]
    first_batch = table["batch_rows"][0].as_py()
    rate = float("nan")
    if len(times) > first_batch:
        rate = (len(times) - first_batch) / (times[-1] - times[first_batch - 1])
    measured = ("gpu_busy", "worker_busy", "batch_tokens")
    return {
        "rows": len(times),
        "batch_rows": first_batch,
        "rows_per_s": rate,
        **{name: metrics[name] for name in measured if name in metrics},
    }


@torch.inference_mode()
def rows_per_s_one_by_one(model: Path, data: Path, rows: int, device: torch.device) -> float:
    """Rows a second as in the authors' scripts: open, prepare, `generate` and decode row by row."""
    vlm, processor = load(str(model), device=device)
    prompt = render_prompt(processor, "model", ["image"], QUESTION)
    warm_up = 2
    began = time.perf_counter()
    with data.open() as manifest:
        for number, line in enumerate(islice(manifest, rows + warm_up)):
            if number == warm_up:
                began = time.perf_counter()
            image = Image.open(data.parent / json.loads(line)["media"]).convert("RGB")
            inputs = processor(images=image, text=prompt, return_tensors="pt").to(device, vlm.dtype)
            out = vlm.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return rows / (time.perf_counter() - began)
