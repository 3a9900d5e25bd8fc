"""The configuration of one job, from flags and YAML.

    config = parse("image", ["--method", "apet", "--budget", "64"])

Each field of `EvalConfig` is a flag, a YAML key and, resolved, a line of the printed and logged
config. Nothing heavy is imported, so that a wrong command fails, and a finished run ends, within a
fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.benchmarks import BENCHMARKS, DEFAULT_SPLITS
from pipelines.config import parsers
from pipelines.config.flags import (
    field_docs,
    flag,
    flag_parser,
    flags_of,
    help_text,
    parse_argv,
    parse_mapping,
    read_yaml,
)
from pipelines.config.method_spec import METHODS, MethodSpec, expand_methods
from pipelines.data.rows import Kind
from pipelines.text import redacted

DEMO_BENCHMARK = {"image": "shapes", "video": "motion"}
DEMO_BUDGET = {"image": "64", "video": "12.5%"}
DEMO_ROWS, DEMO_TOKENS = 200, 16

GROUPS = {  # of flags in --help: the first field of each, and its title
    "model": "model and data",
    "methods": "compression",
    "frames": "prompts and generation",
    "ray_address": "resources and batching",
    "output": "results and tracking",
}
# Fields that are part of a run's identity under their own names, because they change answers.
ANSWER_FIELDS = (
    *("dtype", "attn", "benchmark", "split", "question", "kind", "min_pixels", "max_pixels"),
    *("conversation", "temperature", "seed", "max_new_tokens"),
)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One job. The text below each field is its help.

    `EvalConfig.of` sets defaults that depend on other fields; `resolve_paths` makes paths absolute.
    """

    kind: Kind

    model: str = flag(parsers.text, "MODEL", "demo")
    """A folder, a name on the Hugging Face Hub, or demo."""
    revision: str | None = flag(parsers.text, "REV")
    """Hub revision: branch, tag or commit. Resolved to a commit and recorded. Default: main."""
    trust_remote_code: bool = flag(parsers.yes_no, "", False)
    """Run code that comes with the model."""
    benchmark: str = flag(parsers.choice(*BENCHMARKS), "NAME", DEMO_BENCHMARK["image"])
    """One of {benchmarks}. Default: {default_benchmark}; manifest with --data."""
    data: str | None = flag(parsers.text, "PATH")
    """Questions and media: a .jsonl, .csv, .tsv or .parquet file, or a folder of Parquet files, of
    WebDataset .tar files or of media. For an official benchmark, its folder (docs/benchmarks.md).
    Local, s3:// or gs://."""
    split: str = flag(parsers.text, "NAME", "test")
    """Split of the benchmark. Default: test; dev for MMBench."""
    media_root: str | None = flag(parsers.text, "FOLDER")
    """Base folder of relative media paths. Default: the folder of the data."""
    allow_outside: bool = flag(parsers.yes_no, "", False)
    """Also read media outside the media root."""
    question: str | None = flag(parsers.text, "TEXT")
    """Question about every file, for data that is a folder of media."""
    limit: int | None = flag(parsers.count_or("all", "rows", 200), "N")
    """Ask only the first N questions, or all. Default: {demo_rows} for the demo, else all."""

    methods: tuple[str, ...] = flag(
        parsers.text, "METHOD", ("vanilla", "apet"), name="method", repeatable=True
    )
    """Compression method: {methods}. Options follow a colon, e.g. apet:basis=5,sampling=dpc. May be
    repeated. Default: {default_methods}."""
    budgets: tuple[str, ...] = flag(
        parsers.budget,
        "BUDGET",
        (DEMO_BUDGET["image"],),
        name="budget",
        repeatable=True,
        comma_separated=True,
    )
    """Visual tokens to keep, or a share such as 10%. May be repeated or separated by commas, e.g.
    64,128: each method runs with each budget. Default: {default_budgets}."""
    schedule: str | None = flag(parsers.schedule, "SITES")
    """Replaces --budget: the tokens that each site keeps, e.g. encoder=96,16=32."""

    frames: int = flag(parsers.integer(1, 8), "N", 8, kind="video")
    """Frames per video, evenly spaced."""
    min_pixels: int | None = flag(parsers.integer(1, 200704), "N")
    """Enlarge media with fewer pixels. Default: set by the model."""
    max_pixels: int | None = flag(parsers.integer(1, 1605632), "N")
    """Shrink media with more pixels. Default: set by the model."""
    image_fit: str | None = flag(parsers.choice("model", "pad"), "NAME", kind="image")
    """How an image is made to fit a square vision encoder. model: as the checkpoint configures it
    (LLaVA-1.5: centre crop); pad: pad to a square, as in LLaVA's scripts. Default: pad for
    LLaVA-1.5, else model."""
    conversation: str | None = flag(parsers.choice("model", "vicuna_v1", "llava_v1"), "NAME")
    """Prompt format. model: the model's own chat template; vicuna_v1, llava_v1: as in the scripts
    of LLaVA and of Video-LLaVA. Default: vicuna_v1 for LLaVA-1.5, llava_v1 for Video-LLaVA, else
    model."""
    generation: str = flag(parsers.choice("model", "official"), "NAME", "model")
    """Repetition penalties and beam search. model: use those of the checkpoint's generation config,
    e.g. Qwen2.5-VL's repetition penalty of 1.05; official: use none, as the official evaluations
    do. Decoding is greedy in both cases unless --temperature is set."""
    temperature: float = flag(parsers.non_negative, "X", 0.0)
    """Sampling temperature. 0 always takes the most likely token."""
    max_new_tokens: int = flag(parsers.integer(1), "N", 128)
    """Maximum tokens of an answer. Default: 16 for the demo model, else 128."""
    seed: int = flag(parsers.integer(0, 1), "N", 0)
    """Seed of sampling at a temperature, of the method random, and of the bootstrap."""
    dtype: str = flag(parsers.choice("auto", "float32", "float16", "bfloat16"), "NAME", "auto")
    """float32, float16, bfloat16, or auto: as in the checkpoint."""
    attn: str = flag(
        parsers.choice("packed", "sdpa", "eager", "flash_attention_2", "flash_attention_3"),
        "NAME",
        "packed",
    )
    """Attention kernel. packed: PyTorch's, without padding in the decoder; sdpa: the same with
    padding; eager; flash_attention_2, flash_attention_3: separate packages, without padding."""
    compile: bool = flag(parsers.yes_no, "", False)
    """Compile the vision encoder with torch.compile (not Qwen's). Results differ in the last
    digits."""

    ray_address: str | None = flag(parsers.text, "ADDRESS")
    """Ray cluster to join. Default: the one this job runs in, else a new one on this machine."""
    actors: tuple[int, int] | None = flag(parsers.actors, "N")
    """Number of actors that hold a model, or minimum and maximum, e.g. 1,4. Default: one per GPU;
    without GPUs, as many as the CPUs allow."""
    gpus_per_actor: float | None = flag(parsers.gpus, "X")
    """A fraction such as 0.25 shares a GPU; several, such as 2, split the layers of a large model
    (needs the package accelerate). Default: 1 if the cluster has GPUs, else 0."""
    cpus_per_actor: float | None = flag(parsers.positive, "X")
    """CPU cores per actor. Default: 1 with a GPU, else an equal share."""
    batch_size: int | None = flag(parsers.integer(1), "N")
    """Maximum questions per batch. Questions that share a picture count by their own tokens, so
    more of them fit. Halved when memory runs out. Default: 64 on a GPU, else 16."""
    batch_tokens: int | None = flag(parsers.count_or("auto", "tokens", 32768), "N")
    """Maximum tokens per batch (rows x longest uncompressed prompt + answer). auto: measured once
    on the GPU and stored in record.json, so that a resumed job uses the same batches; no limit on
    CPUs. Default: auto."""
    share: str = flag(parsers.choice("prefix", "encoder", "none"), "PART", "prefix")
    """Work shared by questions about the same picture. prefix: its prefill, or the vision encoder
    alone for methods that read the question; encoder: the vision encoder; none: to measure the
    cost of a single question. The answers are the same."""
    batch_timeout: float = flag(parsers.positive, "SECONDS", 600.0)
    """Time limit of a batch, and of reading one row. After it, the worker restarts and takes its
    rows one by one."""

    output: str = flag(parsers.text, "FOLDER", "results")
    """Folder of the results: local, s3:// or gs://. Default: results; ~/apet-results under ray job
    submit."""
    tracking_uri: str | None = flag(parsers.text, "URI")
    """MLflow server or database. Default: MLFLOW_TRACKING_URI, else mlflow.db in the output
    folder."""
    experiment: str = flag(parsers.text, "NAME", "apet")
    """Experiment in MLflow."""
    max_error_rate: float = flag(parsers.error_rate, "SHARE", 0.01)
    """Exit with status 1 if a larger share of the rows has errors; all answers are written first.
    Default: 1%."""
    retry_errors: bool = flag(parsers.yes_no, "", False)
    """Retry rows whose answer is an error."""

    @classmethod
    def of(cls, kind: Kind, **values: Any) -> EvalConfig:
        """A config with the defaults that depend on the kind of job and on the given values."""
        demo = DEMO_BENCHMARK[kind]
        benchmark = demo if values.get("data") is None else "manifest"
        defaults: dict[str, Any] = {
            "benchmark": benchmark,
            "split": DEFAULT_SPLITS.get(values.get("benchmark", demo), "test"),
            "budgets": () if values.get("schedule") else (DEMO_BUDGET[kind],),
        }
        if values.get("model", "demo") == "demo":
            defaults["max_new_tokens"] = DEMO_TOKENS
            if benchmark == values.get("benchmark", demo) == demo:
                defaults["limit"] = DEMO_ROWS
        return cls(kind=kind, **{**defaults, **values})

    def __post_init__(self) -> None:
        if self.schedule and self.budgets:
            raise ValueError(
                f"--schedule {self.schedule} and --budget {self.budgets[0]} exclude each other;"
                " give one of them"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}; swap them"
            )
        if self.benchmark == "manifest" and self.data is None:
            raise ValueError(
                "--benchmark manifest needs --data: the file or folder of the questions and media"
            )
        if not self.method_specs:
            raise ValueError("no method given; give at least one, e.g. --method apet")

    @property
    def method_specs(self) -> tuple[MethodSpec, ...]:
        return expand_methods(self.methods, self.budgets, self.schedule)

    @property
    def model_name(self) -> str:
        """Last part of the model's name: `llava-1.5-7b-hf`."""
        return re.sub(r"[^A-Za-z0-9_.-]", "_", self.model.rstrip("/").rpartition("/")[2])

    def identity(
        self,
        spec: MethodSpec,
        manifest_digest: str,
        model_fingerprint: str,
        benchmark_version: str,
        inputs_version: int = 1,
    ) -> dict[str, Any]:
        """Everything that affects answers, and nothing else. Equal identity means the same run.

        The config must have its model's defaults (`model_defaults.with_model_defaults`).
        """
        return {
            "model": model_fingerprint,
            "benchmark_version": benchmark_version,
            "manifest": manifest_digest,
            **{name: getattr(self, name) for name in ANSWER_FIELDS},
            "frames": self.frames if self.kind == "video" else None,
            "method": spec.method,
            "options": dict(spec.options),
            # Absent unless set, so that runs older than these keys keep their identity.
            **({"compile": True} if self.compile else {}),
            **({"generation": self.generation} if self.generation != "model" else {}),
            **({"image_fit": self.image_fit} if self._fits_images else {}),
            **({"inputs": inputs_version} if inputs_version > 1 else {}),
            # Earlier runs drew other tokens for each question about a picture.
            **({"draws": "once for each medium"} if spec.method == "random" else {}),
        }

    @property
    def _fits_images(self) -> bool:
        return self.kind == "image" and self.image_fit != "model"

    def run_name(self, spec: MethodSpec, identity: Mapping[str, Any]) -> str:
        """The folder of a run's answers: readable and unique."""
        return f"{self.benchmark}-{self.model_name}-{spec.name}-{digest(identity)[:8]}"

    def __repr__(self) -> str:
        return f"EvalConfig({self.to_dict()})"

    def to_dict(self) -> dict[str, Any]:
        """All fields as YAML and MLflow take them; URIs without passwords."""
        plain: dict[str, Any] = {"kind": self.kind}
        for option in flags_of(type(self), self.kind):
            value = getattr(self, option.field)
            if option.field == "limit" and value is None:
                value = "all"
            elif isinstance(value, tuple):
                value = list(value) if option.repeatable else ",".join(map(str, value))
            plain[option.field] = redacted(value) if isinstance(value, str) else value
        return plain


def digest(identity: Mapping[str, Any]) -> str:
    """64 hexadecimal digits, the same for equal identities in every process."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def to_yaml(config: EvalConfig) -> str:
    """The complete config as text that `--config` reads."""
    import yaml

    return str(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=120))


def parse(kind: Kind, argv: Sequence[str]) -> EvalConfig:
    """The config of a command line; a ValueError of one line if anything is wrong with it."""
    flags = flags_of(EvalConfig)
    parser = flag_parser(
        flags,
        help_texts(kind, DEMO_BENCHMARK[kind], "vanilla and apet", DEMO_BUDGET[kind]),
        GROUPS,
        prog=f"eval_{kind}.py",
        usage=f"python jobs/eval_{kind}.py [--benchmark B | --data PATH] [--method M]... [...]",
        description=help_text("eval").format(kind=kind),
        epilog=help_text("budgets", f"examples_{kind}", "resume_eval"),
    )
    typed, file = parse_argv(parser, argv, flags)
    values: dict[str, Any] = {}
    if file:
        content = read_yaml(Path(file))
        if (other := content.pop("kind", kind)) != kind:
            raise ValueError(f"{file}: kind '{other}' needs the other job, not the {kind} job")
        values = parse_mapping(content, flags, file)
    values = override(values, typed)
    for option in flags:
        if option.field in values and option.kind not in (None, kind):
            raise ValueError(
                f"{option.option} is only for {option.kind}s; use eval_{option.kind}.py"
            )
    return EvalConfig.of(kind, **values)


def help_texts(
    kind: Kind | None, benchmark: str, methods: str, budgets: str, demo_rows: int = DEMO_ROWS
) -> dict[str, str]:
    """The help of the fields for one kind of job, or for both, with the defaults of that job."""
    docs = field_docs(EvalConfig)
    return {
        flag.field: docs[flag.field].format(
            benchmarks=", ".join(BENCHMARKS),
            methods=", ".join(METHODS),
            default_benchmark=benchmark,
            default_methods=methods,
            default_budgets=budgets,
            demo_rows=demo_rows,
        )
        for flag in flags_of(EvalConfig, kind)
    }


def override(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Values, replaced by later ones; a schedule also replaces budgets, and budgets a schedule."""
    spent = {"budgets", "schedule"}
    dropped = spent if spent & later.keys() else set()
    return {**{field: values[field] for field in values.keys() - dropped}, **later}
