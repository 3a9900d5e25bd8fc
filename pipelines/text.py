"""Text that people see: secrets removed, errors on one line, names that were probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_AFTER = r"(?<=[a-z0-9+.-]://)"
# A password may hold anything, a slash or an @ as well, as keys of S3 do: it ends at the last @ before the next URI.
# What looks like a port is none. Without a colon there is a user only, who ends before the first slash.
_USER = re.compile(
    rf"{_AFTER}(?:[^/?\s:@]*:(?!\d{{1,5}}[/?])(?:(?!://)\S)*|[^/?\s]*)@", re.IGNORECASE
)
_QUERY = re.compile(rf"({_AFTER}(?:(?!://)[^?\s])*)\?\S*", re.IGNORECASE)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # what a terminal obeys; not tab and line end


def redacted(text: str) -> str:
    """A text as it may be shown: URIs without what stands before their @ and after their ?, and nothing that a terminal
    would take for an order."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _QUERY.sub(r"\1", _USER.sub("***@", text)))


def describe_error(error: BaseException) -> str:
    """Class and message of an error on one line, without secrets, short enough for a table."""
    return redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")[:500]


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that was probably meant, as the end of a message; nothing if none is near."""
    names = list(known)
    close = get_close_matches(given, names, 1, cutoff) or [
        name for name in names if given and name.startswith(given)
    ]
    return f"; did you mean '{close[0]}'?" if close else ""
