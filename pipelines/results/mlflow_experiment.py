"""One experiment in one MLflow, and how records get there. Everything that is known of MLflow's client is in this file.

Whatever is sent twice is one thing there: a run is found by its record's id, params are sent once, a metric is the same
with the same time and step, artifacts overwrite. The client is used with ids only; its global state (active run,
tracking URI) is neither read nor set. It is imported when it is first needed, because that takes seconds and prints.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.results.run_record import flat, title
from pipelines.results.storage import Folder
from pipelines.text import redacted

TAG = "apet.record"  # the run of a record
NOTE, OUR_NOTE = "mlflow.note.content", "apet.note"  # what its page shows as its description, and what we wrote there
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_POINTS = 50  # of the history, in one call
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://", "databricks")  # what else there is are databases
# Where the runs of these may have their files: to other places MLflow's client may send its login.
PLACES = ("", "file", "s3", "gs", "wasbs", "abfss", "hdfs")
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


class ArtifactError(Exception):
    """The server has all but some artifacts."""


class MlflowExperiment:
    """One experiment on one server or in a database file. Connects when it is first needed.

    What MLflow has of a record is its `state`, a dict that `adopt` begins and `bring` moves forward.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self.shown = redacted(uri)
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, str] = {}  # of records that were met, by their id
        self._params: dict[str, set[str]] = {}  # that a run has: they cannot be changed
        self._places: dict[str, str] = {}  # where its files go
        self._closed = False

    def adopt(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What this MLflow has of a record; nothing if the record was with another one."""
        mine = {"uri": self.shown, "experiment": self.experiment}
        same = all(state.get(key) == value for key, value in mine.items())
        return dict(state) if same else {**mine, "history": 0, "artifacts": {}, "synced": False}

    def bring(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        """Send what is missing and move `state` along with it, also if an error ends it in the middle."""
        if not lacking(data, state) and (data["id"] in self._runs or self._exists(state)):
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

    def close(self) -> None:
        """Begin nothing more there: who brings the rest later would not find a run that is made meanwhile."""
        self._closed = True

    def _connect(self) -> Any:
        if self._closed:
            raise TimeoutError("MLflow was given up")
        if self._client is not None:
            return self._client
        for name, value in {**_PATIENCE, **_QUIET}.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        location = None
        if self.uri.startswith(SQLITE):  # MLflow would put artifacts into the current directory
            database = Path(self.uri.removeprefix(SQLITE)).absolute()
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
            run = self._connect().create_run(
                self._experiment_id,
                start_time=int(data["started"] * 1000),
                tags={TAG: data["id"], **nested},
                run_name=title(data),
            )
        elif parent and run.data.tags.get("mlflow.parentRunId") != state["parent_run_id"]:
            client.set_tag(run.info.run_id, "mlflow.parentRunId", state["parent_run_id"])
        state["run_id"] = self._met(data["id"], run)
        return str(state["run_id"])

    def _parent(self, parent: Mapping[str, str], started: float) -> str:
        """The run of a job, also when its record is not here: its name and id are enough to nest under it."""
        if parent["id"] not in self._runs:
            run = self._find(parent["id"]) or self._connect().create_run(
                self._experiment_id,
                start_time=int(started * 1000),
                tags={TAG: parent["id"]},
                run_name=parent["name"],
            )
            self._met(parent["id"], run)
        return self._runs[parent["id"]]

    def _met(self, record_id: str, run: Any) -> str:
        run_id = str(run.info.run_id)
        self._runs[record_id], self._params[run_id] = run_id, set(run.data.params)
        self._places[run_id] = run.info.artifact_uri or ""
        return run_id

    def _describe(self, run_id: str, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        client = self._connect()
        params = {_key(name): value[:6000] for name, value in flat(data["config"]).items()}
        known = self._params[run_id]
        tables = [name for name in data["artifacts"] if name.endswith(".table.json")]
        there, message = client.get_run(run_id).data.tags, data["message"][:5000]
        # the description is ours to change as long as no person has written another one
        changed = there.get(NOTE, "") == there.get(OUR_NOTE, "") != message
        tags = {
            **data["tags"],
            "mlflow.runName": title(data),
            **({NOTE: message, OUR_NOTE: message} if changed else {}),
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
        client.log_batch(run_id, metrics=list(_metrics(data["metrics"], ended, 0)))  # of later steps it draws lines
        bad = data["state"] == "finished" and data["message"]  # all is answered, too much of it with errors
        client.set_terminated(run_id, "FAILED" if bad else STATUS[data["state"]], end_time=ended)

    def _artifacts(
        self, run_id: str, data: Mapping[str, Any], folder: Folder, state: dict[str, Any], *, again: bool
    ) -> None:
        """Files that MLflow does not have; with `again` also those that have changed."""
        problem: Exception | None = self._unsafe(run_id) if data["artifacts"] else None
        for name in data["artifacts"] if problem is None else ():
            if name in state["artifacts"] and not again:
                continue
            try:
                content = folder.read(name)
                digest = hashlib.sha256(content).hexdigest()[:16]
                if state["artifacts"].get(name) != digest:
                    inside, _, last = name.rpartition("/")
                    with tempfile.TemporaryDirectory() as here:
                        file = Path(here, last)
                        file.write_bytes(content)
                        self._connect().log_artifact(run_id, str(file), inside or None)
                    state["artifacts"] = {**state["artifacts"], name: digest}
            except Exception as error:
                problem = problem or error
                state["artifacts"] = {known: value for known, value in state["artifacts"].items() if known != name}
        if problem is not None:
            raise ArtifactError(f"artifacts: {short_error(problem)}") from problem

    def _unsafe(self, run_id: str) -> ValueError | None:
        """Of a database, which anybody may have made: it may want the files, and MLflow's login, for a server."""
        place = self._places[run_id]
        if self.uri.startswith(SERVERS) or urlsplit(place).scheme in PLACES:
            return None
        return ValueError(
            f"{self.experiment} in this database has its files at {redacted(place)[:40]}..., which may be sent your"
            " login; give that server's own address as --tracking-uri"
        )


def _content(data: Mapping[str, Any]) -> str:
    """Changes with what a run says beside its progress."""
    moving = ("history", "age_s", "rows", "mlflow")
    still = {name: value for name, value in data.items() if name not in moving}
    return hashlib.sha256(json.dumps(still, sort_keys=True).encode()).hexdigest()[:16]


def lacking(data: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
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


def short_error(error: BaseException) -> str:
    return redacted(" ".join(str(error).split()) or type(error).__name__)[:200]
