"""Train the small models in `demo/`: what they see, what they are asked and what they learn from is generated.

    python demo/training/__main__.py                          # all of them, to demo/: hours on a CPU, faster on a GPU
    python demo/training/__main__.py --model demo-llava       # one of them
    python demo/training/__main__.py --round 20,20,20 --test-questions 14 --work /tmp/demo --out /tmp/demo/out  # a quick try

They take turns, round by round. A round has three stages: the vision tower on labels of every patch, its features of
some pictures, and the decoder on questions about them. Then the model is tested and written, with a model card.

It may be stopped at any moment: the same command goes on where it was, two minutes of work lost at most. State,
cached features (about 150 kB a picture) and generated data are below `--work`, and can be removed when it is done.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from demo.training.course import ROUNDS, SUBJECTS, Round, train

_log = logging.getLogger("train_demo")


def main() -> None:
    flags = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(flags.threads)
    for this in flags.round or ROUNDS:
        for name in flags.model or list(SUBJECTS):
            with _tracked(flags.tracking_uri, name, this) as report:
                train(name, this, flags.test_questions, flags.work, flags.out, flags.device, report)


@contextmanager
def _tracked(
    uri: str | None, name: str, this: Round
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """What takes numbers while the run lasts; without a tracking URI they are in the log alone."""
    if not uri:
        yield lambda numbers, step: None
        return
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("train_demo")
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"model": name, **this._asdict()})

        def report(numbers: dict[str, float], step: int) -> None:
            try:
                mlflow.log_metrics(
                    {key.replace(" ", "_"): value for key, value in numbers.items()}, step=step
                )
            except (
                Exception
            ) as error:  # a tracking server that is away is no reason to lose hours of training
                _log.warning("not logged to %s: %s", uri, error)

        yield report


def _round(text: str) -> Round:
    try:
        tower, pictures, steps = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not three whole numbers, as in 2000,1500,1500"
        ) from None
    return Round(tower, pictures, steps)


def _shown() -> str:
    return " ".join(",".join(str(number) for number in each) for each in ROUNDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", choices=list(SUBJECTS), help="which; may be repeated (all)"
    )
    parser.add_argument(
        "--round",
        action="append",
        type=_round,
        metavar="TOWER,PICTURES,STEPS",
        help=f"steps of the tower, pictures and steps of the decoder at its end; may be repeated ({_shown()})",
    )
    parser.add_argument("--test-questions", type=int, help="for the card (the whole test split)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/train"), help="state and data (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="where the checkpoints go (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)"
    )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, help="as torch names it (%(default)s)")
    parser.add_argument(
        "--tracking-uri", help="of an MLflow server or sqlite:///file.db to log to (none)"
    )
    return parser


if __name__ == "__main__":
    main()
