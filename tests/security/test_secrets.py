"""Secrets in every place where one can enter, and a search through all output of a run on S3."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.config.eval_config import EvalConfig
from pipelines.job import run
from pipelines.judge.endpoint import KEY, Endpoint
from pipelines.judge.run_verdicts import judge_run
from pipelines.report.writer import write_report
from pipelines.results import answers
from pipelines.results.mlflow_tracker import replay
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder, locate
from tests.support import tiny

BIRD = "canary"  # all of them begin with it
ENVIRONMENT = (
    *(
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    ),
    *(KEY, "RAY_AUTH_TOKEN", "OPENAI_API_KEY", "DATABRICKS_TOKEN"),
)
QUESTION = "What is in this picture of a kestrel?"  # no secret, but nothing for a log


@pytest.fixture
def echoing_judge(servers: None) -> Iterator[str]:
    """URL of a judge's server that repeats each request in its verdicts and errors."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            heard = f"{self.path} {list(self.headers.items())}"
            reply = (
                f'{{"pred": "yes", "score": 4}} of a kestrel {heard}'
                if "kestrel? 1" in asked
                else heard
            )
            choice = {"message": {"role": "assistant", "content": reply}}
            data = json.dumps(
                {"model": f"judge {self.headers['Authorization']}", "choices": [choice]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def written_files(root: str, system: pyarrow.fs.FileSystem) -> Iterator[tuple[str, str]]:
    """Name and text of each file below a folder, with the contents of Parquet and databases."""
    for info in system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True)):
        if info.type != pyarrow.fs.FileType.File:
            continue
        with system.open_input_file(info.path) as stream:
            data = bytes(stream.read())
        text = data.decode(errors="replace")
        if info.path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            text += f"{table.schema.metadata} {table.to_pylist()}"
        if info.path.endswith(".db"):
            with contextlib.closing(sqlite3.connect(info.path)) as database:
                text += "\n".join(database.iterdump())
        yield info.path, text


def test_no_secret_is_written_logged_or_sent(
    cluster: str,
    checkpoint: Callable[[str], Path],
    bucket: str,
    echoing_judge: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    system, _ = locate(f"s3://apet/x?{bucket}")
    picture = io.BytesIO()
    tiny.image(30, 24).save(picture, format="PNG")
    media = [
        *("0.png", "1.png"),
        f"s3://key:{BIRD}-row-password@apet/data/0.png",
        f"s3://apet/data/0.png?secret_key={BIRD}-row-query",
        f"https://{BIRD}-row-token@host/0.png?signature={BIRD}-row-signature",
        f"gs://key:{BIRD}-row-elsewhere@other/0.png",
    ]
    rows = [
        {"id": f"row-{at}", "media": name, "question": f"{QUESTION} {at}", "answers": ["a"]}
        for at, name in enumerate(media)
    ]
    for name, data in (("0.png", picture.getvalue()), ("1.png", picture.getvalue())):
        with system.open_output_stream(f"apet/data/{name}") as stream:
            stream.write(data)
    with system.open_output_stream("apet/rows/rows.jsonl") as stream:
        stream.write("\n".join(map(json.dumps, rows)).encode())
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"{BIRD}-{name}")

    output = f"s3://key:{BIRD}-output@apet/results?{bucket}"
    job = EvalConfig.of(
        "image",
        model=str(checkpoint("llava")),
        data=f"s3://key:{BIRD}-data@apet/rows/rows.jsonl?{bucket}",
        media_root=f"s3://key:{BIRD}-media@apet/data?{bucket}",
        output=output,
        tracking_uri=f"http://user:{BIRD}-tracking@127.0.0.1:9",  # where nobody is
        methods=("vanilla",),
        max_new_tokens=2,
        max_error_rate=0.9,
        actors=(1, 1),
    )
    assert run(job) == 0
    [answered] = {
        path.split("/")[2]
        for path, _ in written_files("apet/results", system)
        if path.endswith(".parquet")
    }
    folder = Folder.of(output).child(answered)
    table, record = answers.read(folder), RunRecord.load(folder)
    assert sorted(table["row_id"].to_pylist()) == [row["id"] for row in rows]
    status = dict(zip(table["row_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert (status["row-0"], status["row-1"]) == ("ok", "ok")
    errors = list(status.values()).count("error")
    assert record.state == "finished"
    assert record.rows == {"wanted": len(rows), "done": len(rows), "error": errors}
    assert "endpoint_override" not in json.dumps(record.snapshot())
    judge = Endpoint(
        f"{echoing_judge}?api-key={BIRD}-judge-query",
        "gpt",
        cache=Folder.of(str(tmp_path / "cache")),
        tries=1,
    )
    print(judge_run(folder, judge))
    write_report([output])
    assert replay(output, f"sqlite:///{tmp_path}/mlflow.db", "apet")
    assert run(job) == 0  # once more, with nothing to do

    said = capfd.readouterr()
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    local = pyarrow.fs.LocalFileSystem()
    texts = {"standard output": said.out, "standard error": said.err}
    kept = dict([*written_files("apet/results", system), *written_files(str(tmp_path), local)])
    logged = dict(written_files(str(logs), local))
    for name, text in {**texts, **kept, **logged}.items():
        at = text.find(BIRD)
        assert at < 0, f"{name}: {text[max(0, at - 200) : at + 60]}"
    for name, text in {**texts, **logged}.items():
        assert "kestrel" not in text, f"{name} shows what was asked"
    for part, word in (  # what was looked through is what was written
        *(
            (".parquet", "kestrel"),
            ("/cache/", "kestrel"),
            ("mlflow-artifacts", "kestrel"),
            ("mlflow.db", answered[-8:]),
        ),
        *(("record.json", answered), ("report.html", "Vanilla"), ("config.yaml", "max_new_tokens")),
    ):
        assert any(word in text for path, text in kept.items() if part in path), part
    assert logged
