"""What happened to one run, in one JSON file beside its answers: `record.json` holds all that MLflow is told.

The file is the truth and MLflow its copy: a server that was down gets from it what it missed (pipelines.results.mlflow_tracker), and
who has no MLflow reads it. It is written whole, by whoever changes the run and by the tracker, which only moves its own
part (`mlflow`) forward.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from pipelines.results.storage import Folder, split
from pipelines.text import redacted

NAME = "record.json"
State = Literal["running", "finished", "failed", "killed"]
LEAST_S = 5.0  # between two points of the history
MOST_POINTS = 500  # of the history, each time the run's age grows e-fold


@dataclass
class RunRecord:
    """A run: one point, or the job that it belongs to. Change it by its methods, from any thread, and `save` it.

    id          one run in MLflow has this tag, whoever brings it there and however often
    name        of its folder; MLflow's run name is made of it (title)
    parent      the job's record that this one is nested under: {"id": ..., "name": ...}
    dataset     {"name", "digest", "source"}: MLflow's dataset input
    artifacts   names of files in the same folder; one that ends in `.table.json` is shown as a table (summary.sample)
    history     [{"ts_ms", "step", name: value, ...}], the progress
    metrics     the final ones
    mlflow      what MLflow has of all this; the tracker's
    """

    name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "running"
    message: str = ""
    parent: dict[str, str] | None = None
    point: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=lambda: {"wanted": 0, "done": 0, "error": 0})
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)  # seconds since 1970, UTC
    ended: float | None = None
    age_s: float = 0.0  # at the latest point of the history
    history: list[dict[str, float]] = field(default_factory=list)
    mlflow: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._born = time.monotonic() - self.age_s
        self._noted: dict[str, float] = {}  # by name: its latest point, on the same clock

    @property
    def params(self) -> dict[str, str]:
        """The whole resolved config, flat, as MLflow has its params."""
        return flat(_clean(self.config))

    @property
    def age(self) -> float:
        """Seconds that the run has taken, without its interruptions, whatever the clock is set to meanwhile."""
        return time.monotonic() - self._born

    def log(self, step: int, values: Mapping[str, float], *, force: bool = False) -> bool:
        """Add a point to the history, unless there is a recent one with one of these names; say whether.

        The longer a run takes the farther its points stand apart, so that a week is a few thousand points.
        """
        with self._lock:
            age = self.age
            last = max((self._noted[name] for name in values if name in self._noted), default=-math.inf)
            if not force and age - last < max(LEAST_S, age / MOST_POINTS):
                return False
            self.age_s = age
            self._noted |= dict.fromkeys(values, age)
            self.history.append({"ts_ms": int(time.time() * 1000), "step": step, **values})
            return True

    def resume(self) -> None:
        """The run goes on."""
        with self._lock:
            self.state, self.message, self.ended = "running", "", None

    def end(self, state: State, metrics: Mapping[str, float] | None = None, message: str = "") -> None:
        """The run is over: how, with which metrics, and why if it failed."""
        with self._lock:
            self.state, self.message, self.ended = state, message, time.time()
            self.metrics = dict(metrics or self.metrics)

    def track(self, state: Mapping[str, Any]) -> None:
        """Note what MLflow has."""
        with self._lock:
            self.mlflow = dict(state)

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data that nobody else changes, without secrets."""
        with self._lock:
            found: dict[str, Any] = _clean({entry.name: getattr(self, entry.name) for entry in fields(self)})
            return found

    def save(self, folder: Folder) -> None:
        data = self.snapshot()
        text = json.dumps({**data, "params": flat(data["config"])}, indent=1, ensure_ascii=False)
        folder.write(NAME, text.encode())

    @classmethod
    def load(cls, folder: Folder) -> RunRecord:
        """The record in a folder; FileNotFoundError if there is none."""
        data = json.loads(folder.read(NAME))
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})  # a newer version may know more


def title(data: Mapping[str, Any]) -> str:
    """What MLflow's pages call a run: its point comes first, since charts show no more than the beginning."""
    before, point, after = data["name"].rpartition(f"-{data['point'].get('name', '')}-")
    return f"{point.strip('-')} {before} {after}" if before else str(data["name"])


def run_folders(folder: str) -> Iterator[Folder]:
    """Folders with a record, `folder` itself or anywhere below."""
    system, path = split(folder)
    base = Folder.of(folder)
    for info in system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True)):
        if info.base_name == NAME:
            inner = info.path[len(path.rstrip("/")) :].strip("/").rpartition("/")[0]
            yield base.child(inner) if inner else base


def _clean(value: Any) -> Any:
    """A deep copy as JSON would have it, without secrets."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    return redacted(str(value))


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow's params: nested options by dotted names, a list as one text."""
    params: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            params |= {f"{key}.{inner}": text for inner, text in flat(value).items()}
        else:
            params[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return params


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs, if that is known."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(root: Path) -> str | None:
    """Of a checkout what git says, of an image what cluster/Dockerfile wrote into its COMMIT; None where neither is.

    A file, not a variable of the image's: a job with a working directory of its own brings other code into it.
    """
    try:
        ask = ["git", "-C", str(root), "rev-parse", "--show-cdup", "HEAD"]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        found = ""
    above, _, commit = found.partition("\n")
    if commit and not above:  # `above`: it lies inside somebody else's repository
        return commit.strip()
    try:
        return (root / "COMMIT").read_text().strip() or None
    except OSError:
        return None
