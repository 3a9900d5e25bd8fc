"""The endpoint judge against a server that fails in every way."""

from __future__ import annotations

import email.utils
import json
import logging
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipelines.judge import Unavailable, Verdict, endpoint
from pipelines.judge.endpoint import KEY, Endpoint
from pipelines.judge.run_verdicts import judge_run, summarize
from pipelines.results.storage import Folder
from tests.pipelines.judge.chat_server import (
    SECRET,
    YES,
    ChatServer,
    Responder,
    Serve,
    cut_off,
    disconnect,
    drip,
    make_items,
    make_run,
    only_first,
    reply_yes,
    replying,
    sending,
    slow,
)


def make_endpoint(server: ChatServer, **options: Any) -> Endpoint:
    return Endpoint(server.url, "gpt", **{"timeout": 5.0, "backoff": 0.01, **options})


FAILURES = {
    "cut off": cut_off,
    "disconnected": disconnect,
    "slow": slow,
    "dripping": drip,
    "endless": sending(b" " * 2**21),
    "500": sending(b"oops", 500),
    "429": sending(b"{}", 429),
    "no JSON": sending(b"not json"),
    "list": sending(b"[]"),
    "no choices": sending(b'{"choices": []}'),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_failed_request_is_repeated(serve: Serve, failure: Responder) -> None:
    server = serve(only_first(failure))
    judge = make_endpoint(server, timeout=0.7)
    assert list(judge.judge(make_items(1))) == [Verdict(True, 4, YES)]
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]
    assert judge.version == "1 judge-0613"


def test_item_that_always_fails_does_not_stop_the_others(serve: Serve) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        if "video 1?" in server.bodies[number]["messages"][1]["content"]:
            server.send(handler, b"broken", 500)
        else:
            server.reply(handler, YES)

    server = serve(respond)
    verdicts = list(make_endpoint(server, tries=3, concurrency=1).judge(make_items(3)))
    assert [verdict.correct for verdict in verdicts] == [True, None, True]
    assert verdicts[1].error == "unreachable: HTTP 500 broken; tried 3 times"
    assert len(server.bodies) == 5


def test_waits_between_attempts_double(serve: Serve) -> None:
    server = serve(sending(b"", 500))
    list(make_endpoint(server, tries=4, backoff=0.2).judge(make_items(1)))
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= wait < 1.5 * longest + 0.5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_delays_all_requests(serve: Serve, form: str) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        date = email.utils.formatdate(time.time() + 2, usegmt=True)
        if number < 2:
            server.send(handler, b"", 429, Retry_After="1" if form == "seconds" else date)
        else:
            server.reply(handler, YES)

    server = serve(respond)
    verdicts = make_endpoint(server, concurrency=2, tries=1).judge(make_items(6))
    assert all(verdict.correct for verdict in verdicts)
    assert server.times[2] - server.times[0] >= 0.99  # a date has whole seconds
    assert len(server.bodies) == 8


def test_retry_after_an_hour_stops_the_judging(serve: Serve) -> None:
    server = serve(sending(b"", 429, Retry_After="3600"))
    with pytest.raises(Unavailable, match="asks to wait 3600 s"):
        list(make_endpoint(server).judge(make_items(5)))


def test_server_that_names_no_time_is_not_asked_forever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses that we choose count as waiting, too."""
    monkeypatch.setattr(endpoint, "MAX_SERVER_WAIT_S", 1.0)
    server = serve(sending(b"", 429, Retry_After="0"))
    with pytest.raises(Unavailable, match="asks to wait"):
        list(make_endpoint(server, backoff=0.2).judge(make_items(1)))
    assert len(server.bodies) < 8


def test_status_counts_where_the_body_cannot_be_read(serve: Serve) -> None:
    server = serve(sending(b" " * 2**21, 401))
    with pytest.raises(Unavailable, match="answers HTTP 401"):
        list(make_endpoint(server).judge(make_items(1)))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b""), (404, b""), (302, b""), (429, b'{"error": {"code": "insufficient_quota"}}')],
)
def test_fatal_status_stops_the_judging(serve: Serve, status: int, body: bytes) -> None:
    elsewhere = serve(reply_yes)
    server = serve(sending(body, status, Location=elsewhere.url))
    message = f"answers HTTP {status}.*APET_JUDGE_API_KEY, which is not set"
    with pytest.raises(Unavailable, match=message):
        list(make_endpoint(server, concurrency=2).judge(make_items(100)))
    assert len(server.bodies) < 10
    assert not elsewhere.bodies


def test_refused_request_affects_only_its_item(serve: Serve) -> None:
    server = serve(only_first(sending(b"context too long", 400)))
    verdicts = list(make_endpoint(server, concurrency=1).judge(make_items(2)))
    assert verdicts[0].error == "refused: HTTP 400 context too long"
    assert verdicts[1].correct
    assert len(server.bodies) == 2


def test_malformed_reply_is_requested_three_times(serve: Serve) -> None:
    server = serve(replying("I cannot say.", times=4))
    first, second = make_endpoint(server, concurrency=1).judge(make_items(2))
    assert first == Verdict(None, None, "I cannot say.", "malformed: no verdict in 'I cannot say.'")
    assert second == Verdict(True, 4, YES)
    assert [len(body["messages"]) for body in server.bodies] == [2, 4, 4, 2, 4]
    assert server.bodies[1]["messages"][2] == {"role": "assistant", "content": "I cannot say."}


def test_missing_content_is_malformed(serve: Serve) -> None:
    (verdict,) = make_endpoint(serve(replying(None))).judge(make_items(1))
    assert verdict.error == "malformed: no verdict in ''"


def test_lone_surrogates_in_a_reply_can_be_stored(serve: Serve, tmp_path: Path) -> None:
    server, run = serve(replying(f"\ud83d {YES}")), make_run(tmp_path / "run", 2)
    cache = Folder.of(str(tmp_path / "cache"))
    assert judge_run(run, make_endpoint(server, cache=cache)).rows == 2


def test_unwritable_cache_stops_the_judging(serve: Serve, tmp_path: Path) -> None:
    server = serve(reply_yes)
    (tmp_path / "cache").write_text("a file")
    cache = Folder.of(str(tmp_path / "cache"))
    with pytest.raises(OSError, match="cache"):
        list(make_endpoint(server, cache=cache, concurrency=1).judge(make_items(50)))
    assert len(server.bodies) <= 1


def test_concurrency_is_reached_and_not_exceeded(serve: Serve) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.05)
        if number % 5 == 0:
            server.send(handler, b"", 500)
        else:
            server.reply(handler, YES)

    server = serve(respond)
    verdicts = list(make_endpoint(server, concurrency=3).judge(make_items(40)))
    assert all(verdict.correct for verdict in verdicts)
    assert server.max_running == 3


def test_verdicts_keep_the_order_and_nothing_is_asked_after_them(serve: Serve) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        content = server.bodies[number]["messages"][1]["content"]
        item = int(content.partition("video ")[2].partition("?")[0])
        time.sleep(0.02 * (item % 3))
        server.reply(handler, json.dumps({"pred": "no", "score": item % 6}))

    server = serve(respond)
    verdicts = make_endpoint(server, concurrency=2).judge(make_items(10_000))
    assert [next(verdicts).score for _ in range(30)] == [item % 6 for item in range(30)]
    verdicts.close()  # type: ignore[attr-defined]
    assert len(server.bodies) < 120


def test_cache_prevents_paying_twice(serve: Serve, tmp_path: Path) -> None:
    server, cache = serve(reply_yes), Folder.of(str(tmp_path / "cache"))
    items = [*make_items(3), *make_items(3), *make_items(1)]
    first = list(make_endpoint(server, cache=cache).judge(items))
    assert len(first) == 7
    assert len(server.bodies) == 3, "equal items are requested once"
    again = make_endpoint(server, cache=cache, concurrency=1)
    assert list(again.judge(items)) == first
    assert again.version == "1 judge-0613", "the model's version is stored, too"
    assert len(server.bodies) == 3
    list(Endpoint(server.url, "other", cache=cache).judge(make_items(3)))
    list(make_endpoint(server, cache=cache, request={"seed": 1}).judge(make_items(3)))
    assert len(server.bodies) == 9, "another judge's replies are not used"
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert list(make_endpoint(server, cache=cache).judge(items)) == first
    assert len(server.bodies) == 12, "torn files are ignored"


def test_interrupted_judging_resumes_from_the_cache(serve: Serve, tmp_path: Path) -> None:
    server, cache = serve(reply_yes), Folder.of(str(tmp_path))
    interrupted = make_endpoint(server, cache=cache, concurrency=2).judge(make_items(500))
    for _ in range(10):
        next(interrupted)
    interrupted.close()  # type: ignore[attr-defined]
    assert 10 <= len(server.bodies) < 500
    assert len(list(make_endpoint(server, cache=cache).judge(make_items(500)))) == 500
    assert len(server.bodies) == 500


def test_malformed_replies_are_not_cached(serve: Serve, tmp_path: Path) -> None:
    judge = make_endpoint(serve(replying("?", times=3)), cache=Folder.of(str(tmp_path)))
    assert [verdict.correct for verdict in judge.judge(make_items(1))] == [None]
    assert [verdict.correct for verdict in judge.judge(make_items(1))] == [True]


def test_request_fields_are_added_and_omitted(serve: Serve) -> None:
    server = serve(reply_yes)
    request = {"temperature": None, "max_completion_tokens": 50}
    list(make_endpoint(server, request=request).judge(make_items(1)))
    assert set(server.bodies[0]) == {"model", "messages", "max_completion_tokens"}
    with pytest.raises(ValueError, match="--request cannot set messages"):
        make_endpoint(server, request={"messages": []})


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://a b/v1", "http://[/", ""]
)
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not a valid address: .*; try http"):
        Endpoint(url, "gpt")


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-\u0441-key", "two words"])
def test_malformed_key_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ValueError, match=f"{KEY} has a space") as error:
        Endpoint("http://localhost/v1", "gpt")
    assert not any(part in str(error.value) for part in key.split())


def test_key_is_scrubbed_wherever_the_server_repeats_it(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        key = handler.headers["Authorization"]
        if number == 0:
            server.send(handler, f"bad header {key}".encode(), 500)
        elif number == 1:
            server.send(handler, json.dumps({"error": key}).replace("/", "\\/").encode(), 400)
        elif number in (2, 3, 4):
            server.reply(handler, f"malformed {key} {'x' * 1990}{key}")
        else:
            completion = {"model": key, "choices": [{"message": {"content": f"{key} {YES}"}}]}
            server.send(handler, json.dumps(completion).encode())

    server = serve(respond)
    monkeypatch.setenv(KEY, f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    run, cache = make_run(tmp_path / "run", 4), Folder.of(str(tmp_path / "cache"))
    judge = make_endpoint(server, concurrency=1, tries=2, cache=cache)
    outcome = judge_run(run, judge, print)
    print(outcome, summarize("run", outcome), repr(judge))
    assert outcome.errors == {"refused": 1, "malformed": 1}
    assert set(server.keys) == {f"Bearer {SECRET}"}
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 4
    texts = b"".join(files).decode(errors="replace") + "".join(capfd.readouterr()) + caplog.text
    for part in (SECRET, SECRET.replace("/", "\\/"), SECRET[:10], SECRET[-10:]):
        assert part not in texts
    assert "***" in texts
    refusing = serve(sending(SECRET.encode(), 401))
    with pytest.raises(Unavailable, match=r"HTTP 401 \*\*\*;.*which is set") as error:
        list(make_endpoint(refusing).judge(make_items(1)))
    assert SECRET not in str(error.getrepr(style="long"))


def test_secrets_in_the_address_are_not_shown(serve: Serve) -> None:
    def send_path(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        server.send(handler, handler.path.encode(), 400)

    server = serve(only_first(send_path))
    judge = Endpoint(f"{server.url}/?api-key={SECRET}", "gpt", concurrency=1)
    (verdict,) = judge.judge(make_items(1))
    assert verdict.error == "refused: HTTP 400 /v1/chat/completions?***"
    assert SECRET not in judge.address
    passwords = (("sk-0123456789", f"put the key in {KEY}"), (SECRET, "is not a valid address"))
    for password, message in passwords:
        with pytest.raises(ValueError, match=message) as error:
            Endpoint(f"http://me:{password}@localhost/v1", "gpt")
        assert password not in str(error.value)
