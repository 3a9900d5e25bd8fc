"""What `--help` teaches, and what flags of ApET's release are called here."""

from __future__ import annotations

DESCRIPTION = (
    "What does dropping visual tokens do? A model answers questions about {kind}s, unmodified and under each method and"
    " budget. Every answer goes to Parquet, every number to MLflow."
)
SWEEP = (
    "How far can one go? Every model answers every benchmark under every method and budget. What points share is done"
    " once: reading, decoding, preprocessing, loading the model, and the vision encoder for all methods behind it."
)
SWEEP_AFTER = """\
examples:
  python jobs/sweep.py                              the demo: small models, all methods, three budgets, two CPU cores
  python jobs/sweep.py --model llava-hf/llava-1.5-7b-hf --benchmark pope --data pope --method vanilla --method apet \\
      --budget 192,128,64
  python jobs/sweep.py sweep.yaml --limit 500       flags override the file; docs/sweeps.md shows what it may hold

The plan is shown first. The same command again goes on where the last one stopped: finished points are skipped, failed
ones are tried again. Exit status: 0 if all went well, 1 if a point failed, 2 if the command is wrong.
"""
BUDGETS = """\
what a budget is:
  the visual tokens that a layer of the language model sees, averaged over its layers. LLaVA-1.5 has 576 an image:
  --budget 64 lets 96 of them into the first half of the layers and 32 on into the second. A share, --budget 10%,
  is of what each image or video has. --schedule encoder=96,16=32 says outright what enters the language model and
  what is kept at layer 16. Every method meets the same average in its own way; vanilla, the unmodified model, has none.
"""
EXAMPLES = {
    "image": """\
examples:
  python jobs/eval_image.py                         the demo: vanilla and ApET, two CPU cores, under 3 minutes
  python jobs/eval_image.py --model llava-hf/llava-1.5-7b-hf --data questions.jsonl --media-root photos \\
      --method vanilla --method apet --method fastv --budget 64 --budget 128
  python jobs/eval_image.py --method apet:basis=5,sampling=dpc --method apet:budget=128 --budget 10%
  python jobs/eval_image.py --config run.yaml --limit 500           flags override the file
  ray job submit --working-dir . -- python jobs/eval_image.py --actors 8 --output s3://bucket/results
""",
    "video": """\
examples:
  python jobs/eval_video.py                         the demo: vanilla and ApET on short clips, on CPUs
  python jobs/eval_video.py --model LanguageBind/Video-LLaVA-7B-hf --data questions.jsonl --media-root clips \\
      --frames 8 --method vanilla --method apet --budget 12.5%
  python jobs/eval_video.py --config run.yaml --limit 500           flags override the file
  ray job submit --working-dir . -- python jobs/eval_video.py --actors 8 --output s3://bucket/results
""",
}
AFTER = """\
The same command again goes on where the last one stopped; a finished run does nothing. Exit status: 0 if all went
well, 1 if the run failed, 2 if the command is wrong. docs/flags.md: the flags of ApET's release and ours.
"""
INSTEAD = {  # what to use instead of flags of ApET's release, all of which are in docs/flags.md, and of others
    "model_path": "--model",
    "question_file": "--data",
    "gt_file_question": "--data",
    "gt_file_answers": "--data",
    "image_folder": "--media-root",
    "video_dir": "--media-root",
    "answers_file": "--output",
    "output_dir": "--output",
    "output_name": "--output",
    "conv_mode": "--conversation",
    "layer_list": "--budget 64 or --schedule encoder=96,16=32",
    "image_token_list": "--budget 64 or --schedule encoder=96,16=32",
    "visual_token_num": "--budget 64 or --schedule encoder=96,16=32",
    "image_token_ratio": "--budget 20% or --schedule encoder=30%,14=10%",
    "image_token_ratio_list": "--budget 20% or --schedule encoder=30%,14=10%",
    "llm_pruning": "--method apet, which also compresses inside the language model",
    "basis_token_num": "--method apet:basis=10",
    "basis": "--method apet:basis=10",
    "sampling": "--method apet:sampling=dpc",
    "merge": "--method apet:merge=false",
    "variant": "--method apet:variant=release",
    "num_chunks": "--actors",
    "chunk_idx": "--actors",
    "frames": "eval_video.py, which has it",  # asked of eval_image.py
}
BENCHMARKS = "it is a property of a benchmark, not of a run"
NOTHING = {  # flags of ApET's release that there is nothing for, and why
    "model_base": "merge adapters into the model first",
    "top_p": "it is 1 in all scripts of the release",
    "num_beams": "it is 1 in all scripts of the release",
    "single_pred_prompt": BENCHMARKS,
    "all_rounds": BENCHMARKS,
    "lang": BENCHMARKS,
    "answer_prompter": BENCHMARKS,
    "device": "Ray places models",
    "cache_dir": "HF_HOME says where the hub's files are",
    "model_max_length": "a question too long for the model is an error row",
}
