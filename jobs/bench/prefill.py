"""Measure how much compression speeds up a prefill, and compare that with what is possible.

    python jobs/bench/prefill.py
    python jobs/bench/prefill.py --methods apet,fastv --budgets 64 --batch 1 --repeat 5

A model of LLaVA-1.5's shape with random weights reads 576 visual and 66 text tokens: on a GPU the
real 7B in bfloat16, on a CPU CLIP-L/336 before a decoder of 16 layers x 1,024 in float32. Each
prefill has two times:

  prefill   from pixel values to the first logits
  decoder   from the entry of the decoder, behind the encoder's site, to the first logits

Beside each time stand its speed-up over the unmodified model, the limit of that speed-up, and the
share of the limit that was reached. The limit is the ratio of the floating-point operations over
the same span (apet.flops, for the method's own schedule). Methods are timed in turn, so that other
load hits all of them alike, and medians are shown.

  compress  time of the method's choice for the whole batch, and its share of the prefill
  KV, peak  keys and values of the whole batch; most memory beyond the weights (of the process on a
            CPU)

Every method runs at every budget, batch size and attention kernel. One that refuses becomes a row
that says why. On two CPU cores that takes half an hour. There, without --methods and --budgets, all
methods run at the last budget and batch 1, ApET at all budgets, and only ApET and vanilla with the
large batch: about four minutes.
"""

import argparse
from itertools import product

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from apet import METHODS
from apet.methods import build
from jobs.bench.common import argument_parser, print_json
from jobs.bench.prefill_models import (
    HEAD,
    LLAMA,
    SUBJECTS,
    Measurement,
    format_row,
    measure,
    run_prefill,
    summarise,
)
from jobs.bench.timing import default_device, describe, title

DEFAULT_BUDGETS = "33.3%,22.2%,11.1%"


def parse_arguments(gpu: bool) -> argparse.Namespace:
    flash = ["flash_attention_2"] * is_flash_attn_2_available()
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--methods", help=f"of {','.join(METHODS)} (vanilla always runs)")
    add(
        "--budgets",
        help="tokens or shares, such as 192,128,11.1%%"
        f" (default {DEFAULT_BUDGETS.replace('%', '%%')})",
    )
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
    args = parser.parse_args()
    if "flash_attention_2" in args.attn and not flash:
        parser.error(
            "flash_attention_2 is not installed here; pip install 'apet[gpu]', on a machine with"
            " nvcc"
        )
    return args


def main() -> None:
    device = default_device()
    args = parse_arguments(device.type == "cuda")
    names = args.methods.split(",") if args.methods else list(METHODS)
    budgets = (args.budgets or DEFAULT_BUDGETS).split(",")
    # Otherwise a CPU takes half an hour.
    is_reduced = device.type == "cpu" and not (args.methods or args.budgets)
    batches = [int(size) for size in args.batch.split(",")]
    try:
        methods = {
            (name, budget): build(name, budget=budget)
            for name, budget in product(names, budgets)
            if name != "vanilla"
        }
    except ValueError as error:
        raise SystemExit(f"prefill.py: {error}") from None
    print(f"{title(device)}; making a {args.shape} model ...")
    subject = SUBJECTS["llava-1.5-7b"]
    model = subject.make(args.shape, device, args.attn.split(",")[0])
    # The first call of all is slow.
    run_prefill(model, Measurement(build("vanilla"), ""), subject.prompts(1, model))
    results = []
    for attn, batch in product(args.attn.split(","), batches):
        model.set_attn_implementation(attn)
        measurements = [Measurement(build("vanilla"), "full")]
        for (name, budget), method in methods.items():
            deviations = (name != "apet") + (budget != budgets[-1]) + (batch > 1)
            if not is_reduced or deviations < 2:
                measurements.append(Measurement(method, budget))
        turns = args.repeat if batch == 1 else max(1, args.repeat // 2)
        measure(model, measurements, subject.prompts(batch, model), turns)
        rows = summarise(subject, model, measurements)
        print(f"\nbatch {batch}, {attn}, {model.dtype}, median of {turns}\n{HEAD}")
        print("\n".join(map(format_row, rows)))
        for row in rows:
            if (row["method"], row["budget"]) == ("apet", budgets[-1]) and "refused" not in row:
                print(
                    f"ApET at {row['budget']}: {row['prefill']['share']:.0f} % of its limit in the"
                    f" prefill, {row['decoder']['share']:.0f} % in the decoder (to reach: 80 %)"
                )
        results += [{"batch": batch, "attn": attn, **row} for row in rows]
    versions = {"torch": torch.__version__, "where": describe(device)}
    print_json("prefill", **versions, shape=args.shape, ways=results)


if __name__ == "__main__":
    main()
