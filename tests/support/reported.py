"""Made-up runs: folders with a record and answers, as a job writes them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.results.answer_schema import ANSWER_SCHEMA
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder


def run(
    output: Path | str,
    benchmark: str,
    method: str,
    rows: Iterable[dict[str, Any]],
    *,
    budget: str | None = None,
    model: str = "demo-llava",
    state: Any = "finished",
    metrics: dict[str, float] | None = None,
    tags: dict[str, str] | None = None,
    parts: int = 2,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    limit: int | str = "all",
    **identity: Any,
) -> Folder:
    """Writes a run. `identity` holds further keys of its identity, such as attn."""
    spent = {"budget": budget} if budget else {}
    shown = [f"{key}{value}" for key, value in (options or {}).items()]
    point = "-".join([method, *spent.values(), *shown]).replace("%", "pct")
    known = {
        "model": f"sha256:{model}",
        "attn": "packed",
        "benchmark": benchmark,
        "split": "test",
        # the paper's, for LLaVA-1.5
        "conversation": "vicuna_v1",
        "image_fit": "pad",
        **identity,
    }
    kernel = f"-{identity['attn']}" if identity.get("attn") else ""
    name = f"{benchmark}-{model}{kernel}-{point}-0a1b2c3d"
    folder = Folder.of(str(output)).child(name)
    table = pa.Table.from_pylist(
        [
            {
                "benchmark": benchmark,
                "split": "test",
                "model": model,
                "method": method,
                "point": point,
                "run_id": name,
            }
            | {
                "budget": float(budget) if budget and budget.isdigit() else 576.0,
                "visual_tokens_in": 576,
            }
            | {
                "status": "ok",
                "question": "?",
                "reference": ["yes"],
                "options": [],
                "meta": [],
                "batch_rows": 4,
            }
            | {
                "prefill_ms": 10.0,
                "decode_ms": 5.0,
                "compress_ms": 1.0,
                "new_tokens": 2,
                "prediction": "so it is",
            }
            | row
            for row in rows
        ],
        schema=ANSWER_SCHEMA,
    )
    size = -(-len(table) // parts)
    for part in range(parts if size else 0):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(part * size, size), sink)
        folder.write(f"answers-{part}.parquet", sink.getvalue().to_pybytes())
    record = RunRecord(
        name, state=state, metrics=metrics or {}, config={"seed": seed, "limit": limit}
    )
    record.point = {"name": point, "method": method, **spent, **(options or {})}
    record.identity = {**known, "method": method, "options": {**spent, **(options or {})}}
    record.tags = {"model": model, "benchmark": benchmark, **(tags or {})}
    record.rows = {"wanted": len(table), "done": len(table), "error": 0}
    record.save(folder)
    return folder


def rows_of(benchmark: str, seed: int, right: float, count: int = 120) -> list[dict[str, Any]]:
    """Answers to the same questions for every seed. Some are errors, and some are missing.

    right: share of correct answers
    """
    random_numbers = random.Random(seed)
    rows = []
    for number in range(count):
        row = _question(benchmark, number)
        row |= {
            "correct": random_numbers.random() < right,
            "prefill_ms": random_numbers.uniform(5, 50),
            "decode_ms": random_numbers.uniform(5, 50),
        }
        row |= {
            "compress_ms": random_numbers.uniform(0, 2),
            "peak_memory_bytes": random_numbers.randrange(2**33),
        }
        if random_numbers.random() < 0.05:
            row |= {
                "status": "error",
                "error": f"OSError: file {number} is torn: at 3",
                "correct": None,
            }
            row |= {"prefill_ms": None, "decode_ms": None, "compress_ms": None, "prediction": None}
        if random_numbers.random() > 0.03:
            rows.append(row)
    return rows


def _question(benchmark: str, number: int) -> dict[str, Any]:
    """A question with the id, type and media of its benchmark, which group rows when scored."""
    if benchmark in ("mmbench", "mmbench_cn"):
        base = number // 4
        return {
            "row_id": str(base + 1_000_000 * (number % 4)),
            "media": [f"sha256:{base}"],
            "type": "color",
        }
    if benchmark == "mme":
        subtask, image = ("existence", "OCR")[number % 4 // 2], number // 4
        name = f"{subtask}/{image:03}"
        return {"row_id": f"{name}/{'ab'[number % 2]}", "media": [f"{name}.jpg"], "type": subtask}
    if benchmark == "pope":
        split = ("adversarial", "popular", "random")[number % 3]
        label = ("yes", "no")[number // 3 % 2]
        return {
            "row_id": f"{split}/{number:04}",
            "media": [f"{number // 6}.jpg"],
            "type": split,
            "reference": [label],
        }
    if benchmark == "scienceqa":
        meta = [("image", ("yes", "no")[number % 2]), ("grade", "3")]
        return {
            "row_id": f"{number:04}",
            "media": [f"{number}.png"],
            "type": "natural science",
            "meta": meta,
        }
    return {
        "row_id": f"{number:04}",
        "media": [f"{number // 3}.png"],
        "type": ("colour", "count")[number % 2],
    }
