"""Turns a dataclass into a command line and YAML: each field made by `flag` is a flag and a key.

    batch_size: int = flag(parsers.integer(1), "N", 16)
    \"""Maximum questions per batch.\"""   # the help

Flags and YAML pass the same texts to the same parsers (`pipelines.config.parsers`), so one rule
says what is allowed. Every mistake is a ValueError of one line: what was given, what is allowed,
and what was probably meant.
"""

import argparse
import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.config.command_line import CommandParser
from pipelines.config.parsers import TextParser
from pipelines.data.rows import Kind
from pipelines.text import did_you_mean, one_line


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The command line's view of a field."""

    field: str
    default: Any
    parse: TextParser
    metavar: str
    name: str | None = None  # if it is not the field's name
    kind: Kind | None = None  # the only kind of job that has the flag; None: both
    repeatable: bool = False
    comma_separated: bool = False  # one text may hold several values

    @property
    def key(self) -> str:
        return self.name or self.field

    @property
    def option(self) -> str:
        return "--" + self.key.replace("_", "-")


def flag(parse: TextParser, metavar: str, default: Any = None, **options: Any) -> Any:
    """A dataclass field with its flag; `options` are further fields of `Flag`."""
    return field(default=default, metadata={"parse": parse, "metavar": metavar, **options})


def flags_of(config: type, kind: Kind | None = None) -> list[Flag]:
    """The flags of a dataclass: those of one kind of job, or all."""
    flags = [
        Flag(field=item.name, default=item.default, **item.metadata)
        for item in fields(config)
        if item.metadata
    ]
    return [flag for flag in flags if kind is None or flag.kind in (None, kind)]


def field_docs(config: type) -> dict[str, str]:
    """The strings below the fields of a class, each as one line."""
    [tree] = ast.parse(inspect.getsource(config)).body
    docs = {}
    for item, below in pairwise(ast.iter_child_nodes(tree)):
        if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[ast.unparse(item.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


def flag_parser(
    flags: Sequence[Flag], helps: Mapping[str, str], groups: Mapping[str, str], **about: Any
) -> CommandParser:
    """A parser that knows the flags, and leaves values as text.

    helps: texts by field; a text without "Default:" gets the default of the field, and a field
        without a text is missing in --help
    groups: titles by the first field of each group
    """
    parser = CommandParser(argument_default=argparse.SUPPRESS, allow_abbrev=False, **about)
    config_help = "YAML file with values of any of the flags below."
    parser.add_argument("--config", metavar="FILE.yaml", help=config_help)
    add = parser.add_argument
    for flag in flags:
        if flag.field in groups:
            add = parser.add_argument_group(groups[flag.field]).add_argument
        how: dict[str, Any] = {"action": "append" if flag.repeatable else "store"}
        how["metavar"], default = flag.metavar, flag.default
        if isinstance(default, bool):
            how, default = {"action": argparse.BooleanOptionalAction}, "yes" if default else "no"
        elif isinstance(default, float):
            default = f"{default:g}"
        help = helps.get(flag.field, argparse.SUPPRESS).replace("%", "%%")
        if default is not None and help != argparse.SUPPRESS and "Default:" not in help:
            help += f" Default: {default}."
        add(flag.option, dest=flag.field, help=help, **how)
    return parser


def help_text(*names: str) -> str:
    """The end of `--help`: texts from the folder `help`, with an empty line between them."""
    folder = Path(__file__).parent / "help"
    return "\n".join((folder / f"{name}.txt").read_text(encoding="utf-8") for name in names)


def parse_argv(
    parser: CommandParser, argv: Sequence[str], flags: Sequence[Flag]
) -> tuple[dict[str, Any], str]:
    """The values that a command line gives, by field, and the YAML file it names, if any."""
    texts = vars(parser.parse(argv))
    file = texts.pop("config", "")
    typed = [flag for flag in flags if flag.field in texts]
    return {flag.field: _parse(flag, texts[flag.field], flag.option) for flag in typed}, file


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file."""
    import yaml

    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the file: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, e.g. a line 'budget: 64'")
    return content


def parse_mapping(content: Mapping[str, Any], flags: Sequence[Flag], where: str) -> dict[str, Any]:
    """The values of a YAML mapping, by field. Keys are fields or flags; null means the default."""
    by_name = {name: flag for flag in flags for name in (flag.field, flag.key)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            hint = did_you_mean(name, by_name) or "; --help lists all flags"
            raise ValueError(f"{where}: unknown key '{key}'{hint}")
        flag = by_name[name]
        if flag.field in values:
            raise ValueError(f"{where}: '{key}' is given twice, under two names; keep one")
        if value is not None and value != []:
            values[flag.field] = _parse(flag, value, f"{where}: {key}")
    return values


def _parse(flag: Flag, value: Any, where: str) -> Any:
    """Parse the texts of a flag or the scalars of a key; `where` begins the message of an error."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    too_many = len(items) > 1 and not flag.repeatable
    if too_many or any(isinstance(item, dict | list) for item in items):
        raise ValueError(f"{where}: expected one value, not {json.dumps(value, default=str)}")
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    if flag.comma_separated:
        texts = [part.strip() for text in texts for part in text.split(",")]
    try:
        values = tuple(flag.parse(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return values if flag.repeatable else values[0]
