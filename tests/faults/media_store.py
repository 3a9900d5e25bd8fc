"""A media store that fails: an HTTP server that speaks as much S3 as reading takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.faults.faulty_worker import note_injection
from tests.faults.row_faults import BATCH_TIMEOUT_S
from tests.faults.scenario import Scenario

SLOW_S = 1.0  # delay of a slow store
SILENT_S = 60.0  # how long a silent store keeps a connection open
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class StoreHandler(BaseHTTPRequestHandler):
    """Serves the files of a folder; `behaviours` says how it fails, by row."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, behaviours: dict[str, str], *args: object) -> None:
        self.folder, self.behaviours = folder, behaviours
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        file, row = self.folder / name, Path(name).stem
        behaviour = self.behaviours.get(row, "")
        if behaviour and with_body:
            note_injection(self.folder, row)
        if behaviour == "slow":
            time.sleep(SLOW_S)
        if behaviour == "silent" and with_body:
            time.sleep(SILENT_S)
            self.close_connection = True
            return
        if behaviour == "throttled" and with_body:
            self._send(503, SLOW_DOWN)
            return
        if not file.is_file():
            self._send(404, b"")
            return
        data, status, headers = file.read_bytes(), 200, {}
        if byte_range := self.headers.get("Range"):
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        self._send(status, data, with_body, truncate=behaviour == "truncated", **headers)

    def _send(
        self,
        status: int,
        data: bytes,
        with_body: bool = True,
        truncate: bool = False,
        **headers: str,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "ETag": '"x"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data[: len(data) // 2] if truncate else data)
        if truncate:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Print nothing: the job reports what it sees."""


def _serve_one_medium(
    scenario: Scenario, behaviour: str, error: str
) -> Generator[None, None, None]:
    """Serve the media of all rows, one of them with this behaviour."""
    row = scenario.reserve_row(error=error)
    server = None
    if "media_root" not in scenario.overrides:
        behaviours: dict[str, str] = {}
        handler = partial(StoreHandler, scenario.folder, behaviours)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        query = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        scenario.overrides["media_root"] = f"s3://media?{query}"
        scenario.store_behaviours = behaviours
    scenario.store_behaviours[row] = behaviour
    yield
    yield
    scenario.note_row_recovery(row)
    if server:
        server.shutdown()
        server.server_close()


def media_slow(scenario: Scenario) -> Generator[None, None, None]:
    """The store answers late; the row is answered."""
    return _serve_one_medium(scenario, "slow", "")


def media_silent(scenario: Scenario) -> Generator[None, None, None]:
    """The store never answers a request; --batch-timeout ends the reading process."""
    scenario.overrides["batch_timeout"] = BATCH_TIMEOUT_S
    limit = f"--batch-timeout {BATCH_TIMEOUT_S:g} s"
    return _serve_one_medium(
        scenario, "silent", f"TimeoutError: the worker took longer than {limit} each time"
    )


def media_throttled(scenario: Scenario) -> Generator[None, None, None]:
    """The store answers each request with 503. Its message does not always reach the client."""
    return _serve_one_medium(
        scenario, "throttled", "OSError: AWS Error (SLOW_DOWN|SERVICE_UNAVAILABLE)"
    )


def media_truncated(scenario: Scenario) -> Generator[None, None, None]:
    """The store announces the whole medium and sends half of it."""
    return _serve_one_medium(scenario, "truncated", "OSError: AWS Error NETWORK_CONNECTION")
