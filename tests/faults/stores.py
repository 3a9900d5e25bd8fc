"""A media store that answers badly: an HTTP server that speaks as much S3 as reading takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.faults.model import LIMIT
from tests.faults.scene import Night

LATE = 1.0  # seconds that a slow store thinks
MUTE = 60.0  # and one that says nothing at all


class Store(BaseHTTPRequestHandler):
    """Objects are the files of a folder; `moods` says how it answers for one."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, moods: dict[str, str], *given: object) -> None:
        self.folder, self.moods = folder, moods
        super().__init__(*given)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        file = self.folder / name
        mood = self.moods.get(Path(name).stem, "")
        if mood and body:
            note = self.folder / "hits" / Path(name).stem
            if not note.exists():
                note.write_text(str(datetime.now(UTC).timestamp()))
        if mood == "slow":
            time.sleep(LATE)
        if mood == "mute" and body:
            time.sleep(MUTE)
            self.close_connection = True
            return
        if mood == "busy" and body:
            self._send(
                503,
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
            )
            return
        if not file.is_file():
            self._send(404, b"")
            return
        data, status, headers = file.read_bytes(), 200, {}
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        self._send(status, data, body, cut=mood == "cut", **headers)

    def _send(
        self, status: int, data: bytes, body: bool = True, cut: bool = False, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "ETag": '"x"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, *given: object) -> None:
        """Nothing: the job says what it saw."""


def _served(night: Night, mood: str, error: str) -> Generator[None, None, None]:
    """One medium, for which the store has this mood."""
    name = night.take(error=error)
    server = None
    if "media_root" not in night.given:
        moods: dict[str, str] = {}
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Store, night.folder, moods))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        night.given["media_root"] = f"s3://media?{where}"
        night.moods = moods
    night.moods[name] = mood
    yield
    yield
    night.mended(name)
    if server:
        server.shutdown()
        server.server_close()


def store_slow(night: Night) -> Generator[None, None, None]:
    """It takes its time; the row is answered."""
    return _served(night, "slow", "")


def store_mute(night: Night) -> Generator[None, None, None]:
    """It takes the question and never answers; --batch-timeout ends who reads."""
    night.given["batch_timeout"] = LIMIT
    return _served(
        night,
        "mute",
        f"TimeoutError: the worker took longer than --batch-timeout {LIMIT:g} s each time",
    )


def store_busy(night: Night) -> Generator[None, None, None]:
    """503, each time it is asked. What it says with that does not always reach the client."""
    return _served(night, "busy", "OSError: AWS Error (SLOW_DOWN|SERVICE_UNAVAILABLE)")


def store_cut(night: Night) -> Generator[None, None, None]:
    """It says how long the medium is, and half of it comes."""
    return _served(night, "cut", "OSError: AWS Error NETWORK_CONNECTION")
