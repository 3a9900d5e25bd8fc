"""The command line of all jobs: help of at most 100 columns, and errors of one line."""

import argparse
import functools
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec

from pipelines.config.parsers import TextParser
from pipelines.text import did_you_mean, one_line

HELP_COLUMNS = 100
CONTINUE = "run the same command again to continue"
P = ParamSpec("P")


def one_line_errors(name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorates a job that returns an exit status: what goes wrong is one line on stderr.

    Status 2: wrong input, 1: another error, 130: interrupted. SIGTERM interrupts like Ctrl-C, so
    that answers are written before the process ends.
    """

    def decorate(job: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(job)
        def checked(*args: P.args, **options: P.kwargs) -> int:
            is_main = threading.current_thread() is threading.main_thread()
            handler = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
            try:
                return job(*args, **options)
            except KeyboardInterrupt:
                print(f"interrupted; {CONTINUE}", file=sys.stderr)
                return 130
            except (ValueError, OSError) as error:
                print(f"{name}: {one_line(error)}", file=sys.stderr)
                return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
            finally:
                if is_main:
                    signal.signal(signal.SIGTERM, handler)

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
