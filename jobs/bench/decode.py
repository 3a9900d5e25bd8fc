"""How long do answers take, with `apet.Decode` and with transformers' own loop? And do both say the same?

    python jobs/bench/decode.py               # 200 questions to the demo model: a table, and one JSON line last
    python jobs/bench/decode.py --batch 64 --model llava-hf/llava-1.5-7b-hf    # where there is a GPU

Every batch is answered in both ways, one after the other and each first in turn, so that a busy moment hits both. Shown
are medians over the batches: of the whole answer, and of what comes after its first token.
"""

from __future__ import annotations

import argparse
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
from pipelines.benchmarks.synthetic import shapes
from pipelines.inference.engines.generation import GenerationTimer

DEMO = Path(__file__).parents[2] / "demo" / "demo-llava"
Way = Callable[[dict[str, Tensor], StoppingCriteriaList], Tensor]


def batches(processor: Any, folder: Path, questions: int, size: int) -> Iterator[Any]:
    """Questions of like lengths share a batch, as in a job."""
    manifest = shapes.make(folder, "test", questions)
    rows = [
        json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()[:questions]
    ]
    rows.sort(key=lambda row: len(row["question"]))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        talks = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": row["question"]}],
                }
            ]
            for row in part
        ]
        yield processor(
            text=[
                processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks
            ],
            images=[[Image.open(manifest.parent / row["media"])] for row in part],
            padding=True,
            return_tensors="pt",
        )


def timed(way: Way, inputs: Any, device: torch.device) -> tuple[Tensor, float, float]:
    """The answers, and ms of all of it and behind the first token."""
    clock, began = GenerationTimer(device), perf_counter()
    clock.mark()
    ids = way(inputs, StoppingCriteriaList([clock]))
    _, after = clock.read()
    return ids.cpu(), 1000 * (perf_counter() - began), after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=str(DEMO), help="a folder or a name on the hub (default: the demo model)"
    )
    parser.add_argument("--questions", type=int, default=200, help="default 200")
    parser.add_argument("--batch", default="1,16", help="rows, a list (default 1,16)")
    parser.add_argument("--methods", default="vanilla,apet", help="default vanilla,apet")
    parser.add_argument("--budget", default="64", help="visual tokens (default 64)")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer at most (default 8)")
    parser.add_argument("--passes", type=int, default=1, help="over the questions (default 1)")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load(args.model, device=device)
    decode, width = Decode(model), lambda inputs: inputs["input_ids"].shape[1]
    ways: dict[str, Way] = {
        "generate": lambda inputs, rules: model.generate(
            **inputs, do_sample=False, max_new_tokens=args.tokens, stopping_criteria=rules
        )[:, width(inputs) :],
        "decode": lambda inputs, rules: decode.answer(inputs, args.tokens, stopping_criteria=rules),
    }
    found: list[dict[str, Any]] = []
    print(
        f"{'':20}{'batch':>6}{'tokens':>8}{'generate':>10}{'decode':>9}{'ratio':>7}{'steps':>10}{'':>9}{'ratio':>7}{'same':>9}"
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for size in map(int, args.batch.split(",")):
            prepared = [
                inputs.to(device)
                for inputs in batches(processor, Path(folder), args.questions, size)
            ]
            for name in args.methods.split(","):
                with attach(model, build(name, budget=args.budget)):
                    found.append(
                        {
                            "method": name,
                            "batch": size,
                            **compared(ways, prepared, device, args.passes),
                        }
                    )
                one = found[-1]
                print(
                    f"{name:20}{size:6}{one['tokens']:8.1f}{one['generate_ms']:8.1f}ms{one['decode_ms']:7.1f}ms"
                    f"{one['ratio']:7.2f}{one['generate_steps_ms']:8.1f}ms{one['decode_steps_ms']:7.1f}ms"
                    f"{one['steps_ratio']:7.2f}{one['same']:4}/{one['of']}"
                )
    print(
        json.dumps(
            {"bench": "decode", "device": str(device), "cores": os.cpu_count(), "found": found}
        )
    )


def compared(
    ways: dict[str, Way], prepared: list[Any], device: torch.device, passes: int
) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    same = total = steps = 0
    for way in ways.values():
        for _ in range(
            3 if device.type == "cuda" else 1
        ):  # a shape's graph is made when it comes again
            for inputs in prepared if device.type == "cuda" else prepared[:1]:
                timed(way, inputs, device)
    for number, inputs in enumerate(prepared * passes):
        said = {}
        for name in list(ways) if number % 2 else [*ways][::-1]:
            said[name], *ms = timed(ways[name], inputs, device)
            times[name].append((ms[0], ms[1]))
        generated, decoded = said["generate"], said["decode"]
        same += (
            int((generated == decoded).all(dim=1).sum()) if generated.shape == decoded.shape else 0
        )
        total, steps = total + len(generated), steps + generated.shape[1]
    pairs = list(zip(times["generate"], times["decode"], strict=True))
    medians = {
        f"{name}{kind}_ms": statistics.median(pair[place] for pair in times[name])
        for name in ways
        for place, kind in enumerate(("", "_steps"))
    }
    return medians | {
        "ratio": statistics.median(theirs[0] / ours[0] for theirs, ours in pairs),
        "steps_ratio": statistics.median(theirs[1] / ours[1] for theirs, ours in pairs),
        "tokens": steps / len(pairs),
        "same": same,
        "of": total,
    }


if __name__ == "__main__":
    main()
