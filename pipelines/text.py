"""Text for people: secrets removed, errors on one line, suggestions for misspelled names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

MAX_ERROR = 500  # characters of an error, so that it fits a table

_SCHEME = r"(?<=[a-z0-9+.-]://)"
# A password may contain anything, also a slash or an @ (S3 keys do), so it ends at the last @
# before the next URI. A colon followed by a port does not start a password. Without a colon there
# is only a user name, which ends before the first slash.
_CREDENTIALS = re.compile(
    rf"{_SCHEME}(?:[^/?\s:@]*:(?!\d{{1,5}}[/?])(?:(?!://)\S)*|[^/?\s]*)@", re.IGNORECASE
)
_QUERY = re.compile(rf"({_SCHEME}(?:(?!://)[^?\s])*)\?\S*", re.IGNORECASE)
# Control characters, which a terminal would obey; tabs and line ends are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def redacted(text: str) -> str:
    """The text without credentials and query strings of URIs, and without control characters."""
    text = _QUERY.sub(r"\1", _CREDENTIALS.sub("***@", text))
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(error: BaseException | str) -> str:
    """The message of an error on one line, without secrets."""
    return redacted(" ".join(str(error).split()))


def describe_error(error: BaseException) -> str:
    """Class and message of an error on one line, without secrets, short enough for a table."""
    return f"{type(error).__name__}: {one_line(error)}"[:MAX_ERROR]


def did_you_mean(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """End of an error message that suggests the closest known name; empty if none is close."""
    candidates = list(names)
    close = get_close_matches(word, candidates, 1, cutoff) or [
        name for name in candidates if word and name.startswith(word)
    ]
    return f"; did you mean '{close[0]}'?" if close else ""
