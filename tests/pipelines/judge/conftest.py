"""A fixture that starts chat servers for the tests of judges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.judge.endpoint import KEY
from tests.pipelines.judge.chat_server import ChatServer, Responder, Serve


@pytest.fixture
def serve(servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY, raising=False)
    started: list[ChatServer] = []

    def start(respond: Responder) -> ChatServer:
        started.append(ChatServer(respond))
        return started[-1]

    yield start
    for server in started:
        server.close()
