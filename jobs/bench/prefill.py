"""How much faster does compression make a prefill, and how much of what is possible is that?

    python jobs/bench/prefill.py                                  # a table, and one JSON line last
    python jobs/bench/prefill.py --methods apet,fastv --budgets 64 --batch 1 --repeat 5

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
from itertools import product

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from apet import METHODS
from apet.methods import build
from jobs.bench.models import HEAD, LLAMA, SUBJECTS, Point, line, measure, report, run


def arguments(gpu: bool) -> argparse.Namespace:
    flash = ["flash_attention_2"] * is_flash_attn_2_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", help=f"of {','.join(METHODS)} (vanilla always runs)")
    add("--budgets", help="tokens or shares, such as 192,128,11.1%% (default 33.3%%,22.2%%,11.1%%)")
    add("--batch", default="1,32" if gpu else "1,4", help="rows at a time (default %(default)s)")
    add(
        "--attn",
        default=",".join(["sdpa", "eager", *flash] if gpu else ["sdpa"]),
        help="(default %(default)s)",
    )
    add("--shape", choices=LLAMA, default="7b" if gpu else "small", help="(default %(default)s)")
    add(
        "--repeat",
        type=int,
        default=10 if gpu else 2,
        help="turns; half as many with larger batches (%(default)s)",
    )
    given = parser.parse_args()
    if "flash_attention_2" in given.attn and not flash:
        parser.error(
            "flash_attention_2 is not installed here; pip install 'apet[gpu]', on a machine with nvcc"
        )
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
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"torch {torch.__version__}, {where}, load {os.getloadavg()[0]:.1f}; making a {given.shape} model ..."
    )
    llava = SUBJECTS["llava-1.5-7b"]
    model = llava.make(given.shape, device, given.attn.split(",")[0])
    found = []
    run(
        model, Point(build("vanilla"), ""), llava.prompts(1, model)
    )  # the first call of all is slow
    for attn, batch in product(given.attn.split(","), batches):
        model.set_attn_implementation(attn)
        points = [Point(build("vanilla"), "full")]
        for (name, budget), method in methods.items():
            odd = (name != "apet") + (budget != budgets[-1]) + (batch > 1)
            if not few or odd < 2:
                points.append(Point(method, budget))
        turns = given.repeat if batch == 1 else max(1, given.repeat // 2)
        measure(model, points, llava.prompts(batch, model), turns)
        rows = report(llava, model, points)
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
