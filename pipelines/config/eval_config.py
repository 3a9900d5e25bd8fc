"""What a user asks for: one typed config, from flags and YAML.

    config = parse("image", ["--method", "apet", "--budget", "64"])

Each field of `EvalConfig` is a flag, a YAML key and, resolved, a line of what is printed, written and logged. Nothing
heavy is imported: a typing error is told in a fraction of a second, and so is that a run is finished.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from pipelines.benchmarks import BENCHMARKS, SPLITS
from pipelines.config import cli_help, parsers
from pipelines.config.flags import flag, flags_of, from_argv, from_yaml, parser
from pipelines.config.method_spec import MethodSpec, expand_methods, known_methods
from pipelines.data.rows import Kind
from pipelines.text import redacted

DEMO_BENCHMARK = {"image": "shapes", "video": "motion"}
DEMO_BUDGET = {"image": "64", "video": "12.5%"}
DEMO_ROWS, DEMO_TOKENS = 200, 16

WHAT = "what is evaluated"
HOW = "compression"
ASK = "how the model is asked"
WHERE = "where it runs, and how fast"
LOG = "results and tracking"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """All that one job does. `EvalConfig.of` fills in what depends on other fields; `resolve_paths` fixes paths."""

    kind: Kind

    model: str = flag(WHAT, parsers.text, "MODEL", "a folder, a name on the hub, or demo", "demo")
    revision: str | None = flag(
        WHAT,
        parsers.text,
        "REV",
        "of a model on the hub: a branch, a tag or a commit, which it becomes",
        shown="main",
    )
    trust_remote_code: bool = flag(
        WHAT, parsers.yes_no, "", "run code that comes with the model", False
    )
    benchmark: str = flag(
        WHAT,
        parsers.choice(*BENCHMARKS),
        "NAME",
        f"one of {', '.join(BENCHMARKS)}",
        DEMO_BENCHMARK["image"],
    )
    data: str | None = flag(
        WHAT,
        parsers.text,
        "PATH",
        "questions and media: a .jsonl, .csv, .tsv or .parquet file, or a folder of Parquet files, of WebDataset .tar"
        " files or of media; of an official benchmark its folder (docs/benchmarks.md); local, s3:// or gs://",
    )
    split: str = flag(
        WHAT, parsers.text, "NAME", "of the benchmark", "test", shown="test; dev of MMBench"
    )
    media_root: str | None = flag(
        WHAT,
        parsers.text,
        "FOLDER",
        "what relative paths in the data are relative to",
        shown="where the data is",
    )
    allow_outside: bool = flag(
        WHAT, parsers.yes_no, "", "read media outside the media root, too", False
    )
    question: str | None = flag(
        WHAT, parsers.text, "TEXT", "asked about every file of a folder of media"
    )
    limit: int | None = flag(
        WHAT,
        parsers.limit,
        "N",
        "ask the first N questions only, or all",
        shown=f"{DEMO_ROWS} for the demo, else all",
    )

    methods: tuple[str, ...] = flag(
        HOW,
        parsers.text,
        "METHOD",
        f"may be repeated; one of {', '.join(known_methods())}, with options as in apet:basis=5,sampling=dpc",
        ("vanilla", "apet"),
        name="method",
        shown="vanilla and apet",
        many=True,
    )
    budgets: tuple[str, ...] = flag(
        HOW,
        parsers.budget,
        "BUDGET",
        "visual tokens to keep, or a share such as 10%; may be repeated, or 64,128: each method runs with each",
        (DEMO_BUDGET["image"],),
        name="budget",
        many=True,
        listed=True,
    )
    schedule: str | None = flag(
        HOW,
        parsers.schedule,
        "SITES",
        "instead of a budget: sites and what each keeps, such as encoder=96,16=32",
    )

    frames: int = flag(
        ASK, parsers.whole(1, 8), "N", "frames of a video, evenly spaced", 8, kind="video"
    )
    min_pixels: int | None = flag(
        ASK, parsers.whole(1, 200704), "N", "smaller media are enlarged", shown="the model's own"
    )
    max_pixels: int | None = flag(
        ASK, parsers.whole(1, 1605632), "N", "larger media are shrunk", shown="the model's own"
    )
    conversation: str = flag(
        ASK,
        parsers.choice("model", "vicuna_v1"),
        "NAME",
        "model: its own chat template; vicuna_v1: as LLaVA's scripts have it",
        "model",
    )
    temperature: float = flag(
        ASK, parsers.number, "X", "0 always takes the likeliest token", 0.0, shown="0"
    )
    max_new_tokens: int = flag(
        ASK,
        parsers.whole(1),
        "N",
        "of an answer",
        128,
        shown=f"{DEMO_TOKENS} for the demo model, else 128",
    )
    seed: int = flag(
        ASK,
        parsers.whole(0, 1),
        "N",
        "of tokens drawn at a temperature, of what random keeps, and of the bootstrap",
        0,
    )
    dtype: str = flag(
        ASK,
        parsers.choice("auto", "float32", "float16", "bfloat16"),
        "NAME",
        "float32, float16, bfloat16; auto: the checkpoint's own",
        "auto",
    )
    attn: str = flag(
        ASK,
        parsers.choice("packed", "sdpa", "eager", "flash_attention_2", "flash_attention_3"),
        "NAME",
        "attention kernel: packed, PyTorch's own, without padding in the decoder; sdpa, the same with padding; eager;"
        " flash_attention_2 and flash_attention_3, which are packages of their own, without padding, too",
        "packed",
    )

    ray_address: str | None = flag(
        WHERE,
        parsers.text,
        "ADDRESS",
        "the cluster to join",
        shown="the one this job is in, else one of its own",
    )
    actors: tuple[int, int] | None = flag(
        WHERE,
        parsers.actors,
        "N",
        "how many hold a model: a number, or the fewest and the most, as 1,4",
        shown="one a GPU; without GPUs what the CPUs allow",
    )
    gpus_per_actor: float | None = flag(
        WHERE,
        parsers.gpus,
        "X",
        "parts of one, too, such as 0.25; several, such as 2, share the layers of one large model (with the package"
        " accelerate)",
        shown="1 where the cluster has GPUs, else 0",
    )
    cpus_per_actor: float | None = flag(
        WHERE, parsers.above_zero, "X", "beside its GPU", shown="1 with a GPU, else an equal part"
    )
    batch_size: int | None = flag(
        WHERE,
        parsers.whole(1),
        "N",
        "questions at once, at most; halved where memory is short",
        shown="64 on a GPU, else 16",
    )
    batch_tokens: int | None = flag(
        WHERE,
        parsers.tokens,
        "N",
        "at once, at most: questions times the longest's tokens, uncompressed and with its answer; auto: on a GPU what"
        " its memory holds, which the job's first worker measures, the others follow and record.json keeps, so that a"
        " job that goes on makes the same batches; on CPUs any number",
        shown="auto",
    )
    compile: bool = flag(
        ASK,
        parsers.yes_no,
        "",
        "the vision encoder, by torch.compile (not Qwen's); its numbers differ in the last digits",
        False,
    )
    batch_timeout: float = flag(
        WHERE,
        parsers.above_zero,
        "SECONDS",
        "that a batch, or reading one row, may take; then its worker starts again and takes its rows one by one",
        600.0,
        shown="600",
    )

    output: str = flag(
        LOG,
        parsers.text,
        "FOLDER",
        "or s3://, gs://",
        "results",
        shown="results; under ray job submit ~/apet-results",
    )
    tracking_uri: str | None = flag(
        LOG,
        parsers.text,
        "URI",
        "of MLflow",
        shown="MLFLOW_TRACKING_URI, else mlflow.db in the output folder",
    )
    experiment: str = flag(LOG, parsers.text, "NAME", "in MLflow", "apet")
    max_error_rate: float = flag(
        LOG,
        parsers.rate,
        "SHARE",
        "fail, after all is written, if more of the rows are errors",
        0.01,
        shown="1%",
    )
    retry_errors: bool = flag(
        LOG, parsers.yes_no, "", "ask again where the answer was an error", False
    )

    @classmethod
    def of(cls, kind: Kind, **given: Any) -> EvalConfig:
        """With the defaults that depend on the kind of job and on what else was given."""
        demo = DEMO_BENCHMARK[kind]
        filled: dict[str, Any] = {"benchmark": demo if given.get("data") is None else "manifest"}
        filled["split"] = SPLITS.get(given.get("benchmark", demo), "test")
        filled["budgets"] = () if given.get("schedule") else (DEMO_BUDGET[kind],)
        if given.get("model", "demo") == "demo":
            filled["max_new_tokens"] = DEMO_TOKENS
            if given.get("benchmark", demo) == demo and given.get("data") is None:
                filled["limit"] = DEMO_ROWS
        return cls(kind=kind, **{**filled, **given})

    def __post_init__(self) -> None:
        if self.schedule and self.budgets:
            raise ValueError(
                f"--schedule {self.schedule} and --budget {self.budgets[0]} exclude each other; give one"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}; swap them"
            )
        if self.benchmark == "manifest" and self.data is None:
            raise ValueError(
                "--benchmark manifest needs --data: the file or folder with the questions and media"
            )
        if not self.points:
            raise ValueError("no method is given; give at least one, such as --method apet")

    @property
    def points(self) -> tuple[MethodSpec, ...]:
        return expand_methods(self.methods, self.budgets, self.schedule)

    @property
    def model_name(self) -> str:
        """The model, short: `llava-1.5-7b-hf`."""
        return re.sub(r"[^A-Za-z0-9_.-]", "_", self.model.rstrip("/").rpartition("/")[2])

    def identity(
        self,
        point: MethodSpec,
        manifest_digest: str,
        model_fingerprint: str,
        benchmark_version: str,
    ) -> dict[str, Any]:
        """All that affects answers, and nothing else: a run goes on where one of equal identity stopped."""
        return {
            "model": model_fingerprint,
            "dtype": self.dtype,
            "attn": self.attn,
            "benchmark": self.benchmark,
            "benchmark_version": benchmark_version,
            "split": self.split,
            "manifest": manifest_digest,
            "question": self.question,
            "kind": self.kind,
            "frames": self.frames if self.kind == "video" else None,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "conversation": self.conversation,
            "temperature": self.temperature,
            "seed": self.seed,  # of what `random` keeps, at any temperature
            "max_new_tokens": self.max_new_tokens,
            "method": point.method,
            "options": dict(point.options),
            **(
                {"compile": True} if self.compile else {}
            ),  # not in the runs of before there was such a thing
        }

    def run_name(self, point: MethodSpec, identity: Mapping[str, Any]) -> str:
        """The folder of one point's answers: readable, and its own."""
        return f"{self.benchmark}-{self.model_name}-{point.name}-{digest(identity)[:8]}"

    def __repr__(self) -> str:
        return f"EvalConfig({self.to_dict()})"

    def to_dict(self) -> dict[str, Any]:
        """Every field as YAML and MLflow take it; URIs without passwords."""
        plain: dict[str, Any] = {"kind": self.kind}
        for each in flags_of(type(self), self.kind):
            value = getattr(self, each.field)
            if each.field == "limit" and value is None:
                value = "all"
            elif each.field == "actors" and value is not None:
                value = ",".join(map(str, value))
            elif isinstance(value, tuple):
                value = list(value)
            plain[each.field] = redacted(value) if isinstance(value, str) else value
        return plain


def digest(identity: Mapping[str, Any]) -> str:
    """64 hexadecimal digits, the same for equal identities in every process."""
    return hashlib.sha256(
        json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def to_yaml(config: EvalConfig) -> str:
    """The whole config, as `--config` reads it."""
    import yaml

    return cast(
        str, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    )


def parse(kind: Kind, argv: Sequence[str]) -> EvalConfig:
    """The config of a command line; whatever is wrong with it ends the process with one line and status 2."""
    flags = flags_of(EvalConfig, kind)
    made = parser(
        flags,
        {
            "benchmark": f"{DEMO_BENCHMARK[kind]}; with --data manifest",
            "budgets": DEMO_BUDGET[kind],
        },
        prog=f"eval_{kind}.py",
        usage=f"python jobs/eval_{kind}.py [--model M] [--benchmark B | --data FILE] [--method X --budget N]... [...]",
        description=cli_help.DESCRIPTION.format(kind=kind),
        epilog=f"{cli_help.BUDGETS}\n{cli_help.EXAMPLES[kind]}\n{cli_help.AFTER}",
    )
    try:
        typed, file = from_argv(made, argv, flags)
        read = from_yaml(Path(file), kind, flags) if file else {}
        if {"budgets", "schedule"} & set(typed):  # one of them replaces either of the file's
            read = {
                name: value for name, value in read.items() if name not in ("budgets", "schedule")
            }
        return EvalConfig.of(kind, **{**read, **typed})
    except ValueError as error:
        refuse(kind, error)


def refuse(kind: Kind, error: Exception | str) -> NoReturn:
    """One line on stderr, and the exit status of a wrong command."""
    print(f"eval_{kind}.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
    raise SystemExit(2)
