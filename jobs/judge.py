"""Judge the open answers of runs: accuracy and a score from 0 to 5, by Video-ChatGPT's protocol.

    python jobs/judge.py results/msvd-*                                              # offline: a metric, NOT the judge
    APET_JUDGE_API_KEY=... python jobs/judge.py results/msvd-* --url https://host/v1 --model NAME
    python jobs/judge.py results/msvd-* --judge endpoint --url http://localhost:8000/v1 --model NAME   # no key needed
    python jobs/judge.py results/msvd-* --judge local --model FOLDER_OR_HUB_ID       # in Ray actors

endpoint  any OpenAI-compatible server. The key is read from APET_JUDGE_API_KEY alone, never from a flag or file.
local     a text model of transformers on the Ray cluster.
offline   normalised match and word overlap. It knows no synonyms and is no judge: its numbers are named offline/...,
          the judges' judge/..., and must not be compared.

Every reply is kept in the cache, so what has been judged is not paid for again and an interrupted judging goes on with
the same command. The verdicts are written beside the answers, the numbers into record.json and from there to MLflow.
The last line is JSON. A judge's absolute numbers depend on the model's version: compare runs that have the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pipelines.config import parsers
from pipelines.config.paths import mlflow_at, to_write
from pipelines.judge import JUDGES, Judge, Unavailable, judge
from pipelines.judge.run_verdicts import Outcome, judge_run, line, runs
from pipelines.results.lock import Locked
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import redacted

KEY = "APET_JUDGE_API_KEY"
NEEDS = {"endpoint": ("url", "model"), "local": ("model",), "offline": ()}
TAKES = {
    "endpoint": ("url", "model", "cache", "concurrency", "timeout", "tries", "request"),
    "local": ("model", "revision", "cache", "actors", "gpus_per_actor", "batch_size", "address"),
    "offline": (),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a folder of answers: a path, s3:// or gs://")
    add("--judge", choices=list(JUDGES), help=f"offline; endpoint where {KEY} is set")
    add(
        "--model",
        metavar="NAME",
        help="endpoint: as the server names it; local: a folder or a name on the hub",
    )
    add(
        "--tracking-uri",
        metavar="URI",
        help="another MLflow (where the run is: a file, or the server of MLFLOW_TRACKING_URI)",
    )
    add(
        "--cache",
        metavar="FOLDER",
        help="of replies (judge-cache beside the first run); none: keep nothing",
    )
    at = parser.add_argument_group("endpoint")
    at.add_argument("--url", help="up to and with /v1")
    at.add_argument(
        "--concurrency", type=_read(parsers.whole(1, 8)), metavar="N", help="requests at once (8)"
    )
    at.add_argument(
        "--timeout",
        type=_read(parsers.above_zero),
        metavar="S",
        help="seconds for one request (60)",
    )
    at.add_argument(
        "--tries", type=_read(parsers.whole(1, 6)), metavar="N", help="of a request that fails (6)"
    )
    at.add_argument(
        "--request",
        type=_read(_fields),
        metavar="JSON",
        help='fields for every request; null leaves one out: \'{"temperature": null, "max_completion_tokens": 99}\'',
    )
    on = parser.add_argument_group("local")
    on.add_argument("--revision", help="of a model on the hub: a branch, tag or commit")
    on.add_argument(
        "--actors", type=_read(parsers.actors), metavar="N", help="that hold the model (what fits)"
    )
    on.add_argument(
        "--gpus-per-actor",
        type=_read(parsers.gpus),
        metavar="X",
        help="1 where the cluster has GPUs",
    )
    on.add_argument(
        "--batch-size", type=_read(parsers.whole(1, 16)), metavar="N", help="answers at once (16)"
    )
    on.add_argument("--address", help="of the Ray cluster (RAY_ADDRESS, else this machine)")
    return parser


def _read(reader: Any) -> Any:
    """A reader of pipelines.config.parsers for argparse, which shows the message of one kind of error only."""

    def read(given: str) -> Any:
        try:
            return reader(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _fields(given: str) -> dict[str, Any]:
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'{given!r} is no JSON object; give one such as {{"max_tokens": 50}}')
    return found


def chosen(options: argparse.Namespace, folders: list[Folder]) -> Judge:
    """The judge that was asked for; a ValueError if something that it needs is missing, or is another judge's."""
    kind = options.judge or ("endpoint" if os.environ.get(KEY, "").strip() else "offline")
    given = {
        name for names in TAKES.values() for name in names if getattr(options, name) is not None
    }
    for name in sorted(given - set(TAKES[kind])):
        why = (
            ""
            if options.judge
            else f"; {KEY} is {'set' if kind == 'endpoint' else 'not set, so the judge is offline'}"
        )
        raise ValueError(
            f"--{name.replace('_', '-')} is not for --judge {kind}{why}; name the --judge that you mean"
        )
    for name in NEEDS[kind]:
        if name not in given:
            raise ValueError(
                f"--judge {kind} needs --{name}; give it, or take --judge offline, which is no judge"
            )
    cache = {} if kind == "offline" else {"cache": _cache(options.cache, folders[0])}
    return judge(kind, **cache, **{name: getattr(options, name) for name in given - {"cache"}})


def _cache(given: str | None, run: Folder) -> Folder | None:
    if given is not None:
        return None if given == "none" else Folder.of(to_write(given, "cache"))
    return run.parent.child("judge-cache")


def main() -> int:
    options = arguments().parse_args()
    found: dict[str, Outcome] = {}
    try:
        folders = runs(options.runs)
        uri = mlflow_at(options.tracking_uri) if options.tracking_uri else None
        with_whom = chosen(options, folders)
        for folder in folders:
            name = redacted(folder.uri).rstrip("/").rpartition("/")[2]
            found[name] = judge_run(folder, with_whom, lambda text: print(text, file=sys.stderr))
            print(line(name, found[name]))
            _track(folder, uri)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return 2
    except (Unavailable, Locked, OSError) as error:
        said = redacted(str(error))
        print(
            f"error: {said}. Replies so far are kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; replies so far are kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    if any(outcome.unjudged for outcome in found.values()):
        print(
            "rows without a verdict are tried again by the same command; the others cost nothing",
            file=sys.stderr,
        )
    print(
        json.dumps({name: {**outcome.metrics, **outcome.tags} for name, outcome in found.items()})
    )
    return 0 if any(outcome.rows for outcome in found.values()) else 1


def _track(folder: Folder, uri: str | None) -> None:
    """Bring the numbers to the MLflow that has the run, or to another."""
    try:
        record = RunRecord.load(folder)
    except FileNotFoundError:
        return
    if uri or record.mlflow.get("uri"):
        from pipelines.results.mlflow_tracker import replay

        replay(folder.uri, uri, say=lambda text: print(f"  mlflow    {text}"))


if __name__ == "__main__":
    sys.exit(main())
