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
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import one_line, redacted

KEY = "APET_JUDGE_API_KEY"
RESUME = "replies so far are stored; repeat the command to resume"
REQUIRED = {"endpoint": ("url", "model"), "local": ("model",), "offline": ()}


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise parsers.invalid(text, "JSON object", 'e.g. {"max_tokens": 50}')
    return content


# Flags by the judges that take them: name, metavar, parser, help.
FLAGS: dict[tuple[str, ...], tuple[tuple[str, str, parsers.TextParser, str], ...]] = {
    ("endpoint", "local"): (
        (
            "model",
            "NAME",
            parsers.text,
            "endpoint: the model's name on the server; local: a folder, or a name on the hub.",
        ),
        (
            "cache",
            "FOLDER",
            parsers.text,
            "Folder of the replies, or none. Default: judge-cache beside the first run.",
        ),
    ),
    ("endpoint",): (
        ("url", "URL", parsers.text, "Address up to and including /v1."),
        ("concurrency", "N", parsers.integer(1, 8), "Parallel requests. Default: 8."),
        ("timeout", "SECONDS", parsers.positive, "Time limit of a request. Default: 60."),
        ("tries", "N", parsers.integer(1, 6), "Attempts if a request fails. Default: 6."),
        (
            "request",
            "JSON",
            _json_object,
            "Fields of every request; null removes one:"
            ' \'{"temperature": null, "max_completion_tokens": 99}\'.',
        ),
    ),
    ("local",): (
        ("revision", "REV", parsers.text, "Hub revision: branch, tag or commit."),
        ("actors", "N", parsers.actors, "Actors with the model. Default: as many as fit."),
        ("gpus-per-actor", "X", parsers.gpus, "Default: 1 if the cluster has GPUs, else 0."),
        ("batch-size", "N", parsers.integer(1, 16), "Answers per batch. Default: 16."),
        ("address", "ADDRESS", parsers.text, "Default: RAY_ADDRESS, else this machine."),
    ),
}


def _parser() -> CommandParser:
    parser = CommandParser("judge.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Folder of answers: a path, s3:// or gs://.")
    default = f"Default: endpoint if {KEY} is set, else offline."
    add("--judge", choices=list(JUDGES), help=default)
    add(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database. Default: the file of the run's record, or the server of"
        " MLFLOW_TRACKING_URI.",
    )
    for judges, flags in FLAGS.items():
        group = parser.add_argument_group(" and ".join(judges))
        for name, metavar, parse, help in flags:
            group.add_argument(f"--{name}", metavar=metavar, type=argument_type(parse), help=help)
    return parser


def _judge(options: argparse.Namespace, first_run: Folder) -> Judge:
    """The requested judge; a ValueError if an option is missing or belongs to another judge."""
    kind = options.judge or ("endpoint" if os.environ.get(KEY, "").strip() else "offline")
    values = {}
    for judges, flags in FLAGS.items():
        for name, *_ in flags:
            value = getattr(options, name.replace("-", "_"))
            if value is not None and kind not in judges:
                why = f"; {KEY} is {'' if kind == 'endpoint' else 'not '}set"
                raise ValueError(
                    f"--{name} is not for --judge {kind}{'' if options.judge else why}; give the"
                    " --judge that you mean"
                )
            if value is not None:
                values[name.replace("-", "_")] = value
    for name in REQUIRED[kind]:
        if name not in values:
            raise ValueError(
                f"--judge {kind} needs --{name}; give it, or use --judge offline, which is a metric"
                " and not a judge"
            )
    if kind == "offline":
        return judge(kind)
    cache = values.pop("cache", None)
    folder = None if cache == "none" else first_run.parent.child("judge-cache")
    if cache not in (None, "none"):
        folder = Folder.of(to_write(cache, "cache"))
    return judge(kind, cache=folder, **values)


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
    except (Unavailable, OSError) as error:
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
