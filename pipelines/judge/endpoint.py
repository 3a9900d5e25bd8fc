"""A model behind an OpenAI-compatible server: a vendor's, or your own (vLLM, llama.cpp, Ollama).

Failed requests are repeated, each time after a longer and slightly random wait. If the server says
how long to wait, all requests do. Errors that no repetition can fix (a refused key, an unknown
model, no credit) stop the judging at once. Redirects are not followed: they would carry the key to
another server.

The key comes from the environment only, is sent in one header, and is removed from all that the
server returns.
"""

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from pipelines.judge import protocol
from pipelines.judge.model_judge import ModelJudge
from pipelines.metrics.verdicts import Unavailable, Verdict
from pipelines.results.storage import Folder
from pipelines.text import redacted

KEY = "APET_JUDGE_API_KEY"
MIN_SECRET_LENGTH = 8  # shorter keys, such as "none" and "EMPTY", are words in replies, too
MAX_RESPONSE_BYTES = 2**20
MAX_BACKOFF_S = 60.0  # between two attempts, if the server does not say how long
MAX_SERVER_WAIT_S = 600.0  # in total for one item, where the server asks for it
_FATAL_STATUS = (401, 402, 403, 404, 405)
_RETRYABLE_STATUS = (408, 409, 425, 429)  # and all from 500


class Endpoint(ModelJudge):
    """Posts to `url`/chat/completions.

    cache       folder of stored replies; None: nothing is stored
    concurrency maximum number of simultaneous requests
    timeout     seconds for one request, from its start to its last byte
    tries       maximum number of attempts at one request
    backoff     seconds before the second attempt; doubles with each further one
    request     fields to add to each request, or None to omit one: {"max_completion_tokens": 50}
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: Folder | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        tries: int = 6,
        backoff: float = 1.0,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._key = os.environ.get(KEY, "").strip()
        if not _is_printable_ascii(self._key):  # it does not fit into a header
            raise ValueError(
                f"{KEY} has a space, line break or non-ASCII character; set it to the key only"
            )
        self._target, self.address, query = _parse_url(url)
        secrets = [secret for secret in (self._key, query) if len(secret) >= MIN_SECRET_LENGTH]
        self._secrets = [form for secret in secrets for form in _encodings(secret)]
        self.name = f"endpoint/{model}"
        self.concurrency, self.timeout = concurrency, timeout
        self.tries, self.backoff = tries, backoff
        if reserved := {"model", "messages", "stream", "n"} & set(request or {}):
            raise ValueError(
                f"--request cannot set {', '.join(sorted(reserved))}; leave out these fields"
            )
        fields = {"model": model, "temperature": 0, **(request or {})}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        super().__init__(cache, url=self.address, fields=self._fields)
        # without handlers of errors and redirects, a response of any status is returned
        self._opener = OpenerDirector()
        for handler in (ProxyHandler, HTTPHandler, HTTPSHandler):
            self._opener.add_handler(handler())
        self._stop = threading.Event()
        self._not_before = 0.0  # by time.monotonic: the server accepts no request until then

    def ask(self, questions: Mapping[str, protocol.Messages]) -> Generator[Verdict]:
        self._stop.clear()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            try:
                yield from pool.map(self._verdict, questions, questions.values())
            finally:
                # requests in flight are paid for: wait for their replies, but send no others
                self._stop.set()

    def _verdict(self, key: str, messages: protocol.Messages) -> Verdict:
        verdict, conversation = Verdict(None, None), messages
        for _ in range(protocol.MAX_REPLIES):
            try:
                reply, model = self._complete(conversation)
            except _ItemError as error:
                return verdict._replace(error=str(error))
            verdict = protocol.parse(reply)
            if verdict.error is None:
                self.store(key, reply, model)
                break
            conversation = protocol.follow_up(messages, reply)
        return verdict

    def _complete(self, messages: protocol.Messages) -> tuple[str, str]:
        """The reply and the server's name for the model, after as many attempts as needed."""
        body = json.dumps({**self._fields, "messages": messages}).encode()
        failures, waited, pause, backoff = 0, 0.0, 0.0, self.backoff
        while True:
            self._wait(pause)
            try:
                return self._post(body)
            except _RetryableError as error:
                pause = min(MAX_BACKOFF_S, backoff) * random.uniform(0.5, 1)
                backoff *= 2
                if error.wait is None:
                    failures += 1
                    if failures >= self.tries:
                        raise _ItemError(f"unreachable: {error}; tried {failures} times") from None
                    continue
                # not a failure: the server works, and says when it has time
                pause = max(pause, error.wait)
                waited += pause
                if waited > MAX_SERVER_WAIT_S:
                    message = f"{self.address} asks to wait {waited:.0f} s: {error}"
                    raise Unavailable(message) from None
                self._not_before = max(self._not_before, time.monotonic() + error.wait)

    def _wait(self, pause: float) -> None:
        """Pause, and longer if the server asks any thread for it meanwhile."""
        until = time.monotonic() + pause
        while (left := max(until, self._not_before) - time.monotonic()) > 0:
            self._stop.wait(left * random.uniform(1, 1.1))
            if self._stop.is_set():
                break
        if self._stop.is_set():
            raise Unavailable("the judging was stopped")

    def _post(self, body: bytes) -> tuple[str, str]:
        headers = {"Content-Type": "application/json"}
        request = Request(self._target, body, headers, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        status, retry_after, data = 200, None, b""
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
                data = _read(response, deadline)
        except (OSError, http.client.HTTPException) as error:
            if status == 200:  # of an error, the status is enough
                reason = getattr(error, "reason", None) or error
                message = self._scrubbed(f"{type(reason).__name__} {reason}".strip())
                raise _RetryableError(message) from None
        if status != 200:
            raise self._refusal(status, retry_after, data)
        try:
            completion = json.loads(data)
            reply = completion["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            start = self._one_line(data)[:100]
            raise _RetryableError(f"not a chat completion: {start!r}") from None
        model = self._scrubbed(str(completion.get("model") or ""))[:100]
        return self._scrubbed(reply if isinstance(reply, str) else ""), model

    def _refusal(self, status: int, retry_after: str | None, content: bytes) -> Exception:
        """The exception for a status other than 200: end all, try again, or give up the item."""
        text = f"HTTP {status} {self._one_line(content)[:300]}".strip()
        no_credit = status == 429 and b"insufficient_quota" in content
        if status in _FATAL_STATUS or 300 <= status < 400 or no_credit:
            hint = f"check --url, --model and {KEY}, which is {'set' if self._key else 'not set'}"
            return Unavailable(f"{self.address} answers {text}; {hint}")
        if status in _RETRYABLE_STATUS or status >= 500:
            return _RetryableError(text, _parse_retry_after(retry_after))
        return _ItemError(f"refused: {text}")

    def _one_line(self, data: bytes) -> str:
        return self._scrubbed(" ".join(data.decode(errors="replace").split()))

    def _scrubbed(self, text: str) -> str:
        """A text of the server without secrets, and without lone surrogates, which JSON may spell
        but no file can hold."""
        text = text.encode(errors="replace").decode()
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _ItemError(Exception):
    """Nothing more can be done for this item."""


class _RetryableError(Exception):
    """The request may succeed next time; `wait`: seconds that the server asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def _read(response: Any, deadline: float) -> bytes:
    """A body, limited in size and in time: a socket's timeout limits each of its pieces only."""
    data = bytearray()
    while chunk := response.read1(2**16):
        data += chunk
        if len(data) > MAX_RESPONSE_BYTES:
            raise OSError(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out in the middle of the response")
    return bytes(data)


def _parse_retry_after(header: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.1, seconds)


def _parse_url(url: str) -> tuple[str, str, str]:
    """The address to post to, the same without its query, and the query, which may be a secret."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not (is_valid and _is_printable_ascii(url)):
        # in a malformed address, nobody can tell where a password ends
        shown = "" if "@" in url else f": {redacted(url)}"
        raise ValueError(f"--url is not a valid address{shown}; try http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"--url has a name or password before the @; put the key in {KEY} instead")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    target = parts._replace(path=path, fragment="")
    return urlunsplit(target), urlunsplit(target._replace(query="")), parts.query


def _encodings(secret: str) -> set[str]:
    """The forms in which a server may repeat it: as it is, in an address, and in JSON."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.replace("/", "\\/")}


def _is_printable_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)
