"""How far a job is, as its workers report it and as the driver reads it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RunProgress:
    """A worker's progress on one run since its last report."""

    run_id: str
    rows: int = 0
    errors: int = 0
    spent_s: float = 0.0
    visual_tokens: int = 0


@dataclass
class BusyTime:
    """A worker's time in its steady state, and the part of it in which a batch was running."""

    busy_s: float = 0.0
    total_s: float = 0.0
    gpu: bool = False  # measured on a GPU


@dataclass
class Progress:
    """Progress of the job, summed over all workers. Counters are by run."""

    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    workers: set[str] = field(default_factory=set)  # that have been ready to answer
    deaths: int = 0
    load_s: float = 0.0  # of the slowest worker
    spent_s: float = 0.0  # workers' time in batches
    visual_tokens: Counter[str] = field(default_factory=Counter)  # before compression
    started: float = 0.0  # when the first answer's batch began, on the tracker's steady clock
    latest: float = 0.0  # when the last answer was written
    batch_tokens: int | None = None  # limit that all workers agreed on
    busy_time: BusyTime = field(default_factory=BusyTime)
    gpu_metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by worker

    def utilization(self) -> dict[str, float]:
        """Share of the steady state in which a worker had a batch running, as a metric."""
        if not self.busy_time.total_s:
            return {}
        name = "gpu_busy" if self.busy_time.gpu else "worker_busy"
        return {name: self.busy_time.busy_s / self.busy_time.total_s}

    def mean_gpu_metrics(self) -> dict[str, float]:
        """Means over the workers' GPUs: one line each would be too many on a hundred."""
        by_name: dict[str, list[float]] = {}
        for metrics in self.gpu_metrics.values():
            for name, value in metrics.items():
                by_name.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in by_name.items()}
