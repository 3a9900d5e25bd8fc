"""A chat completion server that misbehaves as a test wants, and runs with answers to judge."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipelines.judge import Item
from pipelines.results.answers import AnswerParts
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder

SECRET = "sk-very/secret+key_0123456789"
YES = '{"pred": "yes", "score": 4}'


class ChatServer:
    """Answers the request of each number, from 0, with `respond`, and records all requests."""

    def __init__(self, respond: Responder) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.running = self.max_running = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.times.append(time.monotonic())
                    outer.running += 1
                    outer.max_running = max(outer.max_running, outer.running)
                with contextlib.suppress(OSError):  # the client may have given up
                    respond(outer, self, number)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        serve = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        serve.start()

    def reply(self, handler: BaseHTTPRequestHandler, content: Any) -> None:
        message = {"role": "assistant", "content": content}
        completion = {"model": "judge-0613", "choices": [{"message": message}]}
        self.send(handler, json.dumps(completion).encode())

    def send(
        self, handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str
    ) -> None:
        with self.lock:
            self.running -= 1  # before the client can send its next request
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


Responder = Callable[[ChatServer, BaseHTTPRequestHandler, int], None]
Serve = Callable[[Responder], ChatServer]


def reply_yes(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
    server.reply(handler, YES)


def replying(content: Any, times: int | None = None) -> Responder:
    """Reply with `content`, or only the first `times` times and with yes after them."""

    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        server.reply(handler, content if times is None or number < times else YES)

    return respond


def sending(data: bytes, status: int = 200, **headers: str) -> Responder:
    return lambda server, handler, number: server.send(handler, data, status, **headers)


def only_first(first: Responder) -> Responder:
    """Respond with `first` once, and with yes after it."""

    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        (reply_yes if number else first)(server, handler, number)

    return respond


def cut_off(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message"')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def disconnect(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def slow(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
    time.sleep(1.5)
    server.reply(handler, YES)


def drip(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
    """Send bytes faster than a socket's timeout, without an end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def make_items(count: int) -> list[Item]:
    return [Item(f"What is in video {i}?", ("dog",), "A dog.") for i in range(count)]


def make_run(path: Path, rows: int) -> Folder:
    """Write a run as a job leaves it: two questions per video, every third answer wrong."""
    folder = Folder.of(str(path))
    table = [
        {
            "row_id": f"row-{number:03d}",
            "media": [f"{number // 2}.mp4"],
            "question": f"What is in video {number}?",
            "reference": ["dog"],
            "prediction": "a cat" if number % 3 == 2 else "dog",
            "status": "ok",
        }
        for number in range(rows)
    ]
    AnswerParts(folder, [str(row["row_id"]) for row in table]).write(table)
    metrics = {"accuracy": 0.5, "offline/old": 1.0}
    record = RunRecord(path.name, metrics=metrics, tags={"method": "apet"})
    record.rows["done"] = rows
    record.end("finished")
    record.save(folder)
    return folder
