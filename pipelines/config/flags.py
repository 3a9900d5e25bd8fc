"""A dataclass as a command line and as YAML: each field made by `flag` is a flag, a key, and a line of `--help`.

Both hand the same texts to the same readers (`pipelines.config.parsers`), so that one rule says what is allowed. Whatever is
wrong is a ValueError of one line, which says what was given, what is allowed, and what was probably meant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from pipelines.config.cli_help import INSTEAD, NOTHING
from pipelines.config.parsers import Reader
from pipelines.data.rows import Kind
from pipelines.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What the command line knows of a field."""

    field: str = ""
    default: Any = None
    group: str
    read: Reader
    help: str
    value: str  # what stands for it in --help
    name: str | None = None  # where it is not the field's
    shown: str | None = None  # the default, in words
    kind: Kind | None = None  # of job that it is for; None: both
    many: bool = False  # may be repeated
    listed: bool = False  # one text may hold several, with commas

    @property
    def key(self) -> str:
        return self.name or self.field

    @property
    def option(self) -> str:
        return "--" + self.key.replace("_", "-")


def flag(group: str, read: Reader, value: str, help: str, default: Any = None, **more: Any) -> Any:
    """A field with its flag; `more` as in `Flag`."""
    return field(
        default=default,
        metadata={"flag": Flag(group=group, read=read, value=value, help=help, **more)},
    )


def flags_of(config: type, kind: Kind) -> list[Flag]:
    """A dataclass' flags for one kind of job."""
    found = [
        replace(each.metadata["flag"], field=each.name, default=each.default)
        for each in fields(config)
        if "flag" in each.metadata
    ]
    return [each for each in found if each.kind in (None, kind)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def parser(
    flags: Sequence[Flag], shown: Mapping[str, str], **about: str
) -> argparse.ArgumentParser:
    """Knows which flags there are, and --help; values stay text. `shown`: defaults that differ between jobs."""
    made = _Parser(
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=32, width=120
        ),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        **about,  # type: ignore[arg-type]
    )
    made.add_argument(
        "--config", metavar="FILE.yaml", help="values for any of the flags below, by their names"
    )
    groups: dict[str, Any] = {}
    for each in flags:
        if each.group not in groups:
            groups[each.group] = made.add_argument_group(each.group)
        more: dict[str, Any] = {"metavar": each.value, "action": "append" if each.many else "store"}
        if isinstance(each.default, bool):
            more = {"action": argparse.BooleanOptionalAction}
        default = shown.get(each.field, each.shown)
        if default is None and each.default is not None:
            default = "no" if each.default is False else str(each.default)
        help = f"{each.help} (default: {default})" if default else each.help
        groups[each.group].add_argument(
            each.option, dest=each.field, help=help.replace("%", "%%"), **more
        )
    return made


def from_argv(
    made: argparse.ArgumentParser, argv: Sequence[str], flags: Sequence[Flag]
) -> tuple[dict[str, Any], str]:
    """The values that a command line gives, by field, and the YAML file that it names, if any."""
    namespace, left = made.parse_known_args(argv)
    if left:
        wrong = next((part for part in left if part.startswith("-")), left[0]).partition("=")[0]
        if not wrong.startswith("-"):
            raise ValueError(
                f"'{wrong}' stands alone; every value follows its flag, as in --limit 200"
            )
        known = [each.option for each in flags] + ["--config", "--help"]
        raise ValueError(f"there is no flag {wrong}{instead(wrong, known)}")
    given = vars(namespace)
    file = given.pop("config", "")
    return {
        each.field: _value(each, given[each.field], each.option)
        for each in flags
        if each.field in given
    }, file


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file of keys and values holds."""
    import yaml

    try:
        read = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ValueError(f"--config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: is no YAML: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(
            f"--config {path}: holds no keys and values; write lines such as 'budget: 64'"
        )
    return read


def from_yaml(path: Path, kind: Kind, flags: Sequence[Flag]) -> dict[str, Any]:
    """The values that a file gives, by field."""
    read = read_yaml(path)
    if (other := read.pop("kind", kind)) != kind:
        raise ValueError(
            f"--config {path}: is for kind '{other}', and this job for {kind}s; use the other job"
        )
    return from_mapping(read, flags, str(path))


def from_mapping(read: Mapping[str, Any], flags: Sequence[Flag], where: str) -> dict[str, Any]:
    """The values that keys give, by field. Keys are names of fields or of flags; null is the default."""
    known = {name: each for each in flags for name in (each.field, each.key)}
    given: dict[str, Any] = {}
    for key, value in read.items():
        each = known.get(str(key).replace("-", "_"))
        if each is None:
            raise ValueError(f"{where}: there is no key '{key}'{instead(str(key), known)}")
        if each.field in given:
            raise ValueError(f"{where}: '{key}' is there twice, under two names; give it once")
        if value is not None and value != []:
            given[each.field] = _value(each, value, f"{where}: {key}")
    return given


def instead(given: str, known: Iterable[str]) -> str:
    """What to write for an unknown name: our flag for one of the release, the nearest, or where to look."""
    name = given.lstrip("-").replace("-", "_")
    if name in NOTHING:
        return f"; leave it out: {NOTHING[name]} (docs/flags.md)"
    ours = INSTEAD.get(name)
    dashes = "-" if given.startswith("-") else "_"
    form = given.replace("_" if dashes == "-" else "-", dashes)
    return f"; use {ours}" if ours else did_you_mean(form, known) or "; --help lists all"


def _value(flag: Flag, given: Any, where: str) -> Any:
    """What texts or YAML's scalars say; `where` they stand begins the message if one is wrong."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    if (len(several) > 1 and not flag.many) or any(isinstance(one, dict | list) for one in several):
        raise ValueError(f"{where}: give one value, not {json.dumps(given, default=str)}")
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in several]
    if flag.listed:
        texts = [part.strip() for text in texts for part in text.split(",")]
    try:
        read = tuple(flag.read(one) for one in texts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return read if flag.many else read[0]
