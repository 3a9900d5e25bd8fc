"""The command line of all jobs: help of at most 100 columns, and errors of one line."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pipelines.config.parsers import TextParser
from pipelines.text import did_you_mean, one_line

HELP_COLUMNS = 100


def one_line_errors(script: str) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """Decorates the `main` of a job: an error prints one line to stderr. Status 2: wrong input."""

    def decorate(main: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(main)
        def checked() -> int:
            try:
                return main()
            except (ValueError, OSError) as error:
                print(f"{script}: {one_line(error)}", file=sys.stderr)
                return 2 if isinstance(error, ValueError | FileNotFoundError) else 1

        return checked

    return decorate


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises a ValueError of one line for a wrong command."""

    def __init__(self, prog: str, description: str | None, **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=functools.partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=32, width=HELP_COLUMNS
            ),
            add_help=False,
            **options,
        )
        self.add_argument("-h", "--help", action="help", help="Show this help.")

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse like `parse_args`, but suggest the flag that was probably meant."""
        options, unknown = self.parse_known_args(argv)
        if not unknown:
            return options
        wrong = next((text for text in unknown if text.startswith("-")), unknown[0])
        wrong = wrong.partition("=")[0]
        if not wrong.startswith("-"):
            raise ValueError(
                f"unexpected argument '{wrong}'; a value follows its flag: --flag VALUE"
            )
        hint = did_you_mean(wrong.replace("_", "-"), self._option_string_actions)
        raise ValueError(f"unknown flag {wrong}{hint or '; --help lists all flags'}")


def argument_type(parse: TextParser) -> TextParser:
    """A text parser for argparse, which shows the message of only one type of exception."""

    @functools.wraps(parse)
    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument
