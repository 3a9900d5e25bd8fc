"""`ray job submit` to a running head, from a working directory that is deleted afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.results import answers
from pipelines.results.storage import Folder
from tests.support import ROOT, tiny

DASHBOARD = "http://127.0.0.1:8291"


@pytest.fixture
def head(subprocesses: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a head in a child process: `ray stop` would end every Ray on this machine."""
    from ray.job_submission import JobSubmissionClient

    folder = Path("/tmp") / f"apet-{os.getpid()}"  # the paths of sockets must be short
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
        # Ports below 10002: those above are for workers.
        *("--num-cpus=2", "--port=6391", "--dashboard-port=8291"),
        *("--dashboard-agent-listen-port=8292", "--object-store-memory=200000000"),
        *(f"--temp-dir={folder}", "--disable-usage-stats"),
    ]
    # On a busy machine Ray may take longer to start than it allows itself.
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None:
            try:
                JobSubmissionClient(DASHBOARD).list_jobs()
            except Exception:
                time.sleep(0.5)
            else:
                yield DASHBOARD
                process.terminate()
                process.wait(60)
                return
    pytest.fail("no Ray head started")


def test_submitted_job_writes_its_answers(
    head: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = []
    for number in range(5):
        tiny.image(30, 24, seed=number).save(tmp_path / f"{number}.png")
        rows.append({"id": f"{number}", "media": f"{number}.png", "question": "What is this?"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = tmp_path / "checkout"
    # A copy, since the real checkout may change during the upload.
    for name in ("apet", "pipelines", "jobs"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    ray = str(Path(sys.executable).with_name("ray"))
    submit = [ray, "job", "submit", "--address", head, "--working-dir", "."]
    job = f"{sys.executable} jobs/eval_image.py --model {checkpoint('llava')}"
    job += f" --data {tmp_path}/rows.jsonl"
    job += " --method vanilla --max-new-tokens 2 --actors 1 --cpus-per-actor 0.5 --output"
    output = tmp_path / "out"
    both = f"! {job} here && {job} {output}"  # the first would lose its answers, and says so
    done = subprocess.run(
        [*submit, "--", "sh", "-c", both], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "--output here would be deleted" in done.stdout + done.stderr
    [folder] = [path.parent for path in output.glob("*/config.yaml")]
    assert answers.read(Folder.of(str(folder)))["row_id"].to_pylist() == [row["id"] for row in rows]
    assert (output / "mlflow.db").exists()
