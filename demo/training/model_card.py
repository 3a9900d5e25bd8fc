"""The model card of a checkpoint: architecture, training and scores."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from demo.training.evaluation import Accuracy, Evaluation
from demo.training.rounds import Round

_KIND = {
    "demo-llava": "LLaVA-1.5, 576 visual tokens an image",
    "demo-video-llava": "Video-LLaVA, 8 frames a clip",
}


# A tower of the same architecture, where there is one, saves the second model the first hours.
_INHERITED = {
    "demo-llava": "",
    "demo-video-llava": ", starting from demo-llava's after its first round",
}


def write(file: Path, name: str, benchmark: Any, round_: Round, report: Evaluation) -> None:
    rows = "\n".join(
        f"| {kind} | {_percent(accuracy.accuracy)} | {_interval(accuracy)} | {accuracy.asked} |"
        f" {_percent(benchmark.CHANCE[kind])} |"
        for kind, accuracy in report.types.items()
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

A small vision-language model ({_KIND[name]}) that answers questions
about the synthetic benchmark `{benchmark.NAME}` and nothing else. It exists so that the effect of
dropping visual tokens on accuracy can be measured without a download and without a GPU.
`AutoModelForImageTextToText` and `AutoProcessor` load this folder.

| type of question | accuracy | 95 % interval | questions | chance |
|---|---|---|---|---|
{rows}
| all | {_percent(total.accuracy)} | {_interval(total)} | {total.asked} | |

Measured on the first {total.asked} questions of `{benchmark.NAME}`, version {benchmark.VERSION},
split `test`, greedy, float32. The intervals are Wilson's. Questions that share a picture are not
independent, so the intervals are a little too narrow.

## How it was made

`python -m demo.training --model {name}`, on generated pictures of the training split. The test
split has other seeds.

1. The vision tower, {round_.tower_steps:,} steps on dense labels of every patch{_INHERITED[name]}.
2. Its features of {round_.pictures:,} pictures, computed once; the tower does not change any more.
3. Projector and decoder, {round_.steps:,} steps of twelve questions a picture, with few visual
   tokens first and all of them at the end. Auxiliary losses teach which words describe each patch
   and where to look.

The recipe was changed during training; docs/demo.md of the project says when.

{datetime.now(UTC):%Y-%m-%d}, {device}, torch {torch.__version__.split("+")[0]} and
transformers {transformers.__version__}.
Weights are stored in float16 ({weights / 1e6:.1f} MB) and load as float32. Trained on generated
data only: it contains nobody's images, texts or weights. It knows about a hundred words and cannot
say anything else.
""",
        encoding="utf-8",
    )


def _interval(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{_percent(low)} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
