"""What every task and every worker of a job is told, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Kind
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.preprocess import PromptSpec
from pipelines.results.storage import Folder

ROWS, ROWS_ON_GPU = 16, 64  # at once, where nobody says; on a GPU tokens are what limits them


@dataclass(frozen=True)
class RunSpec:
    """One point, and where its answers go."""

    point: MethodSpec
    run_id: str
    folder: Folder


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark of the job: how its rows become inputs, how they are asked, and the runs that want answers."""

    recipe: PromptSpec
    manifest: Manifest
    runs: tuple[RunSpec, ...]
    kind: Kind
    split: str
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class JobSpec:
    """One model, and all that it is asked."""

    sections: tuple[BenchmarkSpec, ...]
    model_name: str
    dtype: str
    attn: str
    compile: bool  # the vision encoder
    batch_size: int  # rows at once, at most
    batch_tokens: int | None  # and their tokens; None: the first worker finds out
    batch_timeout: float
    threads: int | None  # of torch in a worker; None: as torch likes

    def kinds(self) -> Iterator[tuple[BenchmarkSpec, list[MethodSpec]]]:
        """For images and for videos, a section, and all points that are asked about such."""
        for kind in sorted({section.kind for section in self.sections}):
            sections = [section for section in self.sections if section.kind == kind]
            yield (
                sections[0],
                list(dict.fromkeys(run.point for section in sections for run in section.runs)),
            )


def job_of(works: Sequence[BenchmarkJob], threads: int | None, gpus: float = 0.0) -> JobSpec:
    """What workers with so many GPUs each are told of these works, all of one model."""
    config = works[0].config
    known = [
        unit.record.metrics.get("batch_tokens")
        for work in works
        for unit in work.open
        if unit.record
    ]
    return JobSpec(
        sections=tuple(_section(work) for work in works),
        model_name=config.model_name,
        dtype=config.dtype,
        attn=config.attn,
        compile=config.compile,
        batch_size=config.batch_size or (ROWS_ON_GPU if gpus else ROWS),
        batch_tokens=config.batch_tokens
        or min((int(each) for each in known if each), default=None),
        batch_timeout=config.batch_timeout,
        threads=threads,
    )


def _section(work: BenchmarkJob) -> BenchmarkSpec:
    config = work.config
    return BenchmarkSpec(
        recipe=recipe_of(config),
        manifest=work.manifest,
        runs=tuple(RunSpec(unit.point, unit.run_id, unit.folder) for unit in work.open),
        kind=config.kind,
        split=config.split,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def recipe_of(config: EvalConfig) -> PromptSpec:
    return PromptSpec(
        model=config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        benchmark=config.benchmark,
        conversation=config.conversation,
        frames=config.frames,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        room=config.max_new_tokens,
    )
