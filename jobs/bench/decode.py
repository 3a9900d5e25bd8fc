"""Compare `apet.Decode` with transformers' own loop: how long answers take, and whether they agree.

    python jobs/bench/decode.py    # 200 questions to the demo model
    python jobs/bench/decode.py --batch 64 --model llava-hf/llava-1.5-7b-hf    # on a GPU

Each batch is answered in both ways, in alternating order, so that other load hits both. The table
has medians over the batches: of the whole answer, and of the part after its first token.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from apet import Decode, attach
from apet.methods import build
from apet.models import load
from jobs.bench.common import DEMO, argument_parser, print_json
from jobs.bench.timing import default_device
from pipelines.benchmarks.synthetic import shapes
from pipelines.inference.engines.generation import GenerationTimer

Decoder = Callable[[Any, StoppingCriteriaList], Tensor]

HEAD = (
    f"{'':20}{'batch':>6}{'tokens':>8}{'generate':>10}{'decode':>9}{'ratio':>7}"
    f"{'steps':>10}{'':>9}{'ratio':>7}{'same':>9}"
)


def batches(processor: Any, folder: Path, questions: int, size: int) -> Iterator[Any]:
    """Model inputs. Questions of similar length share a batch, as in a job."""
    manifest = shapes.make(folder, "test", questions)
    lines = manifest.read_text(encoding="utf-8").splitlines()[:questions]
    rows = sorted(map(json.loads, lines), key=lambda row: len(row["question"]))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        messages = [[{"type": "image"}, {"type": "text", "text": row["question"]}] for row in batch]
        yield processor(
            text=[
                processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
                for content in messages
            ],
            images=[[Image.open(manifest.parent / row["media"])] for row in batch],
            padding=True,
            return_tensors="pt",
        )


def timed(decoder: Decoder, inputs: Any, device: torch.device) -> tuple[Tensor, float, float]:
    """The answers' tokens, ms of everything, and ms after the first token."""
    timer, began = GenerationTimer(device), perf_counter()
    timer.mark("start")
    ids = decoder(inputs, StoppingCriteriaList([timer]))
    steps_ms = timer.read()["end"]
    return ids.cpu(), 1000 * (perf_counter() - began), steps_ms


def compare(
    decoders: dict[str, Decoder], prepared: list[Any], device: torch.device, passes: int
) -> dict[str, Any]:
    """Time both decoders on all batches, and count answers that agree."""
    is_gpu = device.type == "cuda"
    for decoder in decoders.values():
        # The CUDA graph of a shape is captured when the shape comes again.
        for _ in range(3 if is_gpu else 1):
            for inputs in prepared if is_gpu else prepared[:1]:
                timed(decoder, inputs, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
    same = total = steps = 0
    for number, inputs in enumerate(prepared * passes):
        answers = {}
        for name in list(decoders) if number % 2 else [*decoders][::-1]:
            answers[name], whole_ms, steps_ms = timed(decoders[name], inputs, device)
            times[name].append((whole_ms, steps_ms))
        generated, decoded = answers["generate"], answers["decode"]
        if generated.shape == decoded.shape:
            same += int((generated == decoded).all(dim=1).sum())
        total, steps = total + len(generated), steps + generated.shape[1]
    pairs = list(zip(times["generate"], times["decode"], strict=True))
    medians = {
        f"{name}{suffix}_ms": statistics.median(pair[column] for pair in times[name])
        for name in decoders
        for column, suffix in enumerate(("", "_steps"))
    }
    return medians | {
        "ratio": statistics.median(theirs[0] / ours[0] for theirs, ours in pairs),
        "steps_ratio": statistics.median(theirs[1] / ours[1] for theirs, ours in pairs),
        "tokens": steps / len(pairs),
        "same": same,
        "of": total,
    }


def format_row(row: dict[str, Any]) -> str:
    return (
        f"{row['method']:20}{row['batch']:6}{row['tokens']:8.1f}"
        f"{row['generate_ms']:8.1f}ms{row['decode_ms']:7.1f}ms{row['ratio']:7.2f}"
        f"{row['generate_steps_ms']:8.1f}ms{row['decode_steps_ms']:7.1f}ms"
        f"{row['steps_ratio']:7.2f}{row['same']:4}/{row['of']}"
    )


def main() -> None:
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        default=str(DEMO / "demo-llava"),
        help="a folder or a name on the hub (default: the demo model)",
    )
    add("--questions", type=int, default=200, help="default 200")
    add("--batch", default="1,16", help="batch sizes, comma-separated (default 1,16)")
    add("--methods", default="vanilla,apet", help="default vanilla,apet")
    add("--budget", default="64", help="visual tokens (default 64)")
    add("--tokens", type=int, default=8, help="maximum length of an answer (default 8)")
    add("--passes", type=int, default=1, help="over the questions (default 1)")
    args = parser.parse_args()
    device = default_device()
    model, processor = load(args.model, device=device)
    decode = Decode(model)

    def generate(inputs: Any, stop: StoppingCriteriaList) -> Tensor:
        out: Tensor = model.generate(
            **inputs, do_sample=False, max_new_tokens=args.tokens, stopping_criteria=stop
        )
        return out[:, inputs["input_ids"].shape[1] :]

    decoders: dict[str, Decoder] = {
        "generate": generate,
        "decode": lambda inputs, stop: decode.answer(inputs, args.tokens, stopping_criteria=stop),
    }
    rows: list[dict[str, Any]] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for size in map(int, args.batch.split(",")):
            prepared = [
                inputs.to(device)
                for inputs in batches(processor, Path(folder), args.questions, size)
            ]
            for name in args.methods.split(","):
                with attach(model, build(name, budget=args.budget)):
                    result = compare(decoders, prepared, device, args.passes)
                rows.append({"method": name, "batch": size, **result})
                print(format_row(rows[-1]))
    print_json("decode", device=str(device), cores=os.cpu_count(), found=rows)


if __name__ == "__main__":
    main()
