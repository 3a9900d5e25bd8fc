"""What a user types, as values: each reader takes the text of one flag or YAML scalar, and says what is wrong with it.

    whole(1)("x")   ValueError: 'x' is no whole number from 1; give one such as 16

Nothing here knows a flag: whoever asks says where the text stood.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

from pipelines.text import did_you_mean

Reader = Callable[[str], Any]
Value = TypeVar("Value")

_AMOUNT = r"([0-9]+(?:\.[0-9]+)?)\s*(%?)"
_SITE = re.compile(rf"(encoder|(?:vision\.)?[0-9]+)\s*=\s*{_AMOUNT}")


def text(given: str) -> str:
    if not given.strip():
        raise ValueError("it is empty; give a value, or leave it out")
    return given.strip()


def choice(*allowed: str) -> Reader:
    def read(given: str) -> str:
        if given not in allowed:
            raise ValueError(
                f"'{given}' is none of {', '.join(allowed)}{did_you_mean(given.lower(), allowed, 0.5)}"
            )
        return given

    return read


def whole(low: int, example: int = 16) -> Reader:
    def read(given: str) -> int:
        if not re.fullmatch(r"-?[0-9][0-9_]*", given) or int(given) < low:
            raise ValueError(f"'{given}' is no whole number from {low}; give one such as {example}")
        return int(given)

    return read


def tokens(given: str) -> int | None:
    """Of a batch; None for as many as fit."""
    if given.lower() == "auto":
        return None
    try:
        return int(whole(1)(given))
    except ValueError:
        raise ValueError(
            f"'{given}' is no number of tokens; give one from 1, such as 32768, or 'auto'"
        ) from None


def number(given: str) -> float:
    """0 or more."""
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"'{given}' is no number from 0; give one such as 0.5")
    return value


def above_zero(given: str) -> float:
    if not (value := number(given)):
        raise ValueError("0 is too little; give more, such as 0.5")
    return value


def gpus(given: str) -> float:
    """As Ray counts them: several whole ones, or a part of one."""
    value = number(given)
    if value > 1 and value != int(value):
        raise ValueError(
            f"'{given}' GPUs cannot be given to one actor; give a whole number, or a part of one such as 0.5"
        )
    return value


def rate(given: str) -> float:
    value = number(given[:-1]) / 100 if given.endswith("%") else number(given)
    if value > 1:
        raise ValueError(
            f"'{given}' is no share of the rows; give 0 to 1, or a percentage such as 1%"
        )
    return value


def yes_no(given: str) -> bool:
    return bool(choice("true", "false")(given.lower()) == "true")


def limit(given: str) -> int | None:
    """Rows; None for all."""
    if given.lower() == "all":
        return None
    try:
        return int(whole(1)(given))
    except ValueError:
        raise ValueError(
            f"'{given}' is no number of rows; give one from 1, such as 200, or 'all'"
        ) from None


def actors(given: str) -> tuple[int, int]:
    """The fewest and the most."""
    parts = [part.strip() for part in given.split(",")]
    if not 1 <= len(parts) <= 2 or not all(re.fullmatch("[1-9][0-9]*", part) for part in parts):
        raise ValueError(
            f"'{given}' is no number of actors; give one from 1, such as 4, or the fewest and most: 1,4"
        )
    least, most = int(parts[0]), int(parts[-1])
    if least > most:
        raise ValueError(
            f"'{given}' has the most before the fewest; did you mean '{most},{least}'?"
        )
    return least, most


def _amount(value: str, percent: str) -> str | None:
    """A count or a share in its shortest form, as `apet.Budget` writes it; None if it is neither."""
    amount = Fraction(value)
    if not amount or (amount > 100 if percent else amount.denominator > 1):
        return None
    return f"{float(amount):.12g}%" if percent else str(amount)


def budget(given: str) -> str:
    """Visual tokens, or a share of those a row has."""
    match = re.fullmatch(_AMOUNT, given.strip())
    read = _amount(match[1], match[2]) if match else None
    if read is None:
        share = match and not match[2] and 0 < Fraction(match[1]) < 1
        hint = f"; did you mean '{float(100 * Fraction(match[1])):g}%'?" if match and share else ""
        raise ValueError(
            f"'{given}' is no budget; give a whole number of visual tokens from 1, such as 64, or a share, such as 10%"
            + hint
        )
    return read


def schedule(given: str) -> str:
    """Sites and what each keeps, without spaces. Whether the model has such layers is seen when it is known."""
    if given.strip() == "full":
        return "full"
    sites = []
    for item in given.split(","):
        match = _SITE.fullmatch(item.strip())
        amount = _amount(match[2], match[3]) if match else None
        if match is None or amount is None:
            raise ValueError(
                f"cannot read '{item.strip()}' in '{given}'; sites are 'encoder', a decoder layer such as '16' or"
                " 'vision.6', and what each keeps: encoder=96,16=32 or encoder=30%,14=10%"
            )
        sites.append(f"{match[1]}={amount}")
    return ",".join(sites)


def scalar(given: str) -> str | int | float | bool:
    """An option of a method: a number or true/false where it reads as one."""
    if given in ("true", "false"):
        return given == "true"
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given
