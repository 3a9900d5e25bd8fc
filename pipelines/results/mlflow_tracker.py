"""A thread that copies run records to MLflow. The job neither waits for it nor fails with it.

A record contains everything that MLflow gets, and notes how much of it MLflow has. So a server that
is slow, down or hung costs nothing but time: it gets what it missed when it responds again, at the
end of the job, or later with `python jobs/track.py`.
"""

import contextlib
import getpass
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.results.lock import Lock
from pipelines.results.mlflow_experiment import (
    SQLITE,
    ArtifactError,
    MlflowExperiment,
    short_error,
)
from pipelines.results.run_record import RECORD_FILE, RunRecord, git_commit, run_folders
from pipelines.results.storage import Folder
from pipelines.results.system_metrics import driver_metrics
from pipelines.text import redacted

MAX_WAIT_S = 10.0  # that a lock is held longer for a server that is slow
# At the end of a job: a server that is up needs no longer. Creating a database file takes a while.
STOP_S, STOP_SQLITE_S = 10.0, 30.0
POLL_S = 0.02


class Tracker:
    """Keeps MLflow up to date with records while they change.

    It writes no files: the records that the job saves say what MLflow has.

    uri         of the server, or of a database file: sqlite:///...
    interval    seconds between two looks at the records
    say         called with a line when the server stops responding and when it responds again
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        interval: float = 5.0,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._experiment = MlflowExperiment(uri, experiment)
        self._interval, self._say = interval, say
        # by record id; a job comes before its runs
        self._watched: dict[str, tuple[RunRecord, Folder]] = {}
        self._synced: dict[str, tuple[Any, ...]] = {}  # the versions that MLflow has
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._error = ""  # none: the server responds
        self.problem: str | None = None  # after `stop`: what MLflow lacks and what to do
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def watch(self, record: RunRecord, folder: Folder) -> None:
        """Copy `record`, which is saved in `folder`, to MLflow from now on.

        Watch the record of a job before those of its runs. The record of a job, which has no
        parent, also gets this machine's system metrics.
        """
        record.tags = {**_source_tags(), **record.tags}
        record.mlflow = self._experiment.initial_state(record.mlflow)
        self._watched[record.id] = record, folder
        self._wake.set()

    def drop(self, record: RunRecord) -> None:
        """Forget a record at once: another process has taken over its run."""
        self._watched.pop(record.id, None)

    def wait(self, *records: RunRecord) -> None:
        """Wait briefly for a server that responds, so that records can be saved with what it has.

        What MLflow still lacks then gets there in `stop`, without a note in the files.
        """
        end = time.monotonic() + MAX_WAIT_S
        while not self._error and time.monotonic() < end:
            if all(map(self._has, records)):
                break
            self._wake.set()
            time.sleep(POLL_S)

    def stop(self, timeout: float | None = None) -> bool:
        """Copy what is missing. True if MLflow has everything; else `problem` describes the rest.

        timeout: in seconds; by default it grows by one for each record, since a sweep has hundreds
        """
        is_file = self._experiment.uri.startswith(SQLITE)
        if timeout is None:
            timeout = (STOP_SQLITE_S if is_file else STOP_S) + len(self._watched)
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._error = self._error or f"no response in {timeout:g} s"
        missing = [record.name for record, _ in self._watched.values() if not self._has(record)]
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            flag = "" if is_file else f" --tracking-uri {self._experiment.display_uri}"
            self.problem = (
                f"MLflow at {self._experiment.display_uri} lacks parts of {names} ({self._error})."
                f" Nothing is lost: it is all in their {RECORD_FILE}, and"
                f" python jobs/track.py <output>{flag} copies it there."
            )
        return not missing

    def _has(self, record: RunRecord) -> bool:
        return self._synced.get(record.id) == _version(record)

    def _run(self) -> None:
        driver_metrics()  # usage is counted from here
        while True:
            is_last = self._stopping.is_set()
            for record, _ in list(self._watched.values()):
                if record.parent is None and record.state == "running":
                    record.log(int(record.age), driver_metrics())
            self._sync_all()
            if is_last:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _sync_all(self) -> None:
        """Try once to copy all records that have changed."""
        problem: Exception | None = None
        for record, folder in list(self._watched.values()):
            if self._has(record):
                continue
            version = _version(record)
            error = self._experiment.sync(record, folder)
            if error is None:
                self._synced[record.id] = version
                continue
            problem = error
            if not isinstance(error, ArtifactError):
                break
        address = f"MLflow at {self._experiment.display_uri}"
        had_failed, self._error = bool(self._error), short_error(problem) if problem else ""
        if problem and not had_failed:
            self._say(
                f"{address}: {self._error}. The job continues; what is missing is copied later."
            )
        elif had_failed and not problem:
            self._say(f"{address} responds again")


def _version(record: RunRecord) -> tuple[Any, ...]:
    """Changes with everything that a running job changes in a record."""
    return record.state, record.ended, len(record.history)


def replay(
    folder: str,
    uri: str | None = None,
    experiment: str | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Copy all records below `folder` to MLflow; True if it has everything afterwards.

    uri, experiment: another MLflow than the one that a record names
    """
    records: list[tuple[RunRecord, Folder]] = []
    complete = True
    for run_folder in run_folders(folder):
        try:
            records.append((RunRecord.load(run_folder), run_folder))
        except (OSError, ValueError, TypeError) as error:
            say(f"cannot read {run_folder}/{RECORD_FILE}: {short_error(error)}")
            complete = False
    if not records:
        say(f"there is no {RECORD_FILE} below {Folder.of(folder)}; give the job's --output")
        return False
    targets: dict[tuple[str, str], MlflowExperiment | None] = {}  # None: failed, reported once
    for record, run_folder in sorted(records, key=lambda item: item[0].parent is not None):
        named = str(record.mlflow.get("uri") or "")
        key = (uri or named, experiment or record.mlflow.get("experiment", "apet"))
        if key not in targets:
            try:
                targets[key] = MlflowExperiment(_address(uri, named), key[1])
            except ValueError as error:
                targets[key] = None
                say(f"{record.name}: {error}")
        target = targets[key]
        if target is None:
            complete = False
            continue
        before = record.mlflow
        problem = target.sync(record, run_folder)
        # A running job notes it itself. One may have ended meanwhile: change only this part.
        if record.mlflow != before and not Lock(run_folder).is_held_by_another():
            latest = RunRecord.load(run_folder)
            latest.mlflow = record.mlflow
            latest.save(run_folder)
        if problem is not None:
            complete = False
            if not isinstance(problem, ArtifactError):
                targets[key] = None
        is_new = record.mlflow != before
        outcome = short_error(problem) if problem else "copied" if is_new else "already there"
        say(f"{record.name}: {outcome}  ({target.display_uri})")
    return complete


def _address(given: str | None, named: str) -> str:
    """The user's address, or the one that a record names; a ValueError says why it cannot be used.

    MLflow's client sends a login along, so an address that only a record names is not trusted.
    """
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    # Records leave out the password.
    uri = given or (own if named == redacted(own) else named)
    if not uri or "***@" in uri:
        raise ValueError(
            "the record has no MLflow address, or its password is masked (***): give the full"
            " address with --tracking-uri"
        )
    if given or uri == own or uri.startswith(SQLITE):
        return uri
    raise ValueError(
        f"its record names {redacted(uri)}. Anybody can write a record, and MLflow's client sends"
        " your login along: if you know that server, give it as --tracking-uri"
    )


def dashboard(uri: str) -> str:
    """The address to open, or the command to run, to see the runs."""
    uri = redacted(uri)
    if uri.startswith(("http://", "https://")):
        return uri
    program = Path(sys.executable).with_name("mlflow")
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return f"{program} ui --backend-store-uri {shlex.quote(uri)}"


def _source_tags() -> dict[str, str]:
    """The tags with which MLflow's pages show what ran, by whom."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit():
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    return tags
