"""Records are brought to MLflow by one thread, which the job neither waits for nor fails with.

A record (pipelines.results.run_record) holds all that MLflow is told, and notes how far MLflow has got. So a server that is slow,
down or hung costs nothing but time: what it has missed is brought to it (pipelines.results.mlflow_experiment) when it answers again,
at the end of the job, or later by `python jobs/track.py`.
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

from pipelines.results.mlflow_experiment import SQLITE, ArtifactError, MlflowExperiment, lacking, short_error
from pipelines.results.lock import Lock
from pipelines.results.system_metrics import SystemMetrics
from pipelines.results.run_record import NAME, RunRecord, git_commit, run_folders
from pipelines.results.storage import Folder
from pipelines.text import redacted

LONGEST_WAIT = 30.0  # seconds between two attempts at a server that does not answer


class Tracker:
    """Keeps MLflow up to date with records while they change.

    uri         of the server, or a database file as sqlite:///...
    interval    seconds between two looks at the records
    say         is told when the server stops answering and when it answers again
    """

    def __init__(
        self, uri: str, experiment: str, *, interval: float = 5.0, say: Callable[[str], None] | None = None
    ) -> None:
        self._experiment = MlflowExperiment(uri, experiment)
        self._interval = interval
        self._say = say or _to_stderr
        self._watched: dict[str, tuple[RunRecord, Folder]] = {}
        self._loose: set[str] = set()  # records whose lock is not ours any more
        self._brought: dict[str, tuple[Any, ...]] = {}  # by record: where it stood when MLflow last got all of it
        self._wake, self._stopping, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._writing = threading.Lock()
        self._failures, self._try_at = 0, 0.0
        self._error = ""
        self.problem: str | None = None  # after `stop`: what MLflow lacks and what to do, for the user
        self._meter = SystemMetrics()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def watch(self, record: RunRecord, folder: Folder) -> None:
        """From now on MLflow gets what `record`, which is saved in `folder`, says. A job's record before its points'.

        The record of a job, which has no parent, gets this machine's system metrics as well.
        """
        record.tags = {**_origin(), **record.tags}
        self._loose.discard(record.id)
        record.track(self._experiment.adopt(record.mlflow))
        self._watched[record.id] = (record, folder)
        self._brought.pop(record.id, None)
        self._wake.set()

    def drop(self, record: RunRecord) -> None:
        """From now on nothing is written of a record: its run is another job's (pipelines.results.lock)."""
        with self._writing:
            self._watched.pop(record.id, None)

    def loosen(self, record: RunRecord) -> None:
        """Its lock is given back: from now on it is written only as long as nobody else has begun to."""
        with self._writing:
            self._loose.add(record.id)

    def stop(self, timeout: float | None = None) -> bool:
        """Bring what is missing, for `timeout` seconds at most. True if MLflow has all; else `problem` says why not.

        By default a server has 10 seconds, a file, which is only slow to be made, 30, and each record one more: a
        sweep has hundreds.
        """
        least = 30.0 if self._experiment.uri.startswith(SQLITE) else 10.0
        limit = least + len(self._watched) if timeout is None else timeout
        self._stopping.set()
        self._wake.set()
        self._thread.join(limit)
        if self._thread.is_alive():
            self._given_up.set()
            self._experiment.close()
            self._error = self._error or f"no answer in {limit:g} s"
        missing = [(record, folder) for record, folder in self._records() if lacking(record.snapshot(), record.mlflow)]
        for record, folder in missing:
            record.track({**record.mlflow, "synced": False})
            self._save(record, folder)
        if missing:
            names = ", ".join([record.name for record, _ in missing[:3]] + ["..."] * (len(missing) > 3))
            self.problem = (
                f"MLflow at {self._experiment.shown} lacks parts of {names} ({self._error}). Nothing is lost: it is all"
                f" in their {NAME}, and python jobs/track.py <output>{_named(self._experiment)} brings it there."
            )
        return not missing

    def _records(self) -> list[tuple[RunRecord, Folder]]:
        """Jobs before their points, so that these find their parent."""
        return sorted(self._watched.values(), key=lambda item: item[0].parent is not None)

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            for record, _ in self._records():
                if record.parent is None and record.state == "running":
                    record.log(int(record.age), self._meter.read())
            if last or time.monotonic() >= self._try_at:
                self._bring(everything=last)
            if last:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _bring(self, everything: bool) -> None:
        """One attempt for all records; the next one waits longer each time that the server does not answer.

        everything: also of records that stand where they stood; a sweep has hundreds, and reading them takes long
        """
        problem: Exception | None = None
        for record, folder in self._records():
            stands = (record.state, record.ended, len(record.history))
            if self._brought.get(record.id) == stands and not everything:
                continue
            state = dict(record.mlflow)
            try:
                self._experiment.bring(record.snapshot(), folder, state)
                self._brought[record.id] = stands
            except Exception as error:  # whatever it is, the job goes on
                problem = error
            if self._given_up.is_set():
                return  # the job has ended without us; who starts it again must not meet our late write
            if state != record.mlflow:
                record.track(state)
                self._save(record, folder)
            if problem is not None and not isinstance(problem, ArtifactError):
                break
        if problem is None:
            if self._failures:
                self._say(f"MLflow at {self._experiment.shown} answers again")
            self._failures, self._try_at, self._error = 0, 0.0, ""
            return
        self._error = short_error(problem)
        self._failures += 1
        self._try_at = time.monotonic() + min(LONGEST_WAIT, self._interval * 2**self._failures)
        if self._failures == 1:
            self._say(
                f"MLflow at {self._experiment.shown}: {self._error}. The job goes on; what is missing is brought later."
            )

    def _save(self, record: RunRecord, folder: Folder) -> None:
        try:
            with self._writing:
                if record.id in self._watched and (record.id not in self._loose or _as_left(record, folder)):
                    record.save(folder)
        except (OSError, ValueError) as error:
            self._say(f"{NAME} of {record.name} could not be written: {short_error(error)}")


def replay(
    folder: str, uri: str | None = None, experiment: str | None = None, say: Callable[[str], None] = print
) -> bool:
    """Bring every record below `folder` to MLflow; True if it has all of them then.

    uri, experiment: another MLflow than the one that a record was meant for.
    """
    found: list[tuple[RunRecord, Folder]] = []
    complete = True
    for place in run_folders(folder):
        try:
            found.append((RunRecord.load(place), place))
        except (OSError, ValueError, TypeError) as error:
            say(f"{redacted(place.uri)}/{NAME} cannot be read: {short_error(error)}")
            complete = False
    found.sort(key=lambda item: item[0].parent is not None)
    if not found:
        say(f"there is no {NAME} below {redacted(folder)}; give the folder that --output named")
        return False
    servers: dict[tuple[str, str], MlflowExperiment] = {}
    silent: set[tuple[str, str]] = set()  # of which no more is heard: what is wrong is said once
    for record, place in found:
        key = (
            _whole(uri or str(record.mlflow.get("uri") or "")),
            experiment or record.mlflow.get("experiment", "apet"),
        )
        if key in silent:
            complete = False
            continue
        if why := _refused(key[0], named=uri is not None):
            say(f"{record.name}: {why}")
            silent.add(key)
            complete = False
            continue
        server = servers.setdefault(key, MlflowExperiment(*key))
        before = server.adopt(record.mlflow)
        state = dict(before)
        problem: Exception | None = None
        try:
            server.bring(record.snapshot(), place, state)
        except Exception as error:
            problem = error
            complete = False
            if not isinstance(error, ArtifactError):
                silent.add(key)
        if state != record.mlflow and not Lock(place).others():  # a job that runs notes it itself
            latest = RunRecord.load(place)  # one may have ended meanwhile: change nothing but our part
            latest.track(state)
            latest.save(place)
        known = "was there" if state == before else "brought"
        say(f"{record.name}: {known if problem is None else short_error(problem)}  ({server.shown})")
    return complete


def _whole(uri: str) -> str:
    """With the password that records and messages leave out, where it is the user's own server."""
    mine = os.environ.get("MLFLOW_TRACKING_URI", "")
    return mine if uri == redacted(mine) else uri


def _refused(uri: str, named: bool) -> str:
    """Why nothing is brought there. What only a record names is no server of ours: MLflow's client sends a login along.

    named: by the user
    """
    if not uri or "***@" in uri:
        return "it is not said where MLflow is, or *** stands for its password; use --tracking-uri with all of it"
    if named or uri.startswith(SQLITE) or uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    return (
        f"its record names {redacted(uri)}. Anybody can write a record, and MLflow's client sends your login along:"
        " if you know that server, give it as --tracking-uri"
    )


def _named(experiment: MlflowExperiment) -> str:
    """What `replay` has to be told of a server."""
    return "" if experiment.uri.startswith(SQLITE) else f" --tracking-uri {experiment.shown}"


def _as_left(record: RunRecord, folder: Folder) -> bool:
    """Is the record in the folder the one that we wrote last, but for what MLflow has, and nobody about to change it?

    Who takes the lock writes the record later than we do, who look and write at once.
    """
    left = RunRecord.load(folder).snapshot()
    return not Lock(folder).others() and {**left, "mlflow": 0} == {**record.snapshot(), "mlflow": 0}


def dashboard(uri: str) -> str:
    """What a person types or opens to see the runs."""
    if uri.startswith(("http://", "https://")):
        return redacted(uri)
    program = Path(sys.executable).with_name("mlflow")
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"{near} ui --backend-store-uri {shlex.quote(redacted(uri))}"


def _origin() -> dict[str, str]:
    """Who ran what: the tags that MLflow's pages show."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    commit = git_commit()
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    return tags


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
