"""A sweep as a user writes it: models, benchmarks, methods and budgets, from YAML and flags, and the jobs they make.

    limit: 300                       # any flag of the evaluation jobs, for all of them
    methods: [vanilla, apet, fastv]
    budgets: [192, 128, 64]
    models:
      - demo
      - model: llava-hf/llava-1.5-7b-hf
        dtype: bfloat16              # any flag again, for this model alone
    benchmarks:
      - shapes
      - benchmark: motion
        budgets: [12.5%]             # and for this benchmark, which has the last word

Flags override the file; `--model` and `--benchmark` replace its lists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from pipelines.benchmarks import BENCHMARKS, benchmark
from pipelines.config import cli_help
from pipelines.config.eval_config import EvalConfig
from pipelines.config.flags import Flag, flags_of, from_argv, from_mapping, parser, read_yaml
from pipelines.config.method_spec import known_methods
from pipelines.data.rows import Kind
from pipelines.text import did_you_mean, redacted

SHARES = [
    "33%",
    "22%",
    "11%",
]  # of the visual tokens, whatever the model: the paper's three of LLaVA-1.5
DEMO: dict[Kind, list[str]] = {"image": ["192", "128", "64"], "video": ["25%", "12.5%", "6.25%"]}
DEMOS, DEMO_ROWS, DEMO_BATCH = ("shapes", "motion"), 300, 32
LISTS = {"models": "model", "benchmarks": "benchmark"}
WHOLE = (
    "output",
    "tracking_uri",
    "experiment",
    "ray_address",
)  # of the sweep, never of one of its jobs


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep runs: one job for each model and benchmark."""

    name: str
    jobs: tuple[EvalConfig, ...]
    only_plan: bool = False


def parse_sweep(argv: Sequence[str]) -> SweepConfig:
    """The grid of a command line; whatever is wrong with it ends the process with one line and status 2."""
    made = parser(
        _flags(),
        {
            "benchmark": "shapes and motion",
            "methods": "all",
            "budgets": "33%, 22% and 11%, or the demo's",
        },
        prog="sweep.py",
        usage="python jobs/sweep.py [SWEEP.yaml] [--plan] [--model M]... [--benchmark B]... [--method X]... [...]",
        description=cli_help.SWEEP,
        epilog=cli_help.SWEEP_AFTER,
    )
    made.add_argument("--plan", action="store_true", help="show what would be done, and do nothing")
    files = [argv[0]] if argv and not argv[0].startswith("-") else []
    try:
        typed, config = from_argv(made, argv[len(files) :], _flags())
        files += [config] if config else []
        if len(files) > 1:
            raise ValueError(f"{files[0]} and --config {files[1]}: give one file")
        read = read_yaml(Path(files[0])) if files else {}
        return sweep_config(
            read, typed, Path(files[0]).stem if files else "sweep", "--plan" in argv
        )
    except ValueError as error:
        refuse(error)


def sweep_config(
    read: Mapping[str, Any], typed: Mapping[str, Any], name: str = "sweep", only_plan: bool = False
) -> SweepConfig:
    """The jobs of a file's content and of flags. Without models it is the demo's, and so are its benchmarks."""
    asked = dict(read)
    entries = {key: _entries(asked.pop(key, None), key, one, typed) for key, one in LISTS.items()}
    if entries["benchmarks"] == [{}] and not {"benchmark", "data"} & (asked.keys() | typed.keys()):
        entries["benchmarks"] = [{"benchmark": "shapes"}, {"benchmark": "motion"}]
    jobs = []
    for model in entries["models"]:
        for bench in entries["benchmarks"]:
            kind = _kind(
                {
                    **asked,
                    **model,
                    **bench,
                    **{key: typed[key] for key in ("data",) if key in typed},
                }
            )
            flags = flags_of(EvalConfig, kind)
            given: dict[str, Any] = {}
            for part, where in (
                (asked, name),
                (model, f"{name}: model"),
                (bench, f"{name}: benchmark"),
            ):
                own = {key: value for key, value in part.items() if key != "kind"}
                _over(given, from_mapping(_of_kind(own, kind), flags, where))
            fields = {flag.field for flag in flags} - set(LISTS.values())
            _over(given, {field: value for field, value in typed.items() if field in fields})
            jobs.append(EvalConfig.of(kind, **_defaults(kind, given), **given))
    return SweepConfig(name, tuple(jobs), only_plan)


def _over(given: dict[str, Any], later: dict[str, Any]) -> None:
    """What comes later has the last word; a schedule replaces budgets, and budgets a schedule."""
    for one, other in (("budgets", "schedule"), ("schedule", "budgets")):
        if one in later:
            given.pop(other, None)
    given |= later


def _defaults(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep does where nobody says: all methods, three budgets."""
    found: dict[str, Any] = {"methods": known_methods()}
    demo = given.get("model", "demo") == "demo"
    if "schedule" not in given:
        found["budgets"] = tuple(DEMO[kind] if demo else SHARES)
    if demo:
        found |= {"batch_size": DEMO_BATCH}
        found |= (
            {"limit": DEMO_ROWS}
            if given.get("data") is None and given.get("benchmark") in DEMOS
            else {}
        )
    return {field: value for field, value in found.items() if field not in given}


def _entries(listed: Any, key: str, one: str, typed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models or benchmarks of a sweep, each as what it sets."""
    if one in typed:
        return [{one: name} for name in typed[one]]
    if listed is None:
        return [{}]
    if not isinstance(listed, list | tuple) or not listed:
        raise ValueError(
            f"{key}: give a list, one entry a {one}: a name, or '{one}:' with flags of its own"
        )
    found = [dict(entry) if isinstance(entry, Mapping) else {one: entry} for entry in listed]
    for entry in found:
        if one not in entry and not (one == "benchmark" and "data" in entry):
            raise ValueError(
                f"{key}: an entry with {', '.join(map(str, entry))} names no {one}; add '{one}: ...'"
            )
        if wrong := [name for name in map(str, entry) if name.replace("-", "_") in WHOLE]:
            raise ValueError(
                f"{key}: {', '.join(wrong)} is of the whole sweep; give it at the top, or as a flag"
            )
    return found


def _kind(given: Mapping[str, Any]) -> Kind:
    """Images or videos: the benchmark's, or what the entry says of the user's own data."""
    name = str(given.get("benchmark", "manifest" if given.get("data") else "shapes"))
    if name not in BENCHMARKS:
        raise ValueError(
            f"there is no benchmark '{name}'{did_you_mean(name, BENCHMARKS)} (there are {', '.join(BENCHMARKS)})"
        )
    own, said = benchmark(name).kind, given.get("kind")
    if said not in (None, "image", "video"):
        raise ValueError(f"kind: '{said}' is none of image, video")
    return own or cast(Kind, said) or "image"


def _of_kind(part: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Without the flags of the other kind's jobs, which a sweep may give for all."""
    other = {flag.key for flag in _flags() if flag.kind not in (None, kind)}
    return {key: value for key, value in part.items() if str(key).replace("-", "_") not in other}


def _flags() -> list[Flag]:
    """Of both kinds of job, with several models and benchmarks."""
    found: dict[str, Flag] = {}
    for kind in ("image", "video"):
        found |= {flag.field: flag for flag in flags_of(EvalConfig, cast(Kind, kind))}
    return [
        replace(flag, many=True, help=f"may be repeated; {flag.help}")
        if flag.field in LISTS.values()
        else flag
        for flag in found.values()
    ]


def model_groups(jobs: Iterable[EvalConfig]) -> list[list[EvalConfig]]:
    """Jobs that can share workers with one loaded model, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[EvalConfig]] = {}
    for job in jobs:
        key = (job.model, job.revision, job.trust_remote_code, job.dtype, job.attn, job.compile)
        size = (job.actors, job.gpus_per_actor, job.cpus_per_actor, job.batch_timeout)
        size += (job.batch_size, job.batch_tokens)
        groups.setdefault((*key, *size), []).append(job)
    return list(groups.values())


def refuse(error: Exception) -> NoReturn:
    """One line on stderr, and the exit status of a wrong command."""
    print(f"sweep.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
    raise SystemExit(2)
