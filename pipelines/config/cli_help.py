"""Texts of `--help` for the evaluation jobs and the sweep."""

from __future__ import annotations

EVAL = """\
Measure what dropping visual tokens does to answers about {kind}s: run a model unmodified and with
each compression method and budget. Answers are written to Parquet, metrics to MLflow."""
SWEEP = """\
Run every model on every benchmark with every compression method and budget. Shared steps run
once: reading, decoding, preprocessing, loading the model, and the vision encoder for all methods
that act after it."""
BUDGETS = """\
budgets:
  A budget is the number of visual tokens that a layer of the language model sees, averaged over its
  layers. LLaVA-1.5 has 576 per image: --budget 64 lets 96 of them into the first half of the layers
  and 32 into the second. A share, e.g. --budget 10%, refers to the tokens of each image or video.
  --schedule encoder=96,16=32 sets directly what enters the language model and what is kept from
  layer 16 on. Each method meets the same average in its own way. vanilla, the unmodified model,
  has no budget.
"""
EXAMPLES = {
    "image": """\
examples:
  # demo: vanilla and ApET on two CPU cores, less than 3 minutes
  python jobs/eval_image.py
  python jobs/eval_image.py --model llava-hf/llava-1.5-7b-hf --data questions.jsonl \\
      --media-root photos --method vanilla --method apet --method fastv --budget 64 --budget 128
  python jobs/eval_image.py --method apet:basis=5,sampling=dpc --method apet:budget=128 --budget 10%
  # flags override the file
  python jobs/eval_image.py --config run.yaml --limit 500
  ray job submit --working-dir . -- python jobs/eval_image.py --actors 8 --output s3://bucket/out
""",
    "video": """\
examples:
  # demo: vanilla and ApET on short clips, on CPUs
  python jobs/eval_video.py
  python jobs/eval_video.py --model LanguageBind/Video-LLaVA-7B-hf --data questions.jsonl \\
      --media-root clips --frames 8 --method vanilla --method apet --budget 12.5%
  # flags override the file
  python jobs/eval_video.py --config run.yaml --limit 500
  ray job submit --working-dir . -- python jobs/eval_video.py --actors 8 --output s3://bucket/out
""",
}
EVAL_EXIT = """\
Repeat the command to resume a stopped job; a finished run does nothing. Exit status: 0 if all went
well, 1 if a run failed, 2 if the command is wrong. docs/flags.md maps the flags of ApET's release
to these.
"""
SWEEP_EXAMPLES = """\
examples:
  # demo: small models, all methods, three budgets, on two CPU cores
  python jobs/sweep.py
  python jobs/sweep.py --model llava-hf/llava-1.5-7b-hf --benchmark pope --data pope \\
      --method vanilla --method apet --budget 192,128,64
  # flags override the file; docs/sweeps.md describes it
  python jobs/sweep.py sweep.yaml --limit 500

The plan is printed first. Repeat the command to resume a stopped sweep: finished runs are skipped,
failed ones are retried. Exit status: 0 if all went well, 1 if a run failed, 2 if the command is
wrong.
"""
