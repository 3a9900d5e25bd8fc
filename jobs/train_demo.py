"""Train the small models in `demo/`: what they see, what they are asked and what they learn from is generated.

    python jobs/train_demo.py                          # all of them, to demo/: hours on a CPU
    python jobs/train_demo.py --model demo-llava       # one of them
    python jobs/train_demo.py --publish                # no training: test the last checkpoint, write it and its card
    python jobs/train_demo.py --tower-steps 20 --pictures 20 --steps 20 --test-questions 14 --out /tmp/demo   # a try

It may be stopped at any moment: the same command goes on where it was, two minutes of work lost at most. State,
cached features (about 150 kB a picture) and generated data are below `--work`, and can be removed when it is done.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines.training.course import SUBJECTS, Plan, publish, train

_log = logging.getLogger("train_demo")


def main() -> None:
    flags = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(flags.threads)
    plan = Plan(flags.tower_steps, flags.pictures, flags.steps, flags.test_questions)
    for name in flags.model or list(SUBJECTS):
        _log.info("%s: %s", name, plan)
        if flags.publish:
            publish(name, plan, flags.work, flags.out)
            continue
        with _tracked(flags.tracking_uri, name, plan) as report:
            result = train(name, plan, flags.work, flags.out, report)
            low, high = result.total.interval
            numbers = {"accuracy": result.total.accuracy, "accuracy_ci_low": low, "accuracy_ci_high": high}
            report(
                {**numbers, **{f"accuracy_{kind}": mark.accuracy for kind, mark in result.types.items()}}, plan.steps
            )


@contextmanager
def _tracked(uri: str | None, name: str, plan: Plan) -> Iterator[Callable[[dict[str, float], int], None]]:
    """What takes numbers while the run lasts; without a tracking URI they are in the log alone."""
    if not uri:
        yield lambda numbers, step: None
        return
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("train_demo")
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"model": name, **asdict(plan)})

        def report(numbers: dict[str, float], step: int) -> None:
            try:
                mlflow.log_metrics({key.replace(" ", "_"): value for key, value in numbers.items()}, step=step)
            except Exception as error:  # a tracking server that is away is no reason to lose hours of training
                _log.warning("not logged to %s: %s", uri, error)

        yield report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan = Plan()
    parser.add_argument("--model", action="append", choices=list(SUBJECTS), help="which; may be repeated (all)")
    parser.add_argument("--tower-steps", type=int, default=plan.tower_steps, help="of the vision tower (%(default)s)")
    parser.add_argument(
        "--pictures", type=int, default=plan.pictures, help="that the decoder learns from (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=plan.steps, help="of the decoder (%(default)s)")
    parser.add_argument("--test-questions", type=int, help="for the card (the whole test split)")
    parser.add_argument("--work", type=Path, default=Path("runs/train"), help="state and data (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the checkpoints go (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")
    parser.add_argument("--publish", action="store_true", help="test and write the last checkpoint, train nothing")
    parser.add_argument("--tracking-uri", help="of an MLflow server or sqlite:///file.db to log to (none)")
    return parser


if __name__ == "__main__":
    main()
