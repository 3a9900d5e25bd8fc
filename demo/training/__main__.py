"""Train the small models in `demo/` on generated pictures, clips and questions.

    python -m demo.training    # all models, to demo/: hours on a CPU, faster on a GPU
    python -m demo.training --model demo-llava
    python -m demo.training --round 20,20,20 --test-questions 14 --work /tmp/w --out /tmp/w/out

The last command is a quick try. The models take turns, round by round. A round has three stages:
the vision tower on labels of every patch, its features of some pictures, and the decoder on
questions about them. Then the model is tested and written, with a model card.

Training may be stopped at any moment: the same command continues and repeats two minutes at most.
State, cached features (about 150 kB a picture) and generated data are below `--work`, and can be
deleted when it is done.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from demo.training.rounds import ROUNDS, Round
from demo.training.train import TASKS, train

_log = logging.getLogger("demo.training")


def main() -> None:
    flags = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(flags.threads)
    for round_ in flags.round or ROUNDS:
        for name in flags.model or list(TASKS):
            with _tracked(flags.tracking_uri, name, round_) as report:
                train(
                    name, round_, flags.test_questions, flags.work, flags.out, flags.device, report
                )


@contextmanager
def _tracked(
    uri: str | None, name: str, round_: Round
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Open an MLflow run and yield the function that logs to it; without a URI it does nothing."""
    if not uri:
        yield lambda numbers, step: None
        return
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("demo.training")
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"model": name, **round_._asdict()})

        def report(numbers: dict[str, float], step: int) -> None:
            try:
                mlflow.log_metrics(
                    {key.replace(" ", "_"): value for key, value in numbers.items()}, step=step
                )
            except Exception as error:  # a lost tracking server must not cost hours of training
                _log.warning("not logged to %s: %s", uri, error)

        yield report


def _round(text: str) -> Round:
    try:
        tower, pictures, steps = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"not a valid round: '{text}'; expected three whole numbers, e.g. 2000,1500,1500"
        ) from None
    return Round(tower, pictures, steps)


def _default_rounds() -> str:
    return " ".join(",".join(str(number) for number in round_) for round_ in ROUNDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", action="append", choices=list(TASKS), help="may be repeated (all)"
    )
    parser.add_argument(
        "--round",
        action="append",
        type=_round,
        metavar="TOWER,PICTURES,STEPS",
        help="steps of the tower, pictures, and steps of the decoder when the round ends; may be"
        f" repeated ({_default_rounds()})",
    )
    parser.add_argument(
        "--test-questions", type=int, help="number for the model card (the whole test split)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/train"), help="state and data (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="where the checkpoints go (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="as torch names it (%(default)s)")
    parser.add_argument(
        "--tracking-uri", help="MLflow server or sqlite:///file.db to log to (none)"
    )
    return parser


if __name__ == "__main__":
    main()
