"""The stage for faults: the nights in which they happen to a job, and the count after.

A fault is a generator over a `Night`: what it does before the job starts, `yield`, what it does while the job runs,
`yield`, what must be true when it has ended. So one job can go through several faults, and through one many times.
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
from tests.faults.machines import Job, Machines
from tests.faults.worker import worker
from tests.support import tiny

ROWS = 12  # for each fault: enough work to go on while it happens


@dataclass
class Night:
    """One job through one or more faults."""

    folder: Path
    theatre: Theatre
    seed: int = 0
    given: dict[str, Any] = field(default_factory=dict)  # of the config, as faults want it
    acts: dict[str, str] = field(default_factory=dict)  # what a worker does at a row
    moods: dict[str, str] = field(default_factory=dict)  # how the store answers for a row's picture
    before: list[Callable[[], None]] = field(
        default_factory=list
    )  # what the job's process does first
    wrong: dict[str, str] = field(
        default_factory=dict
    )  # rows that must end as errors, and a pattern of what they say
    recoveries: dict[str, list[float]] = field(
        default_factory=dict
    )  # by fault: seconds until all goes on
    fault: str = ""  # whose turn it is

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        for name in ("busy", "hits", "devices"):
            (self.folder / name).mkdir(parents=True)
        self.names: list[str] = []
        self.free: list[str] = []
        self.picture = 24

    def play(self, faults: Sequence[Fault], **given: Any) -> Count:
        """The job, and these faults one after the other."""
        self.names = [f"row-{number:03}" for number in range(ROWS + len(faults) * ROWS)]
        self.free = self.dice.sample(self.names, len(self.names))
        self.given = {"tracking_uri": self.theatre.mlflow, **given}
        with contextlib.ExitStack() as stack:
            plots = [
                (fault.__name__, stack.enter_context(contextlib.closing(fault(self))))
                for fault in faults
            ]

            def act() -> None:
                for self.fault, plot in plots:
                    next(plot, None)

            act()
            self._write()
            self.start()
            stack.callback(lambda: self.job.kill())
            act()
            assert self.job.wait() == 0, self.job.said[-5000:]
            act()
        return self.count()

    def start(self) -> None:
        """The command, again with the same."""
        log = self.folder / "log.txt"
        self.deaths, self.heard = 0, len(log.read_text()) if log.exists() else 0
        self.job = Job(
            self.config(), log, partial(worker, self.folder, dict(self.acts)), list(self.before)
        )

    def take(self, act: str = "", error: str = "") -> str:
        """A row that nothing else happens to; with an error it must end as one that says this."""
        name = self.free.pop()
        if act:
            self.acts[name] = act
        if error:
            self.wrong[name] = error
        return name

    def _write(self) -> None:
        lines = []
        for number, name in enumerate(self.names):
            tiny.image(self.picture, self.picture, seed=number).save(self.folder / f"{name}.png")
            line = {
                "id": name,
                "media": f"{name}.png",
                "question": "What is this?",
                "answers": ["a"],
            }
            lines.append(json.dumps(line) + "\n")
        (self.folder / "rows.jsonl").write_text("".join(lines))

    def config(self) -> EvalConfig:
        given: dict[str, Any] = {
            "model": str(self.theatre.model),
            "data": str(self.folder / "rows.jsonl"),
            "output": str(self.output),
            "experiment": self.folder.name,
            "ray_address": self.theatre.machines.address,
            "methods": ("vanilla", "uniform"),
            "budgets": ("50%",),
            "max_new_tokens": 2,
            "batch_size": 4,
            "actors": (1, 1),
            "gpus_per_actor": 1.0,
            "cpus_per_actor": 0.5,
            "max_error_rate": 0.9,
            **self.given,
        }
        return EvalConfig.of("image", **given)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def in_a_batch(self) -> int:
        """Wait for a moment in the middle of one of the next batches: the process that is at it."""
        had = len(self._begun())
        more = self.dice.randint(1, 3)
        begun: list[Path] = self.job.until(
            lambda: (found := self._begun())[had + more - 1 :] and found, "a batch"
        )
        time.sleep(self.dice.uniform(0, 0.2))
        self._fell = time.monotonic()
        return int(begun[-1].name.partition("-")[2])

    def others(self) -> None:
        """Wait until a process that was not there before is at a batch; how long it took is the recovery."""
        known = {path.name.partition("-")[2] for path in self._begun()}
        self.job.until(
            lambda: {path.name.partition("-")[2] for path in self._begun()} - known, "recovery"
        )
        self._recovered(time.monotonic() - self._fell)

    def _recovered(self, seconds: float) -> None:
        self.recoveries.setdefault(self.fault, []).append(seconds)

    def told_of_a_death(self) -> None:
        """Wait until the progress line counts one worker more among those that died."""
        self.deaths += 1
        line = re.compile(r"(\d+) workers died")
        with self.held():  # or the job could end before its next line
            self.job.until(
                lambda: (
                    max(map(int, line.findall(self.job.said[self.heard :])), default=0)
                    >= self.deaths
                ),
                "the progress line has its death",
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Workers begin no further block: what happens to the machines takes longer than the job."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def _begun(self) -> list[Path]:
        return sorted((self.folder / "busy").iterdir())

    def mended(self, name: str) -> None:
        """How long after it happened to a row the row was answered, one way or the other."""
        fell = float((self.folder / "hits" / name).read_text())
        answered = [
            row["answered_at"].timestamp() for row in self.answers() if row["row_id"] == name
        ]
        self._recovered(max(0.0, max(answered) - fell))

    def answers(self) -> list[dict[str, Any]]:
        """All that was written, as anyone would read it."""
        files = [str(path) for path in self.output.glob("*/*.parquet")]
        columns = ["row_id", "point", "status", "error", "answered_at", "actor"]
        found: list[dict[str, Any]] = (
            pyarrow.dataset.dataset(files).to_table(columns=columns).to_pylist()
        )
        return found

    def count(self) -> Count:
        rows = self.answers()
        times = Counter((row["point"], row["row_id"]) for row in rows)
        points = {point.name for point in self.config().points}
        wanted = {(point, name) for point in points for name in self.names}
        for row in rows:
            says = self.wrong.get(row["row_id"])
            assert (row["status"] == "error") == (says is not None), row
            assert says is None or re.search(says, row["error"]), row
        return Count(len(wanted - set(times)), times.total() - len(wanted & set(times)))


Fault = Callable[[Night], Generator[None, None, None]]


@dataclass(frozen=True)
class Count:
    """Answers that are missing, and answers that are there more than once or that nobody asked for."""

    lost: int
    doubled: int


class Theatre:
    """`with Theatre() as theatre:` what all nights share."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="apet-faults-", ignore_cleanup_errors=True)
        self.folder = Path(self._place.name)
        self.mlflow = f"sqlite:///{self.folder}/mlflow.db"
        self._nights = 0

    def __enter__(self) -> Theatre:
        self.model = tiny.save("llava", self.folder / "model")
        self.machines = Machines()
        return self

    def night(self, seed: int) -> Night:
        self._nights += 1
        return Night(self.folder / f"night-{self._nights}", self, seed)

    def again(self) -> None:
        """New machines, for old ones are lost."""
        self.machines.stop()
        self.machines = Machines()

    def __exit__(self, *error: object) -> None:
        self.machines.stop()
        self._place.cleanup()
