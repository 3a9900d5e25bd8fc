"""How much faster does compression make a prefill, and how much of what is possible is that?

    python jobs/bench_prefill.py                                  # a table, and one JSON line last
    python jobs/bench_prefill.py --methods apet,fastv --budgets 64 --batch 1 --repeat 5

A model of LLaVA-1.5's shape with random weights reads 576 visual and 66 text tokens: on a GPU the real 7B in
bfloat16, on a CPU CLIP-L/336 before a decoder of 16 layers x 1,024 in float32. Each prefill is timed twice:

  prefill   from pixel values to the first logits
  decoder   from the entry of the decoder, after what the encoder's site did, to the first logits

and beside each stand its speed-up against the unmodified model, the limit of that, which is the ratio of their
floating-point operations over the same span (apet.flops, for the method's own schedule), and the share of the limit
that was reached. Ways are timed in turn, so that a busy moment hits all alike, and medians are shown.

  compress  time the method spent choosing, of the whole batch; and its share of the prefill
  KV, peak  keys and values of the whole batch; the most memory held beside the weights (on a CPU, the process')

Every method runs at every budget, batch size and attention kernel; one that refuses is a row that says why. On two
CPU cores that takes half an hour. There, unless --methods or --budgets are given, all methods run at the last budget
and batch 1, ApET at all budgets, and only ApET and vanilla with the large batch: about four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from time import perf_counter
from typing import Any

import torch
import transformers as hf
from bench_compress import peak_mib
from torch import Tensor
from transformers.utils.import_utils import is_flash_attn_2_available

from apet import METHODS, SHAPES, Flops, attach, prefill_flops
from apet.flops import Stack
from apet.methods import build
from apet.methods.base import Method, Model

VISUAL, BEFORE, AFTER = 576, 35, 31  # visual tokens, and the words around them
IMAGE = 32000  # the id of a visual token's placeholder
DECODERS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@dataclass
class Point:
    """A method at a budget, and what was measured."""

    method: Method
    budget: str
    prefill: list[float] = field(default_factory=list)  # ms, one a turn
    decoder: list[float] = field(default_factory=list)
    compress: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    kv_bytes: int = 0
    kept: str = "full"  # by site
    refused: str | None = None


def make_model(shape: str, device: torch.device, attn: str) -> Any:
    """Random weights, made where they are used; the tower of a LlavaConfig is CLIP-L/336 unless it says otherwise."""
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**DECODERS[shape], vocab_size=32064),
        image_token_index=IMAGE,
        image_seq_length=VISUAL,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        return hf.AutoModelForImageTextToText.from_config(config, attn_implementation=attn, dtype=dtype).eval()


def prompts(batch: int, model: Any) -> dict[str, Tensor]:
    """An image and a question a row, none padded."""
    words = torch.randint(3, IMAGE, (batch, BEFORE + AFTER), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words[:, :BEFORE], torch.full((batch, VISUAL), IMAGE), words[:, BEFORE:]], dim=1)
    pixels = torch.randn(batch, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(model.dtype)}
    return {name: value.to(model.device) for name, value in inputs.items()}


def now(device: torch.device) -> Any:
    event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
    return torch.cuda.current_stream().record_event(event) if event else perf_counter()


def ms(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return 1e3 * float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end))


@torch.inference_mode()
def run(model: Any, point: Point, inputs: dict[str, Tensor]) -> None:
    """One prefill, added to the point's measurements. Vanilla is the model without anything attached."""
    device, batch = model.device, len(inputs["input_ids"])
    seen: dict[str, Any] = {}

    def prefill() -> None:
        seen["start"] = now(device)
        seen["output"] = model(**inputs, use_cache=True, logits_to_keep=1)
        seen["end"] = now(device)

    with ExitStack() as stack:
        attached = None if point.method.name == "vanilla" else stack.enter_context(attach(model, point.method))
        decoder = model.model.language_model  # our hook comes after the attached ones
        hook = decoder.register_forward_pre_hook(lambda *_: seen.update(decoder=now(device)))
        stack.callback(hook.remove)
        point.peak_mib = max(point.peak_mib, peak_mib(prefill, device, interval=0.01))
    point.prefill.append(ms(seen["start"], seen["end"]))
    point.decoder.append(ms(seen["decoder"], seen["end"]))
    point.kv_bytes = sum(part.keys.nbytes + part.values.nbytes for part in seen["output"].past_key_values.layers)
    if attached:
        row = attached.stats[0]
        point.compress.append(row.compress_ms * batch)
        point.kept = ",".join(f"{site}={kept}" for site, kept in row.kept.items() if kept < VISUAL) or "full"


def measure(model: Any, points: list[Point], batch: int, turns: int) -> None:
    """All points in turn; on a GPU after a turn that does not count."""
    inputs = prompts(batch, model)
    for turn in range(-int(model.device.type == "cuda"), turns):
        for point in points:
            try:
                if not point.refused:
                    run(model, point, inputs)
            except ValueError as error:
                point.refused = str(error)
            if turn < 0:
                point.prefill, point.decoder, point.compress = [], [], []


def flops(text: Any, point: Point) -> Flops:
    """Of one row, for the method's schedule, with a decoder of that configuration."""
    heads, width = text.num_attention_heads, text.hidden_size
    decoder = Stack(text.num_hidden_layers, width, text.intermediate_size, heads, heads, width // heads, gated=True)
    llava = SHAPES["llava-1.5-7b"]
    projector, projects_first = (llava.vision.hidden, width, width), point.method.after_projector
    shape = replace(llava, decoder=decoder, projector=projector, projects_first=projects_first)
    model = Model(text.num_hidden_layers, tower_layers=23, first_decoder_site=0, encoder_only=False)  # as LLaVA is
    return prefill_flops(shape, point.method.plan(VISUAL, model), BEFORE + AFTER)


def report(text: Any, points: list[Point]) -> list[dict[str, Any]]:
    """Medians and what follows from them; the first point is vanilla."""
    base, rows = points[0], []
    most = flops(text, base)
    for point in points:
        row: dict[str, Any] = {"method": point.method.name, "budget": point.budget}
        if point.refused:
            rows.append(row | {"refused": point.refused})
            continue
        counted = flops(text, point)
        limits = {"prefill": most.total / counted.total, "decoder": most.decoder / counted.decoder}
        for span, limit in limits.items():
            took, took_base = (statistics.median(getattr(of, span)) for of in (point, base))
            faster = took_base / took
            row[span] = {"ms": took, "speedup": faster, "limit": limit, "share": 100 * faster / limit}
        compress = statistics.median(point.compress) if point.compress else 0.0
        row |= {"kept": point.kept, "compress_ms": compress, "kv_bytes": point.kv_bytes}
        rows.append(row | {"compress_share": 100 * compress / row["prefill"]["ms"], "peak_mib": point.peak_mib})
    return rows


HEAD = """\
                    ---------- prefill ---------   ---------- decoder ---------     compress         KV     peak
method      budget       ms speed-up limit  share       ms speed-up limit  share      ms      %      MiB      MiB"""


def line(row: dict[str, Any]) -> str:
    name = f"{row['method']:12} {row['budget']:>5}"
    if "refused" in row:
        return f"{name}  refuses: {row['refused'].splitlines()[0]}"
    spans = [
        f"{span['ms']:9.1f} {span['speedup']:7.2f}x {span['limit']:4.2f}x {span['share']:4.0f} %"
        for span in (row["prefill"], row["decoder"])
    ]
    memory = f"{row['kv_bytes'] / 2**20:8.1f} {row['peak_mib']:8.0f}"
    return f"{name} {' '.join(spans)}{row['compress_ms']:9.1f} {row['compress_share']:6.1f} {memory}  {row['kept']}"


def arguments(gpu: bool) -> argparse.Namespace:
    flash = ["flash_attention_2"] * is_flash_attn_2_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", help=f"of {','.join(METHODS)} (vanilla always runs)")
    add("--budgets", help="tokens or shares, such as 192,128,11.1%% (default 33.3%%,22.2%%,11.1%%)")
    add("--batch", default="1,32" if gpu else "1,4", help="rows at a time (default %(default)s)")
    add("--attn", default=",".join(["sdpa", "eager", *flash] if gpu else ["sdpa"]), help="(default %(default)s)")
    add("--shape", choices=DECODERS, default="7b" if gpu else "small", help="(default %(default)s)")
    add("--repeat", type=int, default=10 if gpu else 2, help="turns; half as many with larger batches (%(default)s)")
    given = parser.parse_args()
    if "flash_attention_2" in given.attn and not flash:
        parser.error("flash_attention_2 is not installed here; pip install 'apet[gpu]', on a machine with nvcc")
    return given


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = arguments(device.type == "cuda")
    chosen = given.methods.split(",") if given.methods else list(METHODS)
    budgets = given.budgets.split(",") if given.budgets else ["33.3%", "22.2%", "11.1%"]
    few = device.type == "cpu" and not (given.methods or given.budgets)
    batches = [int(size) for size in given.batch.split(",")]
    ways = product([name for name in chosen if name != "vanilla"], budgets)
    try:
        methods = {(name, budget): build(name, budget=budget) for name, budget in ways}
    except ValueError as error:
        raise SystemExit(f"bench_prefill: {error}") from None
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {where}, load {os.getloadavg()[0]:.1f}; making a {given.shape} model ...")
    model = make_model(given.shape, device, given.attn.split(",")[0])
    found = []
    run(model, Point(build("vanilla"), ""), prompts(1, model))  # the first call of all is slow
    for attn, batch in product(given.attn.split(","), batches):
        model.set_attn_implementation(attn)
        points = [Point(build("vanilla"), "full")]
        for (name, budget), method in methods.items():
            odd = (name != "apet") + (budget != budgets[-1]) + (batch > 1)
            if not few or odd < 2:
                points.append(Point(method, budget))
        turns = given.repeat if batch == 1 else max(1, given.repeat // 2)
        measure(model, points, batch, turns)
        rows = report(model.config.text_config, points)
        print(f"\nbatch {batch}, {attn}, {model.dtype}, median of {turns}\n{HEAD}")
        print("\n".join(map(line, rows)))
        for row in rows:
            if (row["method"], row["budget"]) == ("apet", budgets[-1]) and "refused" not in row:
                shares = f"{row['prefill']['share']:.0f} % of its limit in the prefill, {row['decoder']['share']:.0f} %"
                print(f"ApET at {row['budget']}: {shares} in the decoder (to reach: 80 %)")
        found += [{"batch": batch, "attn": attn, **row} for row in rows]
    about = {"bench": "prefill", "torch": torch.__version__, "where": where, "shape": given.shape}
    print(json.dumps(about | {"ways": found}))


if __name__ == "__main__":
    main()
