"""Whole jobs on generated files, for bench_speed.py: through the real pipeline, and one row after the other.

A checkpoint of the real shape with random weights lies in a temporary folder, with the tokenizer and chat template of
the demo models in this repository, beside JPEG files or video clips and a manifest. The worker process of each job
has the GPU to itself. Rates are of the steady state: from the end of the first batch to the last answer.
"""

from __future__ import annotations

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
from jobs.bench.models import llava, video_llava
from pipelines.config.eval_config import EvalConfig
from pipelines.data.rows import Kind
from pipelines.inference.preprocess import render_prompt
from pipelines.job import run
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder

DEMO = Path(__file__).parents[2] / "demo"
QUESTION = "Is there a dog in the image?\nAnswer the question using a single word or phrase."
ANSWER = 2  # tokens: yes or no, and the end
QUESTIONS = 6  # about each picture, as POPE has them
CLIP_FRAMES, CLIP_RATE = 200, 25
CLIPS = 16  # that differ: all others are one of them under a name of its own


def checkpoint(kind: Kind, size: str, folder: Path, device: torch.device) -> Path:
    """LLaVA-1.5 or Video-LLaVA of a size, as a folder that `from_pretrained` reads."""
    demo, make, side = (
        ("demo-llava", llava, 336) if kind == "image" else ("demo-video-llava", video_llava, 224)
    )
    processor = hf.AutoProcessor.from_pretrained(DEMO / demo)
    for part in filter(
        None, (processor.image_processor, getattr(processor, "video_processor", None))
    ):
        part.size, part.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    processor.patch_size = 14
    config, tokens = make(size), processor.tokenizer
    config.image_token_index = tokens.convert_tokens_to_ids("<image>")
    if kind == "video":
        config.video_token_index = tokens.convert_tokens_to_ids("<video>")
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    config.text_config.update({**ends, "pad_token_id": tokens.pad_token_id})
    with device:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.update(**ends, pad_token_id=tokens.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return folder


def questions(kind: Kind, rows: int, folder: Path) -> Path:
    """Files of a usual size, and a manifest of so many questions about them."""
    folder.mkdir()
    per = QUESTIONS if kind == "image" else 1
    with (folder / "rows.jsonl").open("w") as manifest:
        for number in range(rows):
            name = f"{number // per:05}.{'jpg' if kind == 'image' else 'mp4'}"
            if number % per == 0:
                if kind == "image":
                    picture(folder / name, number)
                elif number < CLIPS:
                    clip(folder / name, number)
                else:  # to encode one takes most of a second, while a GPU waits
                    (folder / name).hardlink_to(folder / f"{number % CLIPS:05}.mp4")
            manifest.write(
                json.dumps({"id": f"{number:06}", "media": name, "question": QUESTION}) + "\n"
            )
    return folder / "rows.jsonl"


def scene(width: int, height: int, seed: int) -> np.ndarray:
    soft = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC))


def picture(path: Path, seed: int) -> None:
    Image.fromarray(scene(640, 480, seed)).save(path, quality=85)


def clip(path: Path, seed: int) -> None:
    """Eight seconds of a scene that slides."""
    still = scene(320, 240, seed)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(CLIP_FRAMES):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.roll(still, number, axis=1), format="rgb24")
                )
            )
        out.mux(stream.encode())


def job(
    kind: Kind, model: Path, data: Path, method: str, budget: str, attn: str, output: Path
) -> dict[str, Any]:
    """One method's job by the command's own code: rows a second, and how busy its worker kept the device."""
    config = EvalConfig.of(
        kind,
        model=str(model),
        data=str(data),
        methods=(method,),
        budgets=(budget,),
        attn=attn,
        max_new_tokens=ANSWER,
        output=str(output),
        actors=(1, 1),
    )
    with contextlib.redirect_stdout(sys.stderr):  # its own tables are not ours
        if run(config):
            raise SystemExit(f"the {method} job failed; see above")
    [folder] = [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]
    table, metrics = answers.read(folder).sort_by("answered_at"), RunRecord.load(folder).metrics
    times = [moment.timestamp() for moment in table["answered_at"].to_pylist()]
    first = table["batch_rows"][0].as_py()
    rate = (
        (len(times) - first) / (times[-1] - times[first - 1])
        if len(times) > first
        else float("nan")
    )
    found = {"rows": len(times), "batch_rows": first, "rows_per_s": rate}
    return found | {
        name: metrics[name]
        for name in ("gpu_busy", "worker_busy", "batch_tokens")
        if name in metrics
    }


@torch.inference_mode()
def one_by_one(model: Path, data: Path, rows: int, device: torch.device) -> float:
    """Rows a second as the authors' scripts have it: open, prepare, `generate`, decode, one row after the other."""
    vlm, processor = load(str(model), device=device)
    prompt = render_prompt(processor, "model", ["image"], QUESTION)
    warm = 2
    with data.open() as manifest:
        for number, line in enumerate(islice(manifest, rows + warm)):
            if number == warm:
                began = time.perf_counter()
            image = Image.open(data.parent / json.loads(line)["media"]).convert("RGB")
            inputs = processor(images=image, text=prompt, return_tensors="pt").to(device, vlm.dtype)
            out = vlm.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)
            processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return rows / (time.perf_counter() - began)
