"""A model behind an OpenAI-compatible address: a vendor's, or one of your own (vLLM, llama.cpp, Ollama, ...).

What goes wrong on the way is tried again, each time after a longer and slightly random wait; a server that says how
long to wait is obeyed by all requests. What no second attempt can mend (a refused key, an unknown model, no credit)
ends it at once. Redirects are not followed: they would carry the key to somewhere else.

The key comes from the environment alone, goes into one header, and is blotted out of everything that comes back.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import itertools
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from weakref import WeakValueDictionary

from pipelines.judge import protocol
from pipelines.judge.cache import Cache
from pipelines.metrics.verdicts import Item, Judge, Unavailable, Verdict
from pipelines.results.storage import Folder
from pipelines.text import redacted

KEY = "APET_JUDGE_API_KEY"
AHEAD = 32  # items taken before the oldest has its verdict, times `concurrency`
SECRET = (
    8  # characters from which on a key is one: "none" and "EMPTY" are words that a reply may hold
)
LONGEST_REPLY = 2**20  # bytes
LONGEST_PAUSE = 60.0  # seconds between two attempts, where the server does not say
PATIENCE = 600.0  # seconds that a server's own requests to wait may add up to, for one item
_HOPELESS = (401, 402, 403, 404, 405)
_PASSING = (408, 409, 425, 429)  # and all from 500


class Endpoint(Judge):
    """Asks `url`/chat/completions.

    key         None: what the environment says, or no key
    cache       where replies are kept; None: nowhere
    concurrency requests at once, never more
    timeout     seconds for one request, from its start to its last byte
    tries       of one request that fails on the way
    backoff     seconds before the second one; it doubles with each
    request     fields to add to every request, or with None to leave out: {"max_completion_tokens": 50}
    """

    prompt_hash = protocol.PROMPT_HASH

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        cache: Folder | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        tries: int = 6,
        backoff: float = 1.0,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._key = _checked((os.environ.get(KEY, "") if key is None else key).strip())
        self._target, self.shown, query = _address(url)
        self._secrets = [
            form
            for secret in (self._key, query)
            if len(secret) >= SECRET
            for form in _forms(secret)
        ]
        self.name = f"endpoint/{model}"
        self.concurrency, self.timeout, self.tries, self.backoff = (
            concurrency,
            timeout,
            tries,
            backoff,
        )
        taken = {"model", "messages", "stream", "n"} & set(request or {})
        if taken:
            raise ValueError(
                f"--request sets {', '.join(sorted(taken))}, which is not its to set; leave it out"
            )
        fields = {"model": model, "temperature": 0, **(request or {})}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._cache = Cache(cache)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._models: set[str] = set()  # as the server names them
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0  # by time.monotonic: the server wants to be left alone until then

    @property
    def version(self) -> str:
        return " ".join([protocol.VERSION, *sorted(self._models)])

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        self._stop.clear()
        window: deque[Future[Verdict]] = deque()
        under_way: WeakValueDictionary[str, Future[Verdict]] = (
            WeakValueDictionary()
        )  # equal items ask once
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            try:
                for item in items:
                    asked = protocol.messages(item)
                    key = Cache.key(
                        url=self.shown, fields=self._fields, prompt=self.prompt_hash, messages=asked
                    )
                    future = under_way.get(key)
                    if future is None:
                        future = under_way[key] = pool.submit(self._verdict, asked, key)
                    window.append(future)
                    if len(window) >= self.concurrency * AHEAD:
                        yield window.popleft().result()
                while window:
                    yield window.popleft().result()
            finally:  # replies to requests under way are paid for: they are awaited and kept, and nothing else is asked
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _verdict(self, asked: protocol.Messages, key: str) -> Verdict:
        kept = self._cache.get(key)
        if kept is not None:
            with contextlib.suppress(ValueError):  # read by an older rule
                verdict = protocol.parse(kept["reply"])
                self._models.update(filter(None, [kept.get("model")]))
                return verdict
        reply, problem, turn = "", "", asked
        for _ in range(protocol.REPLIES):
            try:
                self._pause(0)
                reply, model = self._reply(turn)
                verdict = protocol.parse(reply)
            except _Failed as error:
                return Verdict(None, None, reply[: protocol.KEPT], str(error))
            except ValueError as error:
                problem, turn = str(error), protocol.again(asked, reply)
                continue
            self._models.update(filter(None, [model]))
            self._cache.put(key, {"reply": reply, "model": model})
            return verdict
        return Verdict(None, None, reply[: protocol.KEPT], f"malformed: {problem}")

    def _reply(self, asked: protocol.Messages) -> tuple[str, str]:
        """What the model says and what the server calls it, after as many attempts as it takes."""
        body = json.dumps({**self._fields, "messages": asked}).encode()
        failures, waited = 0, 0.0
        for attempt in itertools.count():
            pause = min(LONGEST_PAUSE, self.backoff * 2 ** min(attempt, 20)) * random.uniform(
                0.5, 1
            )
            try:
                return self._post(body)
            except _Passing as error:
                if error.wait is None:
                    failures += 1
                    if failures >= self.tries:
                        raise _Failed(f"unreachable: {error}; tried {failures} times") from None
                else:  # no failure: the server works, and says when it has time
                    pause = max(pause, error.wait)
                    waited += pause
                    if waited > PATIENCE:
                        raise Unavailable(
                            f"{self.shown} wants to be left alone for {waited:.0f} s: {error}"
                        ) from None
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + error.wait)
            self._pause(pause)
        raise AssertionError

    def _pause(self, seconds: float) -> None:
        """Wait, and at least as long as the server wants; not all come back at the same moment."""
        until = time.monotonic() + seconds
        while True:
            left = max(until, self._not_before) - time.monotonic()
            if self._stop.wait(max(0.0, left) * random.uniform(1, 1.1)):
                raise Unavailable("the judging was stopped")
            if left <= 0:
                return

    def _post(self, body: bytes) -> tuple[str, str]:
        request = urllib.request.Request(
            self._target, body, {"Content-Type": "application/json"}, method="POST"
        )
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                data = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                said = b""
                with contextlib.suppress(OSError, http.client.HTTPException, _Passing):
                    said = _read(error, deadline)
            raise self._refusal(error.code, error.headers, said) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Passing(self._clean(f"{type(reason).__name__} {reason}".strip())) from None
        try:
            answer = json.loads(data)
            reply = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _Passing(
                f"a reply that is no chat completion: {self._clean(_text(data))[:100]!r}"
            ) from None
        return self._clean(reply if isinstance(reply, str) else ""), self._clean(
            str(answer.get("model") or "")
        )[:100]

    def _refusal(self, status: int, headers: Any, said: bytes) -> Exception:
        """What an answer other than 200 means for what to do next."""
        text = f"HTTP {status} {self._clean(_text(said))[:300]}".strip()
        if (
            status in _HOPELESS
            or 300 <= status < 400
            or (status == 429 and b"insufficient_quota" in said)
        ):
            hint = f"; check --url, --model and {KEY}, which is {'set' if self._key else 'not set'}"
            return Unavailable(f"{self.shown} answers {text}{hint}")
        if status in _PASSING or status >= 500:
            return _Passing(text, _seconds(headers.get("Retry-After")))
        return _Failed(f"refused: {text}")

    def _clean(self, text: str) -> str:
        """A text of the server's, without what it must not repeat and what no file could hold."""
        text = text.encode(errors="replace").decode()  # JSON may spell halves of characters
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class _Failed(Exception):
    """Nothing more to be done for this item."""


class _Passing(Exception):
    """It may go well the next time; `wait`: seconds that the server wants to be left alone for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def _read(response: Any, deadline: float) -> bytes:
    """A body, but neither for ever nor without end: a timeout of a socket is one of each of its pieces."""
    data = bytearray()
    while chunk := response.read1(2**16):
        data += chunk
        if len(data) > LONGEST_REPLY:
            raise _Passing(f"a reply of more than {LONGEST_REPLY} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out in the middle of the reply")
    return bytes(data)


def _text(data: bytes) -> str:
    return " ".join(data.decode(errors="replace").split())


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header, in seconds or as a date."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(0.1, seconds), 1e9) if seconds == seconds else None


def _address(url: str) -> tuple[str, str, str]:
    """Where to post, how that may be shown, and the part that may not."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(not "!" <= sign <= "~" for sign in url):
        shown = (
            "" if "@" in url else f" {redacted(url)}"
        )  # a broken address is no guide to where its password ends
        raise ValueError(f"--url{shown} is no address; give one such as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"--url holds a name or password before the @; give the key in {KEY} instead"
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    target = parts._replace(path=path, fragment="")
    return urlunsplit(target), urlunsplit(target._replace(query="")), parts.query


def _forms(secret: str) -> set[str]:
    """How a server may repeat it: as it is, as in an address, and as in JSON."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.replace("/", "\\/")}


def _checked(key: str) -> str:
    """A key that fits into a header. The message must not say it, as that of a broken header would."""
    if any(not "!" <= sign <= "~" for sign in key):
        raise ValueError(
            f"{KEY} holds a space, a line break or a sign that is not ASCII; set it to the key alone"
        )
    return key
