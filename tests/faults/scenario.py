"""A scenario: one job that goes through one or more faults, and the count of its answers.

A fault is a generator over a `Scenario`. It prepares the job, `yield`s, acts while the job runs,
`yield`s, and checks the job when it has ended. So one job can go through several faults, and
through one fault several times.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset

from pipelines.config.eval_config import EvalConfig
from tests.faults.faulty_worker import faulty_worker
from tests.faults.machines import JobProcess, Machines
from tests.support import tiny

ROWS_PER_FAULT = 12  # enough work for a job to go on while the fault happens
PICTURE_SIDE = 24


@dataclass
class Scenario:
    """One job that goes through one or more faults."""

    folder: Path
    testbed: Testbed
    seed: int = 0
    # Set by faults before the job starts:
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of the config
    row_faults: dict[str, str] = field(default_factory=dict)  # what the model does, by row
    store_behaviours: dict[str, str] = field(default_factory=dict)  # how the store fails, by row
    driver_setup: list[Callable[[], None]] = field(default_factory=list)  # run in the job's process
    expected_errors: dict[str, str] = field(default_factory=dict)  # pattern of the error, by row
    # Measured: seconds from a fault to recovery, by fault.
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    current_fault: str = ""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        for name in ("batches", "injections", "devices"):
            (self.folder / name).mkdir(parents=True)
        self.rows: list[str] = []
        self.unused_rows: list[str] = []

    def run(self, faults: Sequence[Fault], **overrides: Any) -> Count:
        """Run the job with these faults one after the other, and count its answers."""
        self.rows = [f"row-{number:03}" for number in range(ROWS_PER_FAULT * (1 + len(faults)))]
        self.unused_rows = self.rng.sample(self.rows, len(self.rows))
        self.overrides = {"tracking_uri": self.testbed.tracking_uri, **overrides}
        with contextlib.ExitStack() as stack:
            generators = [
                (fault.__name__, stack.enter_context(contextlib.closing(fault(self))))
                for fault in faults
            ]

            def advance() -> None:
                for self.current_fault, generator in generators:
                    next(generator, None)

            advance()
            self._write_rows()
            self.start()
            stack.callback(lambda: self.job.kill())
            advance()
            assert self.job.wait() == 0, self.job.log_text[-5000:]
            advance()
        return self.count()

    def start(self) -> None:
        """Start the job; after a failure the same command again."""
        log = self.folder / "log.txt"
        self.reported_deaths = 0
        self.log_start = len(log.read_text()) if log.exists() else 0
        make_worker_class = partial(faulty_worker, self.folder, dict(self.row_faults))
        self.job = JobProcess(self.config(), log, make_worker_class, list(self.driver_setup))

    def reserve_row(self, fault: str = "", error: str = "") -> str:
        """Take a row that no other fault uses. With `error`, it must end as an error like that."""
        row = self.unused_rows.pop()
        if fault:
            self.row_faults[row] = fault
        if error:
            self.expected_errors[row] = error
        return row

    def _write_rows(self) -> None:
        lines = []
        for number, row in enumerate(self.rows):
            picture = tiny.image(PICTURE_SIDE, PICTURE_SIDE, seed=number)
            picture.save(self.folder / f"{row}.png")
            record = {
                "id": row,
                "media": f"{row}.png",
                "question": "What is this?",
                "answers": ["a"],
            }
            lines.append(json.dumps(record) + "\n")
        (self.folder / "rows.jsonl").write_text("".join(lines))

    def config(self) -> EvalConfig:
        fields: dict[str, Any] = {
            "model": str(self.testbed.model),
            "data": str(self.folder / "rows.jsonl"),
            "output": str(self.output),
            "experiment": self.folder.name,
            "ray_address": self.testbed.machines.address,
            "methods": ("vanilla", "uniform"),
            "budgets": ("50%",),
            "max_new_tokens": 2,
            "batch_size": 4,
            "actors": (1, 1),
            "gpus_per_actor": 1.0,
            "cpus_per_actor": 0.5,
            "max_error_rate": 0.9,
            **self.overrides,
        }
        return EvalConfig.of("image", **fields)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def wait_for_batch(self) -> int:
        """Wait for the middle of one of the next batches; return the process that answers it."""
        before = len(self._batches())
        wanted = before + self.rng.randint(1, 3)
        batches: list[Path] = self.job.wait_until(
            lambda: (found := self._batches())[wanted - 1 :] and found, "a batch"
        )
        time.sleep(self.rng.uniform(0, 0.2))
        self.fault_time = time.monotonic()
        return int(batches[-1].name.partition("-")[2])

    def wait_for_recovery(self) -> None:
        """Wait until a new process answers a batch, and note how long that took."""
        known = self._processes()
        self.job.wait_until(lambda: self._processes() - known, "recovery")
        self._note_recovery(time.monotonic() - self.fault_time)

    def _note_recovery(self, seconds: float) -> None:
        self.recoveries.setdefault(self.current_fault, []).append(seconds)

    def wait_for_death_report(self) -> None:
        """Wait until the progress line counts one more worker that died."""
        self.reported_deaths += 1
        pattern = re.compile(r"(\d+) workers died")

        def is_reported() -> bool:
            counts = map(int, pattern.findall(self.job.log_text[self.log_start :]))
            return max(counts, default=0) >= self.reported_deaths

        # Paused, because the job could end before its next progress line.
        with self.workers_paused():
            self.job.wait_until(is_reported, "the progress line counts the death")

    @contextlib.contextmanager
    def workers_paused(self) -> Iterator[None]:
        """Keep workers from starting a block: changes to the machines take longer than the job."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def _batches(self) -> list[Path]:
        """Notes of all batches that were started, in order."""
        return sorted((self.folder / "batches").iterdir())

    def _processes(self) -> set[str]:
        return {path.name.partition("-")[2] for path in self._batches()}

    def note_row_recovery(self, row: str) -> None:
        """Note how long after its fault a row was answered or became an error."""
        injected = float((self.folder / "injections" / row).read_text())
        answered = [
            answer["answered_at"].timestamp()
            for answer in self.answers()
            if answer["row_id"] == row
        ]
        self._note_recovery(max(0.0, max(answered) - injected))

    def answers(self) -> list[dict[str, Any]]:
        """All answers, read with pyarrow alone."""
        files = [str(path) for path in self.output.glob("*/*.parquet")]
        columns = ["row_id", "point", "status", "error", "answered_at", "actor"]
        answers: list[dict[str, Any]] = (
            pyarrow.dataset.dataset(files).to_table(columns=columns).to_pylist()
        )
        return answers

    def count(self) -> Count:
        answers = self.answers()
        times = Counter((answer["point"], answer["row_id"]) for answer in answers)
        points = {spec.name for spec in self.config().method_specs}
        expected = {(point, row) for point in points for row in self.rows}
        for answer in answers:
            error = self.expected_errors.get(answer["row_id"])
            assert (answer["status"] == "error") == (error is not None), answer
            assert error is None or re.search(error, answer["error"]), answer
        return Count(
            lost=len(expected - set(times)),
            duplicated=times.total() - len(expected & set(times)),
        )


Fault = Callable[[Scenario], Generator[None, None, None]]


@dataclass(frozen=True)
class Count:
    """Answers that are missing, and answers that exist twice or that nobody asked for."""

    lost: int
    duplicated: int


class Testbed:
    """A context manager for what all scenarios share: machines, a model and an MLflow database."""

    __test__ = False  # pytest takes classes named Test... for tests

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(
            prefix="apet-faults-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._temporary.name)
        self.tracking_uri = f"sqlite:///{self.folder}/mlflow.db"
        self._scenarios = 0

    def __enter__(self) -> Testbed:
        self.model = tiny.save("llava", self.folder / "model")
        self.machines = Machines()
        return self

    def scenario(self, seed: int) -> Scenario:
        self._scenarios += 1
        return Scenario(self.folder / f"scenario-{self._scenarios}", self, seed)

    def replace_machines(self) -> None:
        """Start a new cluster: the old one has lost its head, or is in an unknown state."""
        self.machines.stop()
        self.machines = Machines()

    def __exit__(self, *error: object) -> None:
        self.machines.stop()
        self._temporary.cleanup()
