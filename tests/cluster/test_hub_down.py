"""A job with a cached model while the hub accepts connections and never answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, tiny

COMMIT = "1" * 40


class SilentHub:
    """Accepts connections on a loopback port, and never answers."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self.server.accept()[0])
            except OSError:
                return

    def requests(self) -> list[bytes]:
        """First lines of new requests about the model; huggingface_hub asks other things, too."""
        lines = []
        while self.connections:
            with self.connections.pop() as connection:
                lines.append(connection.recv(2000).split(b"\r\n")[0])
        return [line for line in lines if b"org/m" in line]

    def close(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def hub() -> Iterator[SilentHub]:
    hub = SilentHub()
    yield hub
    hub.close()


@pytest.mark.usefixtures("servers", "subprocesses")
@pytest.mark.parametrize("revision", [COMMIT, None], ids=["commit", "branch"])
def test_cached_model_waits_for_the_hub_once(
    hub: SilentHub, revision: str | None, tmp_path: Path
) -> None:
    """Driver, tasks and workers: transformers alone would ask some twenty times in each."""
    tiny.save("llava", tmp_path / "hub" / "models--org--m" / "snapshots" / COMMIT)
    tiny.image(40, 30).save(tmp_path / "a.png")
    row = {"id": "1", "media": "a.png", "question": "What?"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    command = [sys.executable, "jobs/eval_image.py", "--model", "org/m", "--method", "vanilla"]
    command += ["--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "results")]
    command += ["--max-new-tokens", "2", "--actors", "1"]
    command += ["--revision", revision] if revision else []
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub")}

    def run() -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = run()
    assert len(hub.requests()) == 1
    reason = "the hub does not answer; org/m is read from the local cache"
    copy = f"the hub did not tell the commit; using the local copy of org/m@main, commit {COMMIT}"
    assert (reason if revision else copy) in output
    assert "All answers exist already" in run()
    assert hub.requests() == []
