"""Judge the open answers of runs: accuracy and a score from 0 to 5, by Video-ChatGPT's protocol.

    # offline: a metric, NOT the judge
    python jobs/judge.py results/msvd-*
    # a server with a key
    APET_JUDGE_API_KEY=... python jobs/judge.py results/msvd-* --url https://host/v1 --model NAME
    # a server without a key
    python jobs/judge.py results/msvd-* --judge endpoint --url http://localhost:8000/v1 --model NAME
    # in Ray actors
    python jobs/judge.py results/msvd-* --judge local --model FOLDER_OR_HUB_ID

endpoint  any OpenAI-compatible server. The key is only read from APET_JUDGE_API_KEY, never from a
          flag or file.
local     a text model of transformers on the Ray cluster.
offline   normalised match and word overlap. It does not know synonyms and is not a judge: its
          numbers are called offline/..., those of judges judge/..., and must not be compared.

Every reply is stored in the cache, so that no reply is paid for twice and the same command resumes
an interrupted judging. The verdicts are written beside the answers, the numbers to record.json and
from there to MLflow. The last line is JSON. A judge's absolute numbers depend on the version of
its model: compare only runs with the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pipelines.config import parsers
from pipelines.config.command_line import CommandParser, argument_type, one_line_errors
from pipelines.config.paths import mlflow_address, to_write
from pipelines.judge import JUDGES, Judge, Unavailable, judge
from pipelines.judge.run_verdicts import Outcome, judge_run, run_folders, summarize
from pipelines.results.lock import Locked
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import one_line, redacted

KEY = "APET_JUDGE_API_KEY"
RESUME = "replies so far are stored; repeat the command to resume"
REQUIRED = {"endpoint": ("url", "model"), "local": ("model",), "offline": ()}
ALLOWED = {
    "endpoint": ("url", "model", "cache", "concurrency", "timeout", "tries", "request"),
    "local": ("model", "revision", "cache", "actors", "gpus_per_actor", "batch_size", "address"),
    "offline": (),
}


def _parser() -> CommandParser:
    parser = CommandParser("judge.py", __doc__)

    def flag(
        group: Any, option: str, metavar: str, help: str, parse: parsers.TextParser = parsers.text
    ) -> None:
        group.add_argument(option, metavar=metavar, help=help, type=argument_type(parse))

    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="Folder of answers: a path, s3:// or gs://."
    )
    parser.add_argument(
        "--judge", choices=list(JUDGES), help=f"Default: endpoint if {KEY} is set, else offline."
    )
    flag(
        parser,
        "--model",
        "NAME",
        "endpoint: the server's name of the model; local: a folder or a name on the hub.",
    )
    flag(
        parser,
        "--tracking-uri",
        "URI",
        "MLflow server or database. Default: that of the run, if a file, or MLFLOW_TRACKING_URI.",
    )
    flag(
        parser,
        "--cache",
        "FOLDER",
        "Folder of the replies, or none. Default: judge-cache beside the first run.",
    )
    endpoint = parser.add_argument_group("endpoint")
    flag(endpoint, "--url", "URL", "Address up to and including /v1.")
    flag(endpoint, "--concurrency", "N", "Parallel requests. Default: 8.", parsers.integer(1, 8))
    flag(
        endpoint, "--timeout", "SECONDS", "Time limit of a request. Default: 60.", parsers.positive
    )
    flag(
        endpoint, "--tries", "N", "Attempts if a request fails. Default: 6.", parsers.integer(1, 6)
    )
    flag(
        endpoint,
        "--request",
        "JSON",
        "Fields of every request; null removes one:"
        ' \'{"temperature": null, "max_completion_tokens": 99}\'.',
        _json_object,
    )
    local = parser.add_argument_group("local")
    flag(local, "--revision", "REV", "Hub revision: branch, tag or commit.")
    flag(
        local,
        "--actors",
        "N",
        "Number of actors that hold the model. Default: as many as fit.",
        parsers.actors,
    )
    flag(
        local,
        "--gpus-per-actor",
        "X",
        "GPUs per actor. Default: 1 if the cluster has GPUs, else 0.",
        parsers.gpus,
    )
    flag(local, "--batch-size", "N", "Answers per batch. Default: 16.", parsers.integer(1, 16))
    flag(local, "--address", "ADDRESS", "Ray cluster. Default: RAY_ADDRESS, else this machine.")
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise parsers.invalid(text, "JSON object", 'e.g. {"max_tokens": 50}')
    return content


def _judge(options: argparse.Namespace, first_run: Folder) -> Judge:
    """The requested judge; a ValueError if an option is missing or belongs to another judge."""
    kind = options.judge or ("endpoint" if os.environ.get(KEY, "").strip() else "offline")
    names = {name for allowed in ALLOWED.values() for name in allowed}
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    for name in sorted(given.keys() - set(ALLOWED[kind])):
        why = f"; {KEY} is {'set' if kind == 'endpoint' else 'not set, so the judge is offline'}"
        raise ValueError(
            f"--{name.replace('_', '-')} is not for --judge {kind}{'' if options.judge else why};"
            " give the --judge that you mean"
        )
    for name in REQUIRED[kind]:
        if name not in given:
            raise ValueError(
                f"--judge {kind} needs --{name}; give it, or use --judge offline, which is a metric"
                " and not a judge"
            )
    if kind == "offline":
        return judge(kind)
    cache = given.pop("cache", None)
    if cache is None:
        folder: Folder | None = first_run.parent.child("judge-cache")
    else:
        folder = None if cache == "none" else Folder.of(to_write(cache, "cache"))
    return judge(kind, cache=folder, **given)


@one_line_errors("judge.py")
def main() -> int:
    options = _parser().parse()
    outcomes: dict[str, Outcome] = {}
    try:
        folders = run_folders(options.runs)
        uri = mlflow_address(options.tracking_uri) if options.tracking_uri else None
        chosen = _judge(options, folders[0])
        for folder in folders:
            name = redacted(folder.uri).rstrip("/").rpartition("/")[2]
            outcomes[name] = judge_run(folder, chosen, lambda text: print(text, file=sys.stderr))
            print(summarize(name, outcomes[name]))
            _track(folder, uri)
    except FileNotFoundError:
        raise
    except (Unavailable, Locked, OSError) as error:
        print(f"judge.py: {one_line(error)}; {RESUME}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {RESUME}", file=sys.stderr)
        return 130
    if any(outcome.unjudged for outcome in outcomes.values()):
        print(
            "repeat the command to retry the rows without a verdict; the others cost nothing",
            file=sys.stderr,
        )
    numbers = {name: {**outcome.metrics, **outcome.tags} for name, outcome in outcomes.items()}
    print(json.dumps(numbers))
    return 0 if any(outcome.rows for outcome in outcomes.values()) else 1


def _track(folder: Folder, uri: str | None) -> None:
    """Bring the numbers to the run's MLflow, or to the one at `uri`."""
    try:
        record = RunRecord.load(folder)
    except FileNotFoundError:
        return
    if uri or record.mlflow.get("uri"):
        from pipelines.results.mlflow_tracker import replay

        replay(folder.uri, uri, say=lambda text: print(f"  mlflow    {text}"))


if __name__ == "__main__":
    sys.exit(main())
