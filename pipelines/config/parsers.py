"""Parsers of single values: each takes the text of a flag or a YAML scalar and checks it.

    integer(1)("x")   ValueError: 'x' is not a valid number: expected a whole number from 1, e.g. 16

The parsers do not know the flag: callers add its name to the message.
"""

import contextlib
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from pipelines.text import did_you_mean

TextParser = Callable[[str], Any]

_AMOUNT = r"([0-9]+(?:\.[0-9]+)?)\s*(%?)"
_SITE = re.compile(rf"(encoder|(?:vision\.)?[0-9]+)\s*=\s*{_AMOUNT}")


def invalid(value: str, noun: str, expected: str) -> ValueError:
    return ValueError(f"'{value}' is not a valid {noun}: expected {expected}")


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("the value is empty; give one, or leave the option out")
    return value.strip()


def choice(*allowed: str) -> TextParser:
    def parse(value: str) -> str:
        if value not in allowed:
            hint = did_you_mean(value.lower(), allowed, 0.5)
            raise ValueError(f"'{value}' is not one of {', '.join(allowed)}{hint}")
        return value

    return parse


def yes_no(value: str) -> bool:
    return bool(choice("true", "false")(value.lower()) == "true")


def integer(minimum: int, example: int = 16) -> TextParser:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?[0-9][0-9_]*", value) or int(value) < minimum:
            raise invalid(value, "number", f"a whole number from {minimum}, e.g. {example}")
        return int(value)

    return parse


def count_or(word: str, noun: str, example: int) -> TextParser:
    """A number from 1, or the word, which becomes None."""

    def parse(value: str) -> int | None:
        if value.lower() == word:
            return None
        try:
            return int(integer(1)(value))
        except ValueError:
            expected = f"a whole number from 1, e.g. {example}, or '{word}'"
            raise invalid(value, f"number of {noun}", expected) from None

    return parse


def number(noun: str, expected: str, allowed: Callable[[float], bool]) -> TextParser:
    """A finite number from 0 that is also `allowed`."""

    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            parsed = math.nan
        if not (0 <= parsed < math.inf and allowed(parsed)):
            raise invalid(value, noun, expected)
        return parsed

    return parse


non_negative = number("number", "0 or more, e.g. 0.5", lambda n: True)
positive = number("number", "more than 0, e.g. 0.5", lambda n: n > 0)
gpus = number(  # as Ray counts them
    "number of GPUs for one actor",
    "a whole number, or a fraction of one GPU, e.g. 0.5",
    lambda n: n <= 1 or n.is_integer(),
)


def error_rate(value: str) -> float:
    text, scale = (value[:-1], 100) if value.endswith("%") else (value, 1)
    expected = "0 to 1, or a percentage, e.g. 1%"
    return float(number("share of the rows", expected, lambda n: n <= scale)(text)) / scale


def actors(value: str) -> tuple[int, int]:
    """Minimum and maximum."""
    numbers = [part.strip() for part in value.split(",")]
    if not 1 <= len(numbers) <= 2 or not all(re.fullmatch("[1-9][0-9]*", n) for n in numbers):
        expected = "a whole number from 1, e.g. 4, or minimum and maximum, e.g. 1,4"
        raise invalid(value, "number of actors", expected)
    minimum, maximum = int(numbers[0]), int(numbers[-1])
    if minimum > maximum:
        raise ValueError(f"'{value}': the minimum comes first; did you mean '{maximum},{minimum}'?")
    return minimum, maximum


def _amount(value: str, percent: str) -> str | None:
    """A count or a share in its shortest form, as `apet.Budget` writes it; None if invalid."""
    amount = Fraction(value)
    if not amount or (amount > 100 if percent else amount.denominator > 1):
        return None
    return f"{float(amount):.12g}%" if percent else str(amount)


def budget(value: str) -> str:
    """Visual tokens to keep, or a share of those that a row has."""
    match = re.fullmatch(_AMOUNT, value.strip())
    amount = _amount(match[1], match[2]) if match else None
    if amount is None:
        hint = ""
        if match and not match[2] and 0 < Fraction(match[1]) < 1:
            hint = f"; did you mean '{float(100 * Fraction(match[1])):g}%'?"
        expected = "a whole number of visual tokens, e.g. 64, or a share, e.g. 10%"
        raise invalid(value, "budget", expected + hint)
    return amount


def schedule(value: str) -> str:
    """Sites and what each keeps, without spaces. The layers are checked once the model is known."""
    if value.strip() == "full":
        return "full"
    sites = []
    for site in map(str.strip, value.split(",")):
        match = _SITE.fullmatch(site)
        amount = _amount(match[2], match[3]) if match else None
        if match is None or amount is None:
            raise ValueError(
                f"cannot read '{site}' in '{value}': expected a site (encoder, a decoder layer such"
                " as 16, or vision.6) and what it keeps, e.g. encoder=96,16=32 or"
                " encoder=30%,14=10%"
            )
        sites.append(f"{match[1]}={amount}")
    return ",".join(sites)


def scalar(value: str) -> str | int | float | bool:
    """An option of a method: a number or true/false if it reads as one, else text."""
    if value in ("true", "false"):
        return value == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    return value
