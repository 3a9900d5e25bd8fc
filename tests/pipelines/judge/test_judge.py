"""Judges: the prompt and its replies, a server that misbehaves in every way, and a run's verdicts."""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.judge import Item, Unavailable, Verdict, judge, protocol
from pipelines.judge.endpoint import KEY, Endpoint
from pipelines.judge.run_verdicts import HOPELESS, judge_run, line
from pipelines.metrics.verdicts import Judge
from pipelines.metrics.word_match import Offline
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from tests.support import ROOT

SECRET = "sk-very/secret+key_0123456789"
YES = '{"pred": "yes", "score": 4}'
Act = Callable[["Server", BaseHTTPRequestHandler, int], None]


def items(count: int, start: int = 0) -> list[Item]:
    return [
        Item(f"What is in video {number}?", ("dog",), "A dog.")
        for number in range(start, start + count)
    ]


class Server:
    """Chat completions that go wrong as a test wants: `act` answers the request of that number, from 0."""

    def __init__(self, act: Act) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.now = self.most = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.times.append(time.monotonic())
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                with contextlib.suppress(OSError):  # who asked may have given up
                    act(outer, self, number)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._lock = lock
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def answer(
        self, handler: BaseHTTPRequestHandler, reply: Any, status: int = 200, **headers: str
    ) -> None:
        content = {
            "model": "judge-0613",
            "choices": [{"message": {"role": "assistant", "content": reply}}],
        }
        self.send(handler, json.dumps(content).encode(), status, **headers)

    def send(
        self, handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str
    ) -> None:
        with self._lock:
            self.now -= 1  # before the client can have it
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Act], Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY, raising=False)
    servers: list[Server] = []

    def started(act: Act) -> Server:
        servers.append(Server(act))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, "gpt", **{"timeout": 5.0, "backoff": 0.01, **options})


def fine(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    server.answer(handler, YES)


def once(first: Act) -> Act:
    """Something else for the first request."""
    return lambda server, handler, number: (fine if number else first)(server, handler, number)


def cut(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message"')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def gone(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def slow(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    time.sleep(1.5)
    server.answer(handler, YES)


def dripping(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    """Never as slow as a socket's timeout, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def endless(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
    server.send(handler, b" " * 2**21)


def says(data: bytes, status: int = 200, **headers: str) -> Act:
    return lambda server, handler, number: server.send(handler, data, status, **headers)


@pytest.mark.parametrize(
    "trouble",
    [
        cut,
        gone,
        slow,
        dripping,
        endless,
        says(b"oops", 500),
        says(b"", 503),
        says(b"{}", 429),
        says(b"not json"),
        says(b"[]"),
        says(b'{"choices": []}'),
        says(b'{"error": "overloaded"}'),
    ],
    ids=[
        "cut",
        "gone",
        "slow",
        "dripping",
        "endless",
        "500",
        "503",
        "429",
        "text",
        "list",
        "empty",
        "error",
    ],
)
def test_what_goes_wrong_on_the_way_is_tried_again(
    serve: Callable[[Act], Server], trouble: Act
) -> None:
    server = serve(once(trouble))
    judge = endpoint(server, timeout=0.7)
    assert list(judge.judge(items(1))) == [Verdict(True, 4, YES)]
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]
    assert judge.version == "1 judge-0613"


def test_it_is_not_tried_for_ever_and_others_are_judged(serve: Callable[[Act], Server]) -> None:
    def act(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        if "video 1?" in server.bodies[number]["messages"][1]["content"]:
            server.send(handler, b"broken", 500)
        else:
            server.answer(handler, YES)

    server = serve(act)
    verdicts = list(endpoint(server, tries=3, concurrency=1).judge(items(3)))
    assert [verdict.correct for verdict in verdicts] == [True, None, True]
    assert verdicts[1].error == "unreachable: HTTP 500 broken; tried 3 times"
    assert len(server.bodies) == 5


def test_waits_grow(serve: Callable[[Act], Server]) -> None:
    server = serve(says(b"", 500))
    list(endpoint(server, tries=4, backoff=0.2).judge(items(1)))
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= wait < 1.5 * longest + 0.5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed_by_all_requests(serve: Callable[[Act], Server], form: str) -> None:
    def busy(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        until = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
        server.answer(handler, "later", 429, Retry_After=until)

    server = serve(
        lambda server, handler, number: (busy if number < 2 else fine)(server, handler, number)
    )
    assert all(
        verdict.correct for verdict in endpoint(server, concurrency=2, tries=1).judge(items(6))
    )
    assert server.times[2] - server.times[0] >= 0.99  # a date has whole seconds
    assert len(server.bodies) == 8


def test_a_server_that_wants_an_hour_ends_it(serve: Callable[[Act], Server]) -> None:
    server = serve(says(b"", 429, Retry_After="3600"))
    with pytest.raises(Unavailable, match="left alone for 3600 s"):
        list(endpoint(server).judge(items(5)))


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b""), (404, b""), (302, b""), (429, b'{"error": {"code": "insufficient_quota"}}')],
)
def test_what_no_second_attempt_mends_ends_it(
    serve: Callable[[Act], Server], status: int, body: bytes
) -> None:
    elsewhere = serve(fine)
    server = serve(says(body, status, Location=elsewhere.url))
    with pytest.raises(
        Unavailable, match=f"answers HTTP {status}.*APET_JUDGE_API_KEY, which is not set"
    ):
        list(endpoint(server, concurrency=2).judge(items(100)))
    assert len(server.bodies) < 10
    assert not elsewhere.bodies


def test_a_request_that_is_refused_is_that_items_matter(serve: Callable[[Act], Server]) -> None:
    server = serve(once(says(b"context too long", 400)))
    verdicts = list(endpoint(server, concurrency=1).judge(items(2)))
    assert verdicts[0].error == "refused: HTTP 400 context too long"
    assert verdicts[1].correct
    assert len(server.bodies) == 2


def test_malformed_replies_are_asked_for_again_and_then_counted(
    serve: Callable[[Act], Server],
) -> None:
    server = serve(
        lambda server, handler, number: server.answer(
            handler, "I cannot say." if number < 4 else YES
        )
    )
    first, second = endpoint(server, concurrency=1).judge(items(2))
    assert first == Verdict(None, None, "I cannot say.", "malformed: no verdict in 'I cannot say.'")
    assert second == Verdict(True, 4, YES)
    assert [len(body["messages"]) for body in server.bodies] == [2, 4, 4, 2, 4]
    assert server.bodies[1]["messages"][2] == {"role": "assistant", "content": "I cannot say."}


def test_no_content_is_malformed(serve: Callable[[Act], Server]) -> None:
    server = serve(lambda server, handler, number: server.answer(handler, None))
    (verdict,) = endpoint(server).judge(items(1))
    assert verdict.error == "malformed: no verdict in ''"


def test_halves_of_characters_do_no_harm(serve: Callable[[Act], Server], tmp_path: Path) -> None:
    server = serve(lambda server, handler, number: server.answer(handler, f"\ud83d {YES}"))
    run = a_run(tmp_path / "run", 2)
    assert judge_run(run, endpoint(server, cache=Folder.of(str(tmp_path / "cache")))).rows == 2


def test_replies_that_cannot_be_kept_are_not_paid_for(
    serve: Callable[[Act], Server], tmp_path: Path
) -> None:
    server = serve(fine)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        list(
            endpoint(server, cache=Folder.of(str(tmp_path / "cache")), concurrency=1).judge(
                items(50)
            )
        )
    assert len(server.bodies) <= 1


def test_never_more_requests_at_once_than_allowed_and_as_many(
    serve: Callable[[Act], Server],
) -> None:
    def act(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.05)
        server.send(handler, b"", 500) if number % 5 == 0 else server.answer(handler, YES)

    server = serve(act)
    verdicts = list(endpoint(server, concurrency=3).judge(items(40)))
    assert all(verdict.correct for verdict in verdicts)
    assert server.most == 3


def test_verdicts_are_in_the_items_order_and_items_are_taken_as_needed(
    serve: Callable[[Act], Server],
) -> None:
    def act(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        content = server.bodies[number]["messages"][1]["content"]
        place = int(content.partition("video ")[2].partition("?")[0])
        time.sleep(0.02 * (place % 3))
        server.answer(handler, json.dumps({"pred": "no", "score": place % 6}))

    taken = 0

    def many() -> Iterator[Item]:
        nonlocal taken
        for item in items(1_000_000):
            taken += 1
            yield item

    server = serve(act)
    verdicts = endpoint(server, concurrency=2).judge(many())
    assert [next(verdicts).score for _ in range(30)] == [place % 6 for place in range(30)]
    verdicts.close()  # type: ignore[attr-defined]
    assert taken < 200
    assert len(server.bodies) < 120


def test_nothing_is_paid_twice(serve: Callable[[Act], Server], tmp_path: Path) -> None:
    server, cache = serve(fine), Folder.of(str(tmp_path / "cache"))
    same = [*items(3), *items(3), *items(1)]
    first = list(endpoint(server, cache=cache).judge(same))
    assert len(first) == 7
    assert len(server.bodies) == 3, "equal items ask once"
    again = endpoint(server, cache=cache, concurrency=1)
    assert list(again.judge(same)) == first
    assert again.version == "1 judge-0613", "the model's version is known from the cache, too"
    assert len(server.bodies) == 3
    list(Endpoint(server.url, "other", cache=cache).judge(items(3)))
    list(endpoint(server, cache=cache, request={"seed": 1}).judge(items(3)))
    assert len(server.bodies) == 9, "another judge has not said it"
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert list(endpoint(server, cache=cache).judge(same)) == first, "torn files are none"
    assert len(server.bodies) == 12


def test_an_interrupted_judging_goes_on(serve: Callable[[Act], Server], tmp_path: Path) -> None:
    server, cache = serve(fine), Folder.of(str(tmp_path))
    some = endpoint(server, cache=cache, concurrency=2).judge(items(500))
    for _ in range(10):
        next(some)
    some.close()  # type: ignore[attr-defined]
    paid = len(server.bodies)
    assert 10 <= paid < 500
    assert len(list(endpoint(server, cache=cache).judge(items(500)))) == 500
    assert len(server.bodies) == 500


def test_malformed_replies_are_not_kept(serve: Callable[[Act], Server], tmp_path: Path) -> None:
    server = serve(
        lambda server, handler, number: server.answer(handler, "?" if number < 3 else YES)
    )
    judge = endpoint(server, cache=Folder.of(str(tmp_path)))
    assert [verdict.correct for verdict in judge.judge(items(1))] == [None]
    assert [verdict.correct for verdict in judge.judge(items(1))] == [True]


def test_requests_can_be_adapted(serve: Callable[[Act], Server]) -> None:
    server = serve(fine)
    list(
        endpoint(server, request={"temperature": None, "max_completion_tokens": 50}).judge(items(1))
    )
    assert set(server.bodies[0]) == {"model", "messages", "max_completion_tokens"}
    with pytest.raises(ValueError, match="--request sets messages"):
        endpoint(server, request={"messages": []})


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://a b/v1", "http://[/", ""]
)
def test_wrong_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no address; give one such as http"):
        Endpoint(url, "gpt")


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-\u0441-key", "two words"])
def test_a_broken_key_is_refused_without_saying_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ValueError, match=f"{KEY} holds a space") as error:
        Endpoint("http://localhost/v1", "gpt")
    assert not any(part in str(error.value) for part in key.split())


def test_the_key_comes_from_the_environment_and_appears_nowhere(
    serve: Callable[[Act], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not even where the server repeats it: in replies, in errors, in the name that it has for the model."""

    def act(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        told = handler.headers["Authorization"]
        if number == 0:
            server.send(handler, f"bad header {told}".encode(), 500)
        elif number == 1:
            server.send(handler, json.dumps({"error": told}).replace("/", "\\/").encode(), 400)
        elif number in (2, 3, 4):
            server.answer(handler, f"malformed {told} {'x' * 1990}{told}")
        else:
            content = {"model": told, "choices": [{"message": {"content": f"{told} {YES}"}}]}
            server.send(handler, json.dumps(content).encode())

    server = serve(act)
    monkeypatch.setenv(KEY, f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    run = a_run(tmp_path / "run", 4)
    judge = endpoint(server, concurrency=1, tries=2, cache=Folder.of(str(tmp_path / "cache")))
    outcome = judge_run(run, judge, print)
    print(outcome, line("run", outcome), repr(judge))
    assert outcome.errors == {"refused": 1, "malformed": 1}
    assert set(server.keys) == {f"Bearer {SECRET}"}
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) > 4
    everything = b"".join(kept).decode(errors="replace") + "".join(capfd.readouterr()) + caplog.text
    for part in (SECRET, SECRET.replace("/", "\\/"), SECRET[:10], SECRET[-10:]):
        assert part not in everything
    assert "***" in everything
    refusing = serve(lambda server, handler, number: server.send(handler, SECRET.encode(), 401))
    with pytest.raises(Unavailable, match=r"HTTP 401 \*\*\*;.*which is set") as error:
        list(endpoint(refusing).judge(items(1)))
    assert SECRET not in str(error.getrepr(style="long"))


def test_secrets_of_an_address_are_not_shown(serve: Callable[[Act], Server]) -> None:
    server = serve(
        once(lambda server, handler, number: server.send(handler, handler.path.encode(), 400))
    )
    judge = Endpoint(f"{server.url}/?api-key={SECRET}", "gpt", concurrency=1)
    (verdict,) = judge.judge(items(1))
    assert verdict.error == "refused: HTTP 400 /v1/chat/completions?***"
    assert SECRET not in judge.shown
    for key, says in (("sk-0123456789", f"give the key in {KEY}"), (SECRET, "is no address")):
        with pytest.raises(ValueError, match=says) as error:
            Endpoint(f"http://me:{key}@localhost/v1", "gpt")
        assert key not in str(error.value)


@pytest.mark.parametrize(
    ("reply", "correct", "score"),
    [
        (YES, True, 4),
        ("{'pred': 'no', 'score': 0}", False, 0),
        ("{'pred': 'yes', 'score': 4.8}", True, 4),
        ('{"pred": "Yes", "score": "5"}', True, 5),
        ('{"pred": true, "score": 3}', True, 3),
        (f"Sure! Here it is:\n```json\n{YES}\n```\nAnything else?", True, 4),
        (f"<think>{{'pred': 'no', 'score': 1}}? No.</think>{YES}", True, 4),
        (f"{YES} {YES}", True, 4),
        ('{"score": 2, "pred": "no", "why": "a {cat}"}', None, None),
    ],
)
def test_replies_are_read(reply: str, correct: bool | None, score: int | None) -> None:
    if correct is None:
        with pytest.raises(ValueError, match="no verdict"):
            protocol.parse(reply)
    else:
        assert protocol.parse(reply) == Verdict(correct, score, reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes, 4",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': 'yes'}",
        "{'pred': 'yes', 'score': 6}",
        "{'pred': 'yes', 'score': -1}",
        "{'pred': 'yes', 'score': True}",
        '{"pred": "yes", "score": NaN}',
        "{'pred': 'yes', 'score': None}",
        "{'pred': 'yes', 'score': 10**9**9}",
        "{" + "[" * 1500 + "}",
        YES[:-1],
    ],
)
def test_other_replies_are_malformed(reply: str) -> None:
    with pytest.raises(ValueError, match="no verdict in"):
        protocol.parse(reply)


def test_two_verdicts_are_none() -> None:
    with pytest.raises(ValueError, match="verdicts that differ"):
        protocol.parse("{'pred': 'yes', 'score': 5} or {'pred': 'no', 'score': 0}")


def test_the_prompt_takes_any_text() -> None:
    system, user = protocol.messages(
        Item("What {0} is %s?", ("{pred}", "{pred}", "b"), '{"pred": "yes"}')
    )
    assert system["role"] == "system"
    for told in (
        "Question: What {0} is %s?\n",
        "Correct Answer: {pred} or b\n",
        'Predicted Answer: {"pred": "yes"}\n',
    ):
        assert told in user["content"]
    assert len(protocol.PROMPT_HASH) == 12


@pytest.mark.parametrize(
    ("reference", "prediction", "correct", "score"),
    [
        ("dog", "dog", True, 5),
        ("dog", "The Dog.", True, 5),
        (
            "dog",
            "a dog and a cat",
            True,
            3,
        ),  # F1 of dog, and, cat with dog is 1/2, and half a point is rounded up
        ("dog", "hotdog", False, 0),
        ("dog", "", False, 0),
        ("dog", "I cannot see the video.", False, 0),
        ("two", "2", True, 5),
        ("ice cream", "cream with ice", False, 4),
        ("yes", "Yes, because it is", True, 2),
        ("no", "there is no doubt: yes", False, 2),
        ("a", "A", True, 5),
        ("café", "CAFE\u0301", True, 5),
        ("man's", "man\u2019s", True, 5),
        ("\u72d7", "\u72d7\u3002", True, 5),
        ("...", "...", False, 0),
    ],
)
def test_the_offline_metric(reference: str, prediction: str, correct: bool, score: int) -> None:
    (verdict,) = Offline().judge([Item("", (reference,), prediction)])
    assert (verdict.correct, verdict.error) == (correct, None)
    assert verdict.score == score


def test_the_best_reference_counts() -> None:
    (verdict,) = Offline().judge([Item("", ("cat", "brown dog"), "a brown dog")])
    assert verdict == Verdict(True, 5)


def test_unknown_judges_are_refused() -> None:
    with pytest.raises(
        ValueError, match="there is no judge 'gpt'; there are offline, endpoint, local"
    ):
        judge("gpt")


def test_ray_and_torch_are_for_the_local_judge_alone() -> None:
    code = "import sys, pipelines.judge.endpoint, pipelines.judge.run_verdicts; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "set()\n", done.stderr


# ---------------------------------------------------------------------------------------------------- a run's verdicts


def a_run(place: Path, rows: int, **record: Any) -> Folder:
    """Answers and a record as a job leaves them: two questions a video, all right but every third."""
    folder = Folder.of(str(place))
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
    answers.Block(folder, [str(row["row_id"]) for row in table]).write(table)
    made = RunRecord(
        place.name, metrics={"accuracy": 0.5, "offline/old": 1.0}, tags={"method": "apet"}, **record
    )
    made.rows["done"] = rows
    made.end("finished")
    made.save(folder)
    return folder


class Scripted(Judge):
    name, prompt_hash, version = "scripted/x y", "abc", "7"  # type: ignore[assignment]

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts

    def judge(self, items: Any) -> Iterator[Verdict]:
        for _, verdict in zip(items, self.verdicts, strict=True):
            yield verdict


def test_verdicts_go_beside_the_answers_and_into_the_record(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 6)
    more = [
        {
            "row_id": "s-error",
            "question": "?",
            "reference": ["x"],
            "status": "error",
            "error": "OSError: no file",
        },
        {"row_id": "t-open", "question": "?", "reference": [], "prediction": "x", "status": "ok"},
        {"row_id": "u-open", "question": "?", "prediction": "x", "status": "ok"},
    ]
    answers.Block(run, ["more"]).write(more)
    before = answers.read(run)
    good, bad = Verdict(True, 5, "r"), Verdict(False, 2)
    outcome = judge_run(
        run, Scripted([good, bad, Verdict(None, None, "", "malformed: x"), good, good, bad])
    )
    assert (outcome.rows, outcome.unjudged, outcome.unanswered, outcome.unreferenced) == (
        5,
        1,
        1,
        2,
    )
    assert outcome.accuracy is not None
    assert outcome.accuracy.value == 0.6
    assert outcome.score is not None
    assert outcome.score.value == pytest.approx(19 / 5)
    assert 0 <= outcome.score.low <= 19 / 5 <= outcome.score.high <= 5
    record = RunRecord.load(run)
    assert record.metrics["judge/accuracy"] == 0.6
    assert record.metrics["judge/accuracy_ci_low"] == outcome.accuracy.low
    assert record.metrics["judge/score"] == pytest.approx(3.8)
    assert record.metrics["judge/unjudged_malformed"] == 1
    assert record.metrics["accuracy"] == 0.5
    assert record.tags == {
        "method": "apet",
        "judge/name": "scripted/x y",
        "judge/prompt_hash": "abc",
        "judge/version": "7",
    }
    assert record.history[-1]["judge/accuracy"] == 0.6
    assert outcome.file == "verdicts-scripted-x-y-abc.arrow"
    kept = pa.ipc.open_file(run.read(outcome.file)).read_all()
    assert kept["row_id"].to_pylist() == [f"row-{number:03d}" for number in range(6)]
    assert kept["score"].to_pylist() == [5, 2, None, 5, 5, 2]
    assert kept["error"].to_pylist()[2] == "malformed: x"
    assert kept.schema.metadata[b"judge/name"] == b"scripted/x y"
    assert answers.read(run).equals(before)
    assert not run.exists("lock.json")


def test_judging_again_replaces_the_numbers(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 4)
    judge_run(run, Scripted([Verdict(None, None, "", "malformed: x")] + [Verdict(True, 5)] * 3))
    judge_run(run, Scripted([Verdict(False, 0)] * 4))
    record = RunRecord.load(run)
    assert record.metrics["judge/accuracy"] == 0
    assert "judge/unjudged_malformed" not in record.metrics
    assert [point["judge/accuracy"] for point in record.history] == [1, 0]
    assert [point["judge/unjudged_malformed"] for point in record.history] == [1, 0]


def test_the_offline_metric_is_not_called_a_judge(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 6)
    outcome = judge_run(run, Offline())
    record = RunRecord.load(run)
    assert record.metrics["offline/accuracy"] == pytest.approx(4 / 6)
    assert "offline/old" not in record.metrics
    assert not any(name.startswith("judge/") for name in [*record.metrics, *record.tags])
    assert "NOT the judge" in line("run", outcome)
    assert run.exists("verdicts-offline.arrow")


def test_a_judge_that_fails_with_everything_is_left_alone(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", HOPELESS + 10)
    before = run.read("record.json")
    with pytest.raises(
        Unavailable, match=f"no verdict {HOPELESS} times in a row; the last time unreachable: x"
    ):
        judge_run(run, Scripted([Verdict(None, None, "", "unreachable: x")] * (HOPELESS + 10)))
    assert run.read("record.json") == before
    assert not run.exists("lock.json")


def job(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, KEY: key, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    command = [sys.executable, str(ROOT / "jobs" / "judge.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_the_process_with_an_endpoint(serve: Callable[[Act], Server], tmp_path: Path) -> None:
    server = serve(
        lambda server, handler, number: server.answer(handler, "?" if number < 3 else YES)
    )
    runs = [a_run(tmp_path / name, 6) for name in ("one", "two")]
    folders = [str(tmp_path / name) for name in ("one", "two")]
    command = [*folders, "--url", server.url, "--model", "gpt", "--concurrency", "1"]
    done = job(*command, key=SECRET)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["one"]["judge/unjudged"] == 1
    assert numbers["two"]["judge/accuracy"] == 1
    assert numbers["two"]["judge/version"] == "1 judge-0613"
    assert "accuracy  100.0 % [" in done.stdout
    assert "5 judged, 1 unjudged (1 malformed), 0 without an answer" in done.stdout
    assert len(server.bodies) == 9, "both runs gave the same answers"
    assert SECRET not in done.stdout + done.stderr + "".join(
        str(run.read("record.json")) for run in runs
    )
    assert job(*command, key=SECRET).returncode == 0
    assert len(server.bodies) == 9
    assert (tmp_path / "judge-cache").is_dir()
    assert {file.suffix for file in (tmp_path / "one").iterdir()} == {".parquet", ".json", ".arrow"}
    tracked = job(*command, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", key=SECRET)
    assert tracked.returncode == 0
    assert "mlflow    one: brought" in tracked.stdout


def test_the_process_goes_on_after_an_interrupt(
    serve: Callable[[Act], Server], tmp_path: Path
) -> None:
    def act(server: Server, handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.1)
        server.answer(handler, YES)

    server, run = serve(act), a_run(tmp_path / "run", 60)
    options = ["--judge", "endpoint", "--url", server.url, "--model", "gpt", "--concurrency", "2"]
    command = [sys.executable, str(ROOT / "jobs" / "judge.py"), str(tmp_path / "run"), *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # who tests in the background has it ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, preexec_fn=heard, **pipes) as process:
        while len(server.bodies) < 6:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; replies so far are kept, and the same command goes on from there\n"
    assert len(server.bodies) < 40
    assert not any(name.startswith(("verdicts", "lock")) for name in run.names())
    assert job(str(tmp_path / "run"), *options).returncode == 0
    assert len(server.bodies) == 60


def test_the_process_says_what_is_wrong(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 3)
    empty = job(str(tmp_path / "none"))
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "holds no answers; give the folders of runs" in empty.stderr
    unsure = job(str(tmp_path / "run"), "--url", "http://localhost:1/v1")
    assert (unsure.returncode, unsure.stdout) == (2, "")
    assert "--url is not for --judge offline; APET_JUDGE_API_KEY is not set" in unsure.stderr
    kept = job(str(tmp_path / "run"), "--judge", "offline", "--cache", str(tmp_path / "cache"))
    assert (kept.returncode, kept.stdout) == (2, "")
    assert (
        kept.stderr == "error: --cache is not for --judge offline; name the --judge that you mean\n"
    )


def test_the_process_without_a_key_is_offline(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 6)
    done = job(str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "run: offline  (a metric, NOT the judge)" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["run"]["offline/name"] == "offline"
