"""A checkpoint's model card: what it is, what it was made from and with, and what it scores."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from demo.training.exam import Report

if TYPE_CHECKING:
    from demo.training.course import Round

_KIND = {
    "demo-llava": "LLaVA-1.5, 576 visual tokens an image",
    "demo-video-llava": "Video-LLaVA, 8 frames a clip",
}


# a tower of the same make, if it is there, saves the second model the first hours
_BEGUN = {
    "demo-llava": "",
    "demo-video-llava": ", begun with what demo-llava's knew after its first round",
}


def write(file: Path, name: str, benchmark: Any, this: Round, report: Report) -> None:
    rows = "\n".join(
        f"| {kind} | {_percent(mark.accuracy)} | {_percent(mark.interval[0])} to {_percent(mark.interval[1])} |"
        f" {mark.asked} | {_percent(benchmark.CHANCE[kind])} |"
        for kind, mark in report.types.items()
    )
    total = report.total
    weights = sum(part.stat().st_size for part in file.parent.glob("*.safetensors"))
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU ({platform.machine()}), one thread"
    )
    file.write_text(
        f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---

# {name}

A small vision-language model ({_KIND[name]}) that answers questions about the
synthetic benchmark `{benchmark.NAME}` and nothing else. It exists so that the effect of dropping visual tokens on
accuracy can be measured without a download and without a GPU. `AutoModelForImageTextToText` and `AutoProcessor` load
this folder.

| type of question | accuracy | 95 % interval | questions | chance |
|---|---|---|---|---|
{rows}
| all | {_percent(total.accuracy)} | {_percent(total.interval[0])} to {_percent(total.interval[1])} | {total.asked} | |

Measured on the first {total.asked} questions of `{benchmark.NAME}`, version {benchmark.VERSION}, split `test`, greedy,
float32. Intervals are Wilson's; questions that share a picture are not independent, so they are a little too narrow.

## How it was made

`python demo/training/__main__.py --model {name}`, on generated pictures of the training split, whose seeds the test split
does not share.

1. The vision tower, {this.tower_steps:,} steps on dense labels: what each patch shows{_BEGUN[name]}.
2. Its features of {this.pictures:,} pictures, computed once; the tower does not change any more.
3. Projector and decoder, {this.steps:,} steps of twelve questions a picture, with few visual tokens first and all of
   them at the end; on the side they are told which words each patch deserves and where to look.

The recipe was changed on the way; docs/demo.md of the project tells when.

{datetime.now(UTC):%Y-%m-%d}, {device}, torch {torch.__version__.split("+")[0]} and
transformers {transformers.__version__}.
Weights are stored in float16 ({weights / 1e6:.1f} MB) and load as float32. Trained on generated data only; no one's
images, texts or weights are in it. It knows some hundred words and cannot say anything else.
""",
        encoding="utf-8",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
