"""Runs in MLflow: records are brought there by one thread, which the job neither waits for nor fails with.

A record (pipelines.record) holds all that MLflow is told, and notes how far MLflow has got. So a server that is slow,
down or hung costs nothing but time: what it has missed is brought to it when it answers again, at the end of the job,
or later by `python jobs/track.py`. Whatever is sent twice is one thing there: a run is found by its record's id, params
are sent once, a metric is the same with the same time and step, artifacts overwrite.

MLflow's client is used with ids only; its global state (active run, tracking URI) is neither read nor set. It is
imported in the thread, because that takes seconds and prints.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import math
import os
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.meter import Meter
from pipelines.record import NAME, Record, flat, git_commit, places
from pipelines.storage import Folder, redacted

TAG = "apet.record"  # the run of a record
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
LONGEST_WAIT = 30.0  # between two attempts at a server that does not answer
_POINTS = 50  # of the history, in one call
_SQLITE = "sqlite:///"
_PATIENCE = {  # MLflow's own would be four minutes on a server that is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Tracker:
    """Keeps MLflow up to date with records while they change.

    uri         of the server, or a database file as sqlite:///...
    interval    seconds between two looks at the records
    say         is told when the server stops answering and when it answers again
    """

    def __init__(
        self, uri: str, experiment: str, *, interval: float = 5.0, say: Callable[[str], None] | None = None
    ) -> None:
        self._mlflow = _MLflow(uri, experiment)
        self._interval = interval
        self._say = say or _to_stderr
        self._watched: dict[str, tuple[Record, Folder]] = {}
        self._wake, self._stopping, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._failures, self._try_at = 0, 0.0
        self._error = ""
        self.problem: str | None = None  # after `stop`: what MLflow lacks and what to do, for the user
        self._meter = Meter()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def watch(self, record: Record, folder: Folder) -> None:
        """From now on MLflow gets what `record`, which is saved in `folder`, says. A job's record before its points'.

        The record of a job, which has no parent, gets this machine's system metrics as well.
        """
        record.tags = {**_origin(), **record.tags}
        record.track(self._mlflow.adopt(record.mlflow))
        self._watched[record.id] = (record, folder)
        self._wake.set()

    def stop(self, timeout: float | None = None) -> bool:
        """Bring what is missing, for `timeout` seconds at most. True if MLflow has all; else `problem` says why not.

        By default a server has 10 seconds, a file, which is only slow to be made, 30.
        """
        limit = timeout if timeout is not None else 30.0 if self._mlflow.uri.startswith(_SQLITE) else 10.0
        self._stopping.set()
        self._wake.set()
        self._thread.join(limit)
        if self._thread.is_alive():
            self._given_up.set()
            self._error = self._error or f"no answer in {limit:g} s"
        missing = [(record, folder) for record, folder in self._records() if _lacking(record.snapshot(), record.mlflow)]
        for record, folder in missing:
            record.track({**record.mlflow, "synced": False})
            self._save(record, folder)
        if missing:
            names = ", ".join([record.name for record, _ in missing[:3]] + ["..."] * (len(missing) > 3))
            self.problem = (
                f"MLflow at {self._mlflow.shown} lacks parts of {names} ({self._error}). Nothing is lost: it is all in"
                f" their {NAME}, and python jobs/track.py <output> brings it there."
            )
        return not missing

    def _records(self) -> list[tuple[Record, Folder]]:
        """Jobs before their points, so that these find their parent."""
        return sorted(self._watched.values(), key=lambda item: item[0].parent is not None)

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            for record, _ in self._records():
                if record.parent is None and record.state == "running":
                    record.log(int(time.time() - record.started), self._meter.read())
            if last or time.monotonic() >= self._try_at:
                self._bring()
            if last:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _bring(self) -> None:
        """One attempt for all records; the next one waits longer each time that the server does not answer."""
        problem: Exception | None = None
        for record, folder in self._records():
            state = dict(record.mlflow)
            try:
                self._mlflow.bring(record.snapshot(), folder, state)
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
                self._say(f"MLflow at {self._mlflow.shown} answers again")
            self._failures, self._try_at, self._error = 0, 0.0, ""
            return
        self._error = _short(problem)
        self._failures += 1
        self._try_at = time.monotonic() + min(LONGEST_WAIT, self._interval * 2**self._failures)
        if self._failures == 1:
            self._say(
                f"MLflow at {self._mlflow.shown}: {self._error}. The job goes on; what is missing is brought later."
            )

    def _save(self, record: Record, folder: Folder) -> None:
        try:
            record.save(folder)
        except OSError as error:
            self._say(f"{NAME} of {record.name} could not be written: {_short(error)}")


def replay(
    folder: str, uri: str | None = None, experiment: str | None = None, say: Callable[[str], None] = print
) -> bool:
    """Bring every record below `folder` to MLflow; True if it has all of them then.

    uri, experiment: another MLflow than the one that a record was meant for.
    """
    found: list[tuple[Record, Folder]] = []
    complete = True
    for place in places(folder):
        try:
            found.append((Record.load(place), place))
        except (OSError, ValueError, TypeError) as error:
            say(f"{redacted(place.uri)}/{NAME} cannot be read: {_short(error)}")
            complete = False
    found.sort(key=lambda item: item[0].parent is not None)
    if not found:
        say(f"there is no {NAME} below {redacted(folder)}; give the folder that --output named")
        return False
    servers: dict[tuple[str, str], _MLflow] = {}
    silent: set[tuple[str, str]] = set()
    for record, place in found:
        key = (uri or record.mlflow.get("uri", ""), experiment or record.mlflow.get("experiment", "apet"))
        if not key[0] or "***@" in key[0]:
            say(f"{record.name}: its record does not say where MLflow is, or leaves out a password; use --tracking-uri")
            complete = False
            continue
        if key in silent:
            complete = False
            continue
        server = servers.setdefault(key, _MLflow(*key))
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
        if state != record.mlflow:
            latest = Record.load(place)  # a job may have written it meanwhile: change nothing but our part
            latest.track(state)
            latest.save(place)
        known = "was there" if state == before else "brought"
        say(f"{record.name}: {known if problem is None else _short(problem)}  ({server.shown})")
    return complete


def dashboard(uri: str) -> str:
    """What a person types or opens to see the runs."""
    if uri.startswith(("http://", "https://")):
        return redacted(uri)
    program = Path(sys.executable).with_name("mlflow")
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"{near} ui --backend-store-uri {shlex.quote(redacted(uri))}"


class ArtifactError(Exception):
    """The server has all but some artifacts."""


class _MLflow:
    """One experiment on one server. Connects when it is first needed."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self.shown = redacted(uri)
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, str] = {}  # of records that were met, by their id
        self._params: dict[str, set[str]] = {}  # that a run has: they cannot be changed

    def adopt(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What this MLflow has of a record; nothing if the record was with another one."""
        mine = {"uri": self.shown, "experiment": self.experiment}
        same = all(state.get(key) == value for key, value in mine.items())
        return dict(state) if same else {**mine, "history": 0, "artifacts": {}, "synced": False}

    def bring(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        """Send what is missing and move `state` along with it, also if an error ends it in the middle."""
        if not _lacking(data, state) and (data["id"] in self._runs or self._exists(state)):
            return
        try:
            self._bring(data, folder, state)
        except Exception:
            if data["id"] in self._runs:  # it may have been deleted: look again next time
                del self._runs[data["id"]]
            raise

    def _bring(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        state["synced"] = False
        run_id = self._run_of(data, state)
        content = _content(data)
        fresh = state.get("content") != content
        if fresh:
            self._describe(run_id, data)
        self._progress(run_id, data["history"], state)
        if fresh:
            self._conclude(run_id, data)
            state["content"] = content
        self._artifacts(run_id, data, folder, state, again=fresh and data["state"] != "running")
        state["synced"] = True

    def _connect(self) -> Any:
        if self._client is not None:
            return self._client
        for name, value in {**_PATIENCE, **_QUIET}.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        location = None
        if self.uri.startswith(_SQLITE):  # MLflow would put artifacts into the current directory
            database = Path(self.uri.removeprefix(_SQLITE)).absolute()
            database.parent.mkdir(parents=True, exist_ok=True)
            location = (database.parent / f"{database.stem}-artifacts").as_uri()
        client = MlflowClient(self.uri)
        known = client.get_experiment_by_name(self.experiment)
        if known is None:
            try:
                self._experiment_id = client.create_experiment(self.experiment, artifact_location=location)
            except Exception:  # another job made it just now
                known = client.get_experiment_by_name(self.experiment)
                if known is None:
                    raise
        if known is not None:
            if known.lifecycle_stage != "active":
                raise ValueError(f"the experiment {self.experiment!r} is deleted: restore it or name another")
            self._experiment_id = known.experiment_id
        self._client = client
        return client

    def _exists(self, state: Mapping[str, Any]) -> bool:
        return bool(state.get("run_id")) and self._get(state["run_id"]) is not None

    def _get(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._connect().get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _find(self, record_id: str) -> Any:
        runs = self._connect().search_runs([self._experiment_id], f"tags.`{TAG}` = '{record_id}'", max_results=1)
        return runs[0] if runs else None

    def _run_of(self, data: Mapping[str, Any], state: dict[str, Any]) -> str:
        """The run of a record; made now if there is none, and all is sent again if it is gone."""
        known = self._runs.get(data["id"])
        if known is not None and known == state.get("run_id"):
            return known
        client = self._connect()
        run = (self._get(state["run_id"]) if state.get("run_id") else None) or self._find(data["id"])
        parent = data["parent"]
        if parent:
            state["parent_run_id"] = self._parent(parent, data["started"])
        if run is None:
            state.update(history=0, artifacts={}, content=None)
            nested = {"mlflow.parentRunId": state["parent_run_id"]} if parent else {}
            run = client.create_run(
                self._experiment_id,
                start_time=int(data["started"] * 1000),
                tags={TAG: data["id"], **nested},
                run_name=data["name"],
            )
        elif parent and run.data.tags.get("mlflow.parentRunId") != state["parent_run_id"]:
            client.set_tag(run.info.run_id, "mlflow.parentRunId", state["parent_run_id"])
        state["run_id"] = self._runs[data["id"]] = run.info.run_id
        self._params[run.info.run_id] = set(run.data.params)
        return str(run.info.run_id)

    def _parent(self, parent: Mapping[str, str], started: float) -> str:
        """The run of a job, also when its record is not here: its name and id are enough to nest under it."""
        if parent["id"] not in self._runs:
            run = self._find(parent["id"]) or self._connect().create_run(
                self._experiment_id,
                start_time=int(started * 1000),
                tags={TAG: parent["id"]},
                run_name=parent["name"],
            )
            self._runs[parent["id"]] = run.info.run_id
            self._params[run.info.run_id] = set(run.data.params)
        return self._runs[parent["id"]]

    def _describe(self, run_id: str, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        client = self._connect()
        params = {_key(name): value[:6000] for name, value in flat(data["config"]).items()}
        known = self._params[run_id]
        tables = [name for name in data["artifacts"] if name.endswith(".table.json")]
        tags = {
            **data["tags"],
            "mlflow.runName": data["name"],
            **({"mlflow.note.content": data["message"]} if data["message"] else {}),
            **(
                {"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"} for name in tables])}
                if tables
                else {}
            ),
        }
        client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in params.items() if name not in known],
            tags=[RunTag(_key(name), str(value)[:5000]) for name, value in tags.items()],
        )
        known.update(params)
        dataset = data["dataset"]
        if dataset:
            source = json.dumps({"uri": dataset.get("source", "")})
            entity = Dataset(dataset["name"], dataset["digest"][:36], "local", source)
            client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "eval")])])
        if data["state"] == "running":
            client.update_run(run_id, status="RUNNING")

    def _progress(self, run_id: str, history: list[dict[str, float]], state: dict[str, Any]) -> None:
        client = self._connect()
        while state["history"] < len(history):
            points = history[state["history"] : state["history"] + _POINTS]
            client.log_batch(
                run_id,
                metrics=[
                    metric
                    for point in points
                    for metric in _metrics(
                        {name: value for name, value in point.items() if name not in ("ts_ms", "step")},
                        int(point["ts_ms"]),
                        int(point["step"]),
                    )
                ],
            )
            state["history"] += len(points)

    def _conclude(self, run_id: str, data: Mapping[str, Any]) -> None:
        if data["state"] == "running":
            return
        client = self._connect()
        ended = int((data["ended"] or data["started"]) * 1000)
        client.log_batch(run_id, metrics=list(_metrics(data["metrics"], ended, data["rows"].get("done", 0))))
        client.set_terminated(run_id, STATUS[data["state"]], end_time=ended)

    def _artifacts(
        self, run_id: str, data: Mapping[str, Any], folder: Folder, state: dict[str, Any], *, again: bool
    ) -> None:
        """Files that MLflow does not have; with `again` also those that have changed."""
        problem: Exception | None = None
        for name in data["artifacts"]:
            if name in state["artifacts"] and not again:
                continue
            try:
                content = folder.read(name)
                digest = hashlib.sha256(content).hexdigest()[:16]
                if state["artifacts"].get(name) != digest:
                    with tempfile.TemporaryDirectory() as here:
                        file = Path(here, name)
                        file.write_bytes(content)
                        self._connect().log_artifact(run_id, str(file))
                    state["artifacts"] = {**state["artifacts"], name: digest}
            except Exception as error:
                problem = problem or error
                state["artifacts"] = {known: value for known, value in state["artifacts"].items() if known != name}
        if problem is not None:
            raise ArtifactError(f"artifacts: {_short(problem)}") from problem


def _content(data: Mapping[str, Any]) -> str:
    """Changes with what a run says beside its progress."""
    moving = ("history", "rows", "mlflow")
    still = {name: value for name, value in data.items() if name not in moving}
    return hashlib.sha256(json.dumps(still, sort_keys=True).encode()).hexdigest()[:16]


def _lacking(data: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Is there anything in a record that MLflow does not have, as far as `state` knows?"""
    return (
        state.get("content") != _content(data)
        or state["history"] < len(data["history"])
        or any(name not in state["artifacts"] for name in data["artifacts"])
    )


def _metrics(values: Mapping[str, float | None], ts_ms: int, step: int) -> Iterable[Any]:
    from mlflow.entities import Metric

    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield Metric(_key(name), float(value), ts_ms, step)


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def _origin() -> dict[str, str]:
    """Who ran what: the tags that MLflow's pages show."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    commit = git_commit()
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    return tags


def _short(error: BaseException) -> str:
    return redacted(" ".join(str(error).split()) or type(error).__name__)[:200]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
