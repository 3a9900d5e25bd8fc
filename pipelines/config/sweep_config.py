"""The configuration of a sweep, from YAML and flags: models, benchmarks, methods and budgets.

docs/sweeps.md shows a file. Flags override the file; `--model` and `--benchmark` replace its lists.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from pipelines.benchmarks import benchmark
from pipelines.config.eval_config import GROUPS, EvalConfig, help_texts, override
from pipelines.config.flags import (
    flag_parser,
    flags_of,
    help_text,
    parse_argv,
    parse_mapping,
    read_yaml,
)
from pipelines.config.method_spec import METHODS
from pipelines.data.rows import Kind

# Default budgets for any model: the shares of the paper's three budgets in LLaVA-1.5.
SHARES = ("33%", "22%", "11%")
DEMO_BUDGETS: dict[Kind, tuple[str, ...]] = {
    "image": ("192", "128", "64"),
    "video": ("25%", "12.5%", "6.25%"),
}
DEMO_BENCHMARKS, DEMO_ROWS, DEMO_BATCH = ("shapes", "motion"), 300, 32
# The lists of the file, and the flag that an entry sets if it is only a name.
LISTS = {"models": "model", "benchmarks": "benchmark"}
# Fields of the whole sweep, which its entries may not set.
SWEEP_FIELDS = ("output", "tracking_uri", "experiment", "ray_address")
# Fields that are equal in jobs that can share workers with one loaded model.
WORKER_FIELDS = (
    *("model", "revision", "trust_remote_code", "dtype", "attn", "compile", "generation"),
    *("batch_timeout", "actors", "gpus_per_actor", "cpus_per_actor", "batch_size", "batch_tokens"),
)


@dataclass(frozen=True)
class SweepConfig:
    """One job for each model and benchmark."""

    name: str
    jobs: tuple[EvalConfig, ...]
    only_plan: bool = False


def parse_sweep(argv: Sequence[str]) -> SweepConfig:
    """The sweep of a command line; a ValueError of one line if anything is wrong with it."""
    flags = [
        replace(flag, repeatable=True) if flag.field in LISTS.values() else flag
        for flag in flags_of(EvalConfig)
    ]
    budgets = "33%, 22% and 11%; for the demo 192, 128 and 64, or 25%, 12.5% and 6.25%"
    helps = help_texts(None, "shapes and motion", "all", budgets, DEMO_ROWS)
    parser = flag_parser(
        flags,
        {**helps, **{field: f"May be repeated. {helps[field]}" for field in LISTS.values()}},
        GROUPS,
        prog="sweep.py",
        usage="python jobs/sweep.py [SWEEP.yaml] [--plan] [--model M]... [--benchmark B]... [...]",
        description=help_text("sweep"),
        epilog=help_text("budgets", "examples_sweep"),
    )
    parser.add_argument("--plan", action="store_true", help="Print the plan and stop.")
    files = [argv[0]] if argv and not argv[0].startswith("-") else []
    typed, file = parse_argv(parser, argv[len(files) :], flags)
    files += [file] if file else []
    if len(files) > 1:
        raise ValueError(f"{files[0]} and --config {files[1]}: give only one file")
    content = read_yaml(Path(files[0])) if files else {}
    name = Path(files[0]).stem if files else "sweep"
    models, benchmarks = (
        _entries(content.pop(key, None), key, flag, typed) for key, flag in LISTS.items()
    )
    if benchmarks == [{}] and not {"benchmark", "data"} & (content.keys() | typed.keys()):
        benchmarks = [{"benchmark": demo} for demo in DEMO_BENCHMARKS]
    typed = {field: value for field, value in typed.items() if field not in LISTS.values()}
    jobs = tuple(
        _job({name: content, f"{name}: model": model, f"{name}: benchmark": entry}, typed)
        for model in models
        for entry in benchmarks
    )
    return SweepConfig(name, jobs, only_plan="--plan" in argv)


def _job(layers: Mapping[str, Mapping[str, Any]], typed: Mapping[str, Any]) -> EvalConfig:
    """The job of one model and one benchmark.

    layers: parts of the file by their names in errors; a later one overrides an earlier one
    typed: values of flags, which override the file
    """
    merged = dict(item for layer in layers.values() for item in layer.items())
    kind = _kind(merged | ({"data": typed["data"]} if "data" in typed else {}))
    values: dict[str, Any] = {}
    for name, layer in layers.items():
        own = {key: value for key, value in layer.items() if key != "kind"}
        values = override(values, parse_mapping(own, flags_of(EvalConfig), name))
    values = override(values, typed)
    # A sweep may set flags of video jobs for all jobs: the others leave them out.
    allowed = {flag.field for flag in flags_of(EvalConfig, kind)}
    values = {field: value for field, value in values.items() if field in allowed}
    return EvalConfig.of(kind, **{**_defaults(kind, values), **values})


def _defaults(kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a sweep where they differ from those of a job: all methods, three budgets."""
    defaults: dict[str, Any] = {"methods": METHODS}
    demo = values.get("model", "demo") == "demo"
    if "schedule" not in values:
        defaults["budgets"] = DEMO_BUDGETS[kind] if demo else SHARES
    if demo:
        defaults["batch_size"] = DEMO_BATCH
        if values.get("data") is None and values.get("benchmark") in DEMO_BENCHMARKS:
            defaults["limit"] = DEMO_ROWS
    return defaults


def _entries(listed: Any, key: str, flag: str, typed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models or benchmarks of a sweep, each with the values that it sets."""
    if flag in typed:
        return [{flag: name} for name in typed[flag]]
    if listed is None:
        return [{}]
    if not isinstance(listed, list | tuple) or not listed:
        raise ValueError(
            f"{key}: expected a list of names, or of '{flag}: NAME' together with other flags"
        )
    entries = [dict(item) if isinstance(item, Mapping) else {flag: item} for item in listed]
    for entry in entries:
        names = [str(name) for name in entry]
        if flag not in entry and not (flag == "benchmark" and "data" in entry):
            raise ValueError(
                f"{key}: the entry with {', '.join(names)} has no {flag}; add '{flag}: ...'"
            )
        if wrong := [name for name in names if name.replace("-", "_") in SWEEP_FIELDS]:
            raise ValueError(
                f"{key}: {', '.join(wrong)} can only be set for the whole sweep;"
                " move it to the top of the file, or give it as a flag"
            )
    return entries


def _kind(values: Mapping[str, Any]) -> Kind:
    """The kind of a benchmark; for the user's own data, the `kind` of the file."""
    name = values.get("benchmark") or ("manifest" if values.get("data") else "shapes")
    kind = values.get("kind")
    if kind not in (None, "image", "video"):
        raise ValueError(f"kind: '{kind}' is not one of image, video")
    return benchmark(str(name)).kind or cast("Kind | None", kind) or "image"


def model_groups(jobs: Iterable[EvalConfig]) -> list[list[EvalConfig]]:
    """Groups of jobs that can share workers with one loaded model, in order of their first jobs."""
    groups: dict[Any, list[EvalConfig]] = {}
    for job in jobs:
        groups.setdefault(attrgetter(*WORKER_FIELDS)(job), []).append(job)
    return list(groups.values())
