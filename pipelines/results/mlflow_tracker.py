"""A thread that copies run records to MLflow. The job neither waits for it nor fails with it.

A record contains everything that MLflow gets, and notes how much of it MLflow has. So a server that
is slow, down or hung costs nothing but time: it gets what it missed when it responds again, at the
end of the job, or later with `python jobs/track.py`.
"""

from __future__ import annotations

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
    is_behind,
    short_error,
)
from pipelines.results.run_record import RECORD_FILE, RunRecord, git_commit, run_folders
from pipelines.results.storage import Folder
from pipelines.results.system_metrics import SystemMetrics
from pipelines.text import redacted

MAX_WAIT_S = 30.0  # between two attempts at a server that does not respond
MAX_RELEASE_S = 10.0  # that a lock is held longer for a server that is slow
# At the end of a job: a server that is up needs no longer. Creating a database file takes a while.
STOP_S, STOP_SQLITE_S = 10.0, 30.0
POLL_S = 0.02


class Tracker:
    """Keeps MLflow up to date with records while they change.

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
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._experiment = MlflowExperiment(uri, experiment)
        self._interval = interval
        self._say = say or _print_to_stderr
        self._watched: dict[str, tuple[RunRecord, Folder]] = {}
        self._released: set[str] = set()  # records that may be another process's: not to be written
        self._synced: dict[str, tuple[Any, ...]] = {}  # by record: its version that MLflow has
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._writing = threading.Lock()
        self._failures, self._next_attempt = 0, 0.0
        self._error = ""
        self.problem: str | None = None  # after `stop`: what MLflow lacks and what to do
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def watch(self, record: RunRecord, folder: Folder) -> None:
        """Copy `record`, which is saved in `folder`, to MLflow from now on.

        Watch the record of a job before those of its runs. The record of a job, which has no
        parent, also gets this machine's system metrics.
        """
        record.tags = {**_source_tags(), **record.tags}
        record.note_mlflow(self._experiment.initial_state(record.mlflow))
        self._released.discard(record.id)
        self._synced.pop(record.id, None)
        self._watched[record.id] = (record, folder)
        self._wake.set()

    def drop(self, record: RunRecord) -> None:
        """Forget a record at once: another process has taken over its run."""
        with self._writing:
            self._watched.pop(record.id, None)

    def release(self, record: RunRecord) -> None:
        """Stop writing a record, whose lock is about to be released.

        Waits briefly for a server that responds, so that the file says what MLflow has. What
        MLflow still lacks then gets there in `stop`, without a note in the file.
        """
        end = time.monotonic() + MAX_RELEASE_S
        while not self._is_synced(record) and not self._failures and time.monotonic() < end:
            self._wake.set()
            time.sleep(POLL_S)
        with self._writing:
            self._released.add(record.id)

    def stop(self, timeout: float | None = None) -> bool:
        """Copy what is missing. True if MLflow has everything; else `problem` describes the rest.

        timeout: in seconds; by default it grows by one for each record, since a sweep has hundreds
        """
        if timeout is None:
            is_file = self._experiment.uri.startswith(SQLITE)
            timeout = (STOP_SQLITE_S if is_file else STOP_S) + len(self._watched)
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._given_up.set()
            self._experiment.close()
            self._error = self._error or f"no response in {timeout:g} s"
        missing = [
            (record, folder)
            for record, folder in self._jobs_first()
            if is_behind(record.snapshot(), record.mlflow)
        ]
        for record, folder in missing:
            record.note_mlflow({**record.mlflow, "synced": False})
            self._save(record, folder)
        if missing:
            names = ", ".join(record.name for record, _ in missing[:3])
            names += ", ..." if len(missing) > 3 else ""
            flag = _tracking_flag(self._experiment)
            self.problem = (
                f"MLflow at {self._experiment.display_uri} lacks parts of {names} ({self._error})."
                f" Nothing is lost: it is all in their {RECORD_FILE}, and"
                f" python jobs/track.py <output>{flag} copies it there."
            )
        return not missing

    def _jobs_first(self) -> list[tuple[RunRecord, Folder]]:
        """The records, jobs before their runs, which are nested under them."""
        return sorted(self._watched.values(), key=lambda item: item[0].parent is not None)

    def _is_synced(self, record: RunRecord) -> bool:
        return self._synced.get(record.id) == _version(record) or record.id not in self._watched

    def _run(self) -> None:
        system_metrics = SystemMetrics()
        while True:
            is_last = self._stopping.is_set()
            for record, _ in self._jobs_first():
                if record.parent is None and record.state == "running":
                    record.log(int(record.age), system_metrics.read())
            if is_last or time.monotonic() >= self._next_attempt:
                self._sync_all(unchanged=is_last)
            if is_last:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _sync_all(self, unchanged: bool) -> None:
        """Try once to copy all records. After each failure the next attempt waits longer.

        unchanged: also those that have not changed; reading the hundreds of a sweep takes long
        """
        problem: Exception | None = None
        for record, folder in self._jobs_first():
            version = _version(record)
            if self._synced.get(record.id) == version and not unchanged:
                continue
            state = dict(record.mlflow)
            error = None
            try:
                self._experiment.sync(record.snapshot(), folder, state)
            except Exception as any_error:  # whatever it is, the job continues
                problem = error = any_error
            if self._given_up.is_set():
                return  # the job has ended: a late write could hit the next job's record
            if state != record.mlflow:
                record.note_mlflow(state)
                self._save(record, folder)
            if error is None:
                self._synced[record.id] = version  # after the file is written, see `loosen`
            elif not isinstance(error, ArtifactError):
                break
        if problem is None:
            if self._failures:
                self._say(f"MLflow at {self._experiment.display_uri} responds again")
            self._failures, self._next_attempt, self._error = 0, 0.0, ""
            return
        self._error = short_error(problem)
        self._failures += 1
        wait = min(MAX_WAIT_S, self._interval * 2**self._failures)
        self._next_attempt = time.monotonic() + wait
        if self._failures == 1:
            self._say(
                f"MLflow at {self._experiment.display_uri}: {self._error}."
                " The job continues; what is missing is copied later."
            )

    def _save(self, record: RunRecord, folder: Folder) -> None:
        try:
            with self._writing:
                if record.id in self._watched and record.id not in self._released:
                    record.save(folder)
        except (OSError, ValueError) as error:
            self._say(f"cannot write {RECORD_FILE} of {record.name}: {short_error(error)}")


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
    records.sort(key=lambda item: item[0].parent is not None)
    if not records:
        say(
            f"there is no {RECORD_FILE} below {Folder.of(folder)}; give the folder that --output named"
        )
        return False
    targets: dict[tuple[str, str], MlflowExperiment] = {}
    failed: set[tuple[str, str]] = set()  # reported once, then skipped
    for record, run_folder in records:
        target_uri = _with_password(uri or str(record.mlflow.get("uri") or ""))
        key = (target_uri, experiment or record.mlflow.get("experiment", "apet"))
        if key in failed:
            complete = False
            continue
        if reason := _refusal(target_uri, by_user=uri is not None):
            say(f"{record.name}: {reason}")
            failed.add(key)
            complete = False
            continue
        target = targets.setdefault(key, MlflowExperiment(*key))
        before = target.initial_state(record.mlflow)
        state = dict(before)
        outcome = ""
        try:
            target.sync(record.snapshot(), run_folder, state)
        except Exception as error:
            outcome = short_error(error)
            complete = False
            if not isinstance(error, ArtifactError):
                failed.add(key)
        # A running job notes it itself. One may have ended meanwhile: change only this part.
        if state != record.mlflow and not Lock(run_folder).held_by_another():
            latest = RunRecord.load(run_folder)
            latest.note_mlflow(state)
            latest.save(run_folder)
        outcome = outcome or ("was there" if state == before else "brought")
        say(f"{record.name}: {outcome}  ({target.display_uri})")
    return complete


def _with_password(uri: str) -> str:
    """The user's own server with its password, which records and messages leave out."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if uri == redacted(own) else uri


def _refusal(uri: str, by_user: bool) -> str:
    """Why nothing is copied to an address; empty if it is.

    MLflow's client sends a login along, so an address that only a record names is not trusted.
    """
    if not uri or "***@" in uri:
        return (
            "its MLflow is not known, or *** stands for its password; use --tracking-uri with all"
            " of it"
        )
    if by_user or uri.startswith(SQLITE) or uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    return (
        f"its record names {redacted(uri)}. Anybody can write a record, and MLflow's client sends"
        " your login along: if you know that server, give it as --tracking-uri"
    )


def _tracking_flag(experiment: MlflowExperiment) -> str:
    """The flag that jobs/track.py needs for an experiment."""
    is_file = experiment.uri.startswith(SQLITE)
    return "" if is_file else f" --tracking-uri {experiment.display_uri}"


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


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
