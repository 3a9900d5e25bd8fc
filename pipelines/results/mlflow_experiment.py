"""One MLflow experiment, and how records get there. Only this file uses MLflow's client.

Sending anything twice has no effect: a run is found by its record's id, params are sent once, a
metric with the same time and step is the same, artifacts are overwritten. The client is used with
ids only; its global state (active run, tracking URI) is neither read nor set. It is imported when
first needed, because that takes seconds and prints.
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

from pipelines.results.run_record import flatten, mlflow_name
from pipelines.results.storage import Folder
from pipelines.text import one_line, redacted

RECORD_TAG = "apet.record"  # the record's id
# MLflow shows the first as a run's description; the second is the description that we wrote.
NOTE_TAG, OUR_NOTE_TAG = "mlflow.note.content", "apet.note"
PARENT_TAG = "mlflow.parentRunId"
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://", "databricks")  # all other addresses are databases
# Where runs in a database may have their files: elsewhere MLflow's client may send its login.
ARTIFACT_SCHEMES = ("", "file", "s3", "gs", "wasbs", "abfss", "hdfs")
# Limits of MLflow's fields.
MAX_PARAM, MAX_TAG, MAX_NAME, MAX_DIGEST = 6000, 5000, 250, 36
MAX_POINTS = 50  # of the history in one request
MAX_ERROR = 200  # characters of an error in a message
_ENVIRONMENT = {
    # By default MLflow would try for four minutes if a server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Nothing is printed or sent beside the runs.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class ArtifactError(Exception):
    """The server has everything except some artifacts."""


class MlflowExperiment:
    """One experiment on a server or in a database file. Connects when first needed.

    A `state` dict says what MLflow has of a record: `initial_state` creates it, `sync` advances it.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self.display_uri = redacted(uri)
        self._client: Any = None
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}  # by record id
        self._params: dict[str, set[str]] = {}  # by run: its params, which cannot be changed
        self._artifact_uris: dict[str, str] = {}  # by run
        self._closed = False

    def initial_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`state` if it is about this experiment, else one that says MLflow has nothing."""
        target = {"uri": self.display_uri, "experiment": self.experiment}
        if all(state.get(key) == value for key, value in target.items()):
            return dict(state)
        return {**target, "history": 0, "artifacts": {}, "synced": False}

    def sync(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        """Send what is missing. `state` advances with it, also if an error interrupts."""
        if not is_behind(data, state) and (data["id"] in self._run_ids or self._run_exists(state)):
            return
        state["synced"] = False
        try:
            self._send(data, folder, state)
        except Exception:
            self._run_ids.pop(data["id"], None)  # the run may have been deleted: look next time
            raise
        state["synced"] = True

    def _send(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        run_id = self._find_or_create_run(data, state)
        digest = _digest(data)
        is_new = state.get("content") != digest
        if is_new:
            self._send_description(run_id, data)
        self._send_history(run_id, data["history"], state)
        if is_new:
            self._send_end(run_id, data)
            state["content"] = digest
        changed = is_new and data["state"] != "running"
        self._send_artifacts(run_id, data["artifacts"], folder, state, changed=changed)

    def close(self) -> None:
        """Refuse further calls: a later sync would not find a run that is created meanwhile."""
        self._closed = True

    def _connect(self) -> Any:
        if self._closed:
            raise TimeoutError("the connection to MLflow was given up")
        if self._client is not None:
            return self._client
        for name, value in _ENVIRONMENT.items():
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
        experiment: Any = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                client.create_experiment(self.experiment, artifact_location=location)
            except Exception:  # another job may have created it just now
                if client.get_experiment_by_name(self.experiment) is None:
                    raise
            experiment = client.get_experiment_by_name(self.experiment)
        if experiment.lifecycle_stage != "active":
            raise ValueError(
                f"the experiment {self.experiment!r} is deleted: restore it or name another"
            )
        self._experiment_id = experiment.experiment_id
        self._client = client
        return client

    def _run_exists(self, state: Mapping[str, Any]) -> bool:
        return bool(state.get("run_id")) and self._get_run(state["run_id"]) is not None

    def _get_run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._connect().get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _find_run(self, record_id: str) -> Any:
        query = f"tags.`{RECORD_TAG}` = '{record_id}'"
        runs = self._connect().search_runs([self._experiment_id], query, max_results=1)
        return runs[0] if runs else None

    def _create_run(self, record_id: str, name: str, started: float, tags: dict[str, str]) -> Any:
        return self._connect().create_run(
            self._experiment_id,
            start_time=int(started * 1000),
            tags={RECORD_TAG: record_id, **tags},
            run_name=name,
        )

    def _find_or_create_run(self, data: Mapping[str, Any], state: dict[str, Any]) -> str:
        """The run id of a record. If the run is gone, a new one is created and gets everything."""
        run_id = self._run_ids.get(data["id"])
        if run_id is not None and run_id == state.get("run_id"):
            return run_id
        client = self._connect()
        run = self._get_run(state["run_id"]) if state.get("run_id") else None
        run = run or self._find_run(data["id"])
        tags = {}
        if data["parent"]:
            state["parent_run_id"] = self._parent_run(data["parent"], data["started"])
            tags = {PARENT_TAG: state["parent_run_id"]}
        if run is None:
            state.update(history=0, artifacts={}, content=None)
            run = self._create_run(data["id"], mlflow_name(data), data["started"], tags)
        elif tags and run.data.tags.get(PARENT_TAG) != tags[PARENT_TAG]:
            client.set_tag(run.info.run_id, PARENT_TAG, tags[PARENT_TAG])
        state["run_id"] = self._remember(data["id"], run)
        return str(state["run_id"])

    def _parent_run(self, parent: Mapping[str, str], started: float) -> str:
        """The run id of a job. Its name and id are enough: its record may be elsewhere."""
        if parent["id"] not in self._run_ids:
            run = self._find_run(parent["id"])
            run = run or self._create_run(parent["id"], parent["name"], started, {})
            self._remember(parent["id"], run)
        return self._run_ids[parent["id"]]

    def _remember(self, record_id: str, run: Any) -> str:
        run_id = str(run.info.run_id)
        self._run_ids[record_id], self._params[run_id] = run_id, set(run.data.params)
        self._artifact_uris[run_id] = run.info.artifact_uri or ""
        return run_id

    def _send_description(self, run_id: str, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        client = self._connect()
        sent = self._params[run_id]
        params = {_name(key): text[:MAX_PARAM] for key, text in flatten(data["config"]).items()}
        tags = {**data["tags"], "mlflow.runName": mlflow_name(data)}
        # The description is ours to change as long as nobody has written another one.
        current, message = client.get_run(run_id).data.tags, data["message"][:MAX_TAG]
        if current.get(NOTE_TAG, "") == current.get(OUR_NOTE_TAG, "") != message:
            tags |= {NOTE_TAG: message, OUR_NOTE_TAG: message}
        tables = [name for name in data["artifacts"] if name.endswith(".table.json")]
        if tables:
            entries = [{"path": name, "type": "table"} for name in tables]
            tags["mlflow.loggedArtifacts"] = json.dumps(entries)
        client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in params.items() if name not in sent],
            tags=[RunTag(_name(name), str(value)[:MAX_TAG]) for name, value in tags.items()],
        )
        sent.update(params)
        if dataset := data["dataset"]:
            source = json.dumps({"uri": dataset.get("source", "")})
            entity = Dataset(dataset["name"], dataset["digest"][:MAX_DIGEST], "local", source)
            tag = InputTag("mlflow.data.context", "eval")
            client.log_inputs(run_id, [DatasetInput(entity, [tag])])
        if data["state"] == "running":
            client.update_run(run_id, status="RUNNING")

    def _send_history(
        self, run_id: str, history: list[dict[str, float]], state: dict[str, Any]
    ) -> None:
        client = self._connect()
        while state["history"] < len(history):
            points = history[state["history"] : state["history"] + MAX_POINTS]
            metrics: list[Any] = []
            for point in points:
                values = {
                    name: value for name, value in point.items() if name not in ("ts_ms", "step")
                }
                metrics += _metrics(values, int(point["ts_ms"]), int(point["step"]))
            client.log_batch(run_id, metrics=metrics)
            state["history"] += len(points)

    def _send_end(self, run_id: str, data: Mapping[str, Any]) -> None:
        if data["state"] == "running":
            return
        client = self._connect()
        ended = int((data["ended"] or data["started"]) * 1000)
        # Step 0: for a metric with later steps MLflow draws a line, not a bar.
        client.log_batch(run_id, metrics=list(_metrics(data["metrics"], ended, 0)))
        # A finished run has a message if too many of its answers are errors.
        has_failed = data["state"] == "finished" and data["message"]
        status = "FAILED" if has_failed else STATUS[data["state"]]
        client.set_terminated(run_id, status, end_time=ended)

    def _send_artifacts(
        self, run_id: str, names: list[str], folder: Folder, state: dict[str, Any], *, changed: bool
    ) -> None:
        """Send the files that MLflow does not have; with `changed` also those that have changed."""
        problem: Exception | None = self._artifact_refusal(run_id) if names else None
        for name in names if problem is None else ():
            if name in state["artifacts"] and not changed:
                continue
            sent = dict(state["artifacts"])
            digest = sent.pop(name, None)
            try:
                content = folder.read(name)
                new_digest = hashlib.sha256(content).hexdigest()[:16]
                if digest != new_digest:
                    self._send_artifact(run_id, name, content)
                state["artifacts"] = {**state["artifacts"], name: new_digest}
            except Exception as error:
                problem = problem or error
                state["artifacts"] = sent
        if problem is not None:
            raise ArtifactError(f"artifacts: {short_error(problem)}") from problem

    def _send_artifact(self, run_id: str, name: str, content: bytes) -> None:
        subfolder, _, base_name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, base_name)
            file.write_bytes(content)
            self._connect().log_artifact(run_id, str(file), subfolder or None)

    def _artifact_refusal(self, run_id: str) -> ValueError | None:
        """An error for a database, made by anybody, whose files MLflow would send to a server."""
        uri = redacted(self._artifact_uris[run_id])
        if self.uri.startswith(SERVERS) or urlsplit(uri).scheme in ARTIFACT_SCHEMES:
            return None
        return ValueError(
            f"{self.experiment} in this database has its files at {uri[:40]}..., which may be sent"
            " your login; give that server's own address as --tracking-uri"
        )


def _digest(data: Mapping[str, Any]) -> str:
    """Changes with everything in a record except its progress."""
    moving = ("history", "age_s", "rows", "mlflow")
    fixed = {name: value for name, value in data.items() if name not in moving}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def is_behind(data: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether a record has anything that MLflow does not have according to `state`."""
    return (
        state.get("content") != _digest(data)
        or state["history"] < len(data["history"])
        or any(name not in state["artifacts"] for name in data["artifacts"])
    )


def _metrics(values: Mapping[str, float | None], ts_ms: int, step: int) -> Iterable[Any]:
    from mlflow.entities import Metric

    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield Metric(_name(name), float(value), ts_ms, step)


def _name(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:MAX_NAME]


def short_error(error: BaseException) -> str:
    """The message of an error for one line, or its class."""
    return (one_line(error) or type(error).__name__)[:MAX_ERROR]
