"""The history of one run, in one JSON file beside its answers: `record.json`.

The file is the original and MLflow a copy of it: a server that was down gets from it what it missed
(`pipelines.results.mlflow_tracker`), and users without MLflow read the file. It is always written
completely, by the code that changes the run and by the tracker, which only advances its own part
(`mlflow`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from pipelines.results.storage import Folder, locate
from pipelines.text import redacted

RECORD_FILE = "record.json"
State = Literal["running", "finished", "failed", "killed"]
MIN_INTERVAL_S = 5.0  # between two points of the history
POINTS_PER_E_FOLD = 500  # points of the history while the run's age grows by a factor of e


@dataclass
class RunRecord:
    """A run of one method, or the job that it belongs to.

    Replace its values, do not change them: the tracker's thread reads them at any moment.

    id          tag of the run in MLflow, however often and by whomever it is synced
    name        of its folder; also part of the name in MLflow (`mlflow_name`)
    parent      the job's record, under which MLflow nests this one: {"id": ..., "name": ...}
    dataset     MLflow's dataset input: {"name", "digest", "source"}
    artifacts   files in the same folder; a `.table.json` is shown as a table (summary.sample)
    history     progress over time: [{"ts_ms", "step", name: value, ...}]
    metrics     final metrics
    mlflow      what MLflow has of this record; written by the tracker
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
    age_s: float = 0.0  # at the last point of the history
    history: list[dict[str, float]] = field(default_factory=list)
    mlflow: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic() - self.age_s
        self._last_logged: dict[str, float] = {}  # by name: the age at its last point

    @property
    def age(self) -> float:
        """Seconds that the run has taken without interruptions, on a steady clock."""
        return time.monotonic() - self._start

    def log(self, step: int, values: Mapping[str, float], *, force: bool = False) -> bool:
        """Add a point to the history unless one of its names was logged recently; True if added.

        The interval grows with the age of the run, so that a week is a few thousand points.
        """
        age = self.age
        last = max((self._last_logged.get(name, -math.inf) for name in values), default=-math.inf)
        if not force and age - last < max(MIN_INTERVAL_S, age / POINTS_PER_E_FOLD):
            return False
        self.age_s = age
        self._last_logged |= dict.fromkeys(values, age)
        self.history.append({"ts_ms": int(time.time() * 1000), "step": step, **values})
        return True

    def resume(self) -> None:
        """Mark the run as running again."""
        self.state, self.message, self.ended = "running", "", None

    def end(
        self, state: State, metrics: Mapping[str, float] | None = None, message: str = ""
    ) -> None:
        """Mark the run as ended, with its final metrics and the reason if it failed."""
        self.metrics = dict(metrics or self.metrics)
        self.message, self.ended = message, time.time()
        self.state = state  # last: the tracker's thread may look at any moment

    def snapshot(self) -> dict[str, Any]:
        """A copy of all fields as plain data, without secrets."""
        return {entry.name: _to_json(getattr(self, entry.name)) for entry in fields(self)}

    def save(self, folder: Folder) -> None:
        data = self.snapshot()
        data["params"] = flatten(data["config"])
        folder.write(RECORD_FILE, json.dumps(data, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: Folder) -> RunRecord:
        """The record in a folder; FileNotFoundError if there is none."""
        data = json.loads(folder.read(RECORD_FILE))
        names = {entry.name for entry in fields(cls)}
        # A newer version may have written more fields.
        return cls(**{name: value for name, value in data.items() if name in names})


def mlflow_name(data: Mapping[str, Any]) -> str:
    """The run's name in MLflow. The method comes first: charts show only the beginning."""
    before, method, after = data["name"].rpartition(f"-{data['point'].get('name', '')}-")
    return f"{method.strip('-')} {before} {after}" if before else str(data["name"])


def run_folders(folder: str) -> Iterator[Folder]:
    """Folders with a record: `folder` itself and all below it."""
    system, path = locate(folder)
    base = Folder.of(folder)
    for info in system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True)):
        if info.base_name == RECORD_FILE:
            inner = info.path[len(path.rstrip("/")) :].strip("/").rpartition("/")[0]
            yield base.child(inner) if inner else base


def _to_json(value: Any) -> Any:
    """A deep copy in JSON's types, without secrets."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    return redacted(str(value))


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow's params: nested options have dotted names, a list is one text."""
    params: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            params |= {f"{key}.{inner}": text for inner, text in flatten(value).items()}
        else:
            params[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return params


@functools.cache
def git_commit() -> str | None:
    """The commit of the running code, None if unknown."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(root: Path) -> str | None:
    """The commit of a checkout, or of an image, whose build writes it to COMMIT; else None.

    The image has a file, not a variable: a job with its own working directory brings other code.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():  # else `root` may lie inside another repository
            command = ["git", "-C", str(root), "rev-parse", "HEAD"]
            options: Any = {"stderr": subprocess.DEVNULL, "text": True, "timeout": 5}
            return str(subprocess.check_output(command, **options)).strip()
    with contextlib.suppress(OSError):
        return (root / "COMMIT").read_text().strip() or None
    return None
