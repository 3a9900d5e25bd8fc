"""One MLflow experiment, and how records get there. Only this file uses MLflow's client.

Sending anything twice has no effect: a run is found by its record's id, params are sent once, a
metric with the same time and step is the same, artifacts are overwritten. The client is used with
ids only; its global state (active run, tracking URI) is neither read nor set. It is imported when
first needed, because that takes seconds and prints.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.results.run_record import RunRecord, flatten, mlflow_name
from pipelines.results.storage import Folder
from pipelines.text import one_line, redacted

RECORD_TAG = "apet.record"  # the record's id
# MLflow shows the first as a run's description; the second is the description that we wrote.
NOTE_TAG, OUR_NOTE_TAG = "mlflow.note.content", "apet.note"
PARENT_TAG = "mlflow.parentRunId"
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

    The field `mlflow` of a record says what the experiment has of it; only `sync` advances it.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self.display_uri = redacted(uri)
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, Any] = {}  # by record id, as MLflow's client returned them

    def initial_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`state` if it is about this experiment, else one that says MLflow has nothing."""
        target = {"uri": self.display_uri, "experiment": self.experiment}
        return dict(state) if target.items() <= state.items() else target

    def sync(self, record: RunRecord, folder: Folder) -> Exception | None:
        """Send what is missing and note it in the record, also if an error interrupts."""
        data = record.snapshot()
        state = self.initial_state(data["mlflow"])
        try:
            self._send(data, folder, state)
        except Exception as error:  # whatever it is, the job continues
            self._runs.pop(record.id, None)  # the run may have been deleted: look next time
            return error
        finally:
            record.mlflow = state
        return None

    def _send(self, data: Mapping[str, Any], folder: Folder, state: dict[str, Any]) -> None:
        run = self._run(data["id"], mlflow_name(data), data["started"])
        run_id = run.info.run_id
        if state.get("run_id") != run_id:  # a new run, or one that replaces a deleted one
            state.update(run_id=run_id, history=0, artifacts=[], content=None)
        digest = _digest(data)
        is_new = state["content"] != digest
        if is_new:
            self._send_description(run, data)
        self._send_history(run_id, data["history"], state)
        if is_new and data["state"] != "running":
            self._send_end(run_id, data)
            state["artifacts"] = []  # they may have changed
        state["content"] = digest
        if missing := [name for name in data["artifacts"] if name not in state["artifacts"]]:
            self._send_artifacts(run, missing, folder, state)

    def _connect(self) -> Any:
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
        known = client.get_experiment_by_name(self.experiment)
        # If another job creates it at the same moment, the next attempt finds it.
        self._experiment_id = (
            known.experiment_id
            if known
            else client.create_experiment(self.experiment, artifact_location=location)
        )
        self._client = client
        return client

    def _run(self, record_id: str, name: str, started: float) -> Any:
        """The run of a record. If there is none, or it was deleted, a new one is created."""
        if record_id not in self._runs:
            client, query = self._connect(), f"tags.`{RECORD_TAG}` = '{record_id}'"
            [run] = client.search_runs([self._experiment_id], query, max_results=1) or [
                client.create_run(
                    self._experiment_id,
                    start_time=int(started * 1000),
                    tags={RECORD_TAG: record_id},
                    run_name=name,
                )
            ]
            self._runs[record_id] = run
        return self._runs[record_id]

    def _send_description(self, run: Any, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        client, run_id = self._connect(), run.info.run_id
        sent = run.data.params  # these cannot be changed
        params = {_name(key): text[:MAX_PARAM] for key, text in flatten(data["config"]).items()}
        tags = {**data["tags"], "mlflow.runName": mlflow_name(data)}
        # The description is ours to change as long as nobody has written another one.
        current, message = client.get_run(run_id).data.tags, data["message"][:MAX_TAG]
        if current.get(NOTE_TAG, "") == current.get(OUR_NOTE_TAG, "") != message:
            tags |= {NOTE_TAG: message, OUR_NOTE_TAG: message}
        if parent := data["parent"]:  # its name and id are enough: its record may be elsewhere
            own = self._run(parent["id"], parent["name"], data["started"])
            tags[PARENT_TAG] = own.info.run_id
        if tables := [name for name in data["artifacts"] if name.endswith(".table.json")]:
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
        while state["history"] < len(history):
            points = history[state["history"] : state["history"] + MAX_POINTS]
            metrics = [metric for point in points for metric in _metrics(**point)]
            self._connect().log_batch(run_id, metrics=metrics)
            state["history"] += len(points)

    def _send_end(self, run_id: str, data: Mapping[str, Any]) -> None:
        client = self._connect()
        ended = int((data["ended"] or data["started"]) * 1000)
        # Step 0: for a metric with later steps MLflow draws a line, not a bar.
        client.log_batch(run_id, metrics=list(_metrics(ended, 0, **data["metrics"])))
        # A finished run has a message if too many of its answers are errors.
        has_failed = data["state"] == "finished" and data["message"]
        status = "FAILED" if has_failed else data["state"].upper()
        client.set_terminated(run_id, status, end_time=ended)

    def _send_artifacts(
        self, run: Any, names: Sequence[str], folder: Folder, state: dict[str, Any]
    ) -> None:
        """Send files, which are all texts. One that fails does not stop the others."""
        uri = redacted(run.info.artifact_uri or "")
        if not self.uri.startswith(SERVERS) and urlsplit(uri).scheme not in ARTIFACT_SCHEMES:
            # Anybody may have made the database.
            raise ArtifactError(
                f"artifacts: {self.experiment} in this database has its files at {uri[:40]}...,"
                " which may be sent your login; give that server's own address as --tracking-uri"
            )
        problem: Exception | None = None
        for name in names:
            try:
                self._connect().log_text(run.info.run_id, folder.read(name).decode(), name)
                state["artifacts"] = [*state["artifacts"], name]
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise ArtifactError(f"artifacts: {short_error(problem)}") from problem


def _digest(data: Mapping[str, Any]) -> str:
    """Changes with everything in a record except its progress."""
    moving = ("history", "age_s", "rows", "mlflow")
    fixed = {name: value for name, value in data.items() if name not in moving}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _metrics(ts_ms: float, step: float, **values: float | None) -> Iterable[Any]:
    from mlflow.entities import Metric

    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield Metric(_name(name), float(value), int(ts_ms), int(step))


def _name(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:MAX_NAME]


def short_error(error: BaseException) -> str:
    """The message of an error for one line, or its class."""
    return (one_line(error) or type(error).__name__)[:MAX_ERROR]
