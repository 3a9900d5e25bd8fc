"""What every task and every worker of a job is told, once."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import EvalConfig
from pipelines.manifest import Manifest
from pipelines.points import Point
from pipelines.prepare import Recipe
from pipelines.rows import Kind
from pipelines.storage import Folder
from pipelines.work import Work


@dataclass(frozen=True)
class Run:
    """One point, and where its answers go."""

    point: Point
    run_id: str
    folder: Folder


@dataclass(frozen=True)
class Section:
    """One benchmark of the job: how its rows become inputs, how they are asked, and the runs that want answers."""

    recipe: Recipe
    manifest: Manifest
    runs: tuple[Run, ...]
    kind: Kind
    split: str
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Job:
    """One model, and all that it is asked."""

    sections: tuple[Section, ...]
    model_name: str
    dtype: str
    attn: str
    batch_size: int
    batch_timeout: float
    threads: int | None  # of torch in a worker; None: as torch likes


def job_of(works: list[Work], threads: int | None) -> Job:
    """What workers are told of these works, all of one model."""
    config = works[0].config
    sections = tuple(_section(work) for work in works)
    return Job(sections, config.model_name, config.dtype, config.attn, config.batch_size, config.batch_timeout, threads)


def _section(work: Work) -> Section:
    config = work.config
    return Section(
        recipe=recipe_of(config),
        manifest=work.manifest,
        runs=tuple(Run(unit.point, unit.run_id, unit.folder) for unit in work.open),
        kind=config.kind,
        split=config.split,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def recipe_of(config: EvalConfig) -> Recipe:
    return Recipe(
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
