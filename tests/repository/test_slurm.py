"""cluster/slurm.sh with stubs for Slurm, Ray and Python: what is started, passed on and ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

SCRIPT = ROOT / "cluster" / "slurm.sh"
pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """`slurm(job)`: run cluster/slurm.sh with stubs that write their calls to a file."""
    stubs = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "hostname": "case $1 in --ip-address) cat named 2>/dev/null;;"
        " --all-ip-addresses) cat bound;; esac",
        "scontrol": '[ "$1" = requeue ] && echo "requeue $2" >>calls || printf "n1\\nn2\\nn3\\n"',
        "ray": "trap 'echo ray ended >>calls; kill $!; exit' TERM;"
        ' echo "ray $*" >>calls; sleep 60 & wait',
        "python": "case $1 in -c) echo token;;"
        ' -) cat >/dev/null; joined "$2";; *) source job;; esac',
        "joined": "until [ $(grep -c 'ray start' calls) = $1 ]; do sleep 0.1; done;"
        " echo joined $1 >>calls",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bound").write_text("fd00::5 10.0.0.1 172.17.0.1 \n")
    given = {
        "SLURM_JOB_ID": "70001",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    given |= {
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def run(job: str, *flags: str) -> tuple[int, list[str]]:
        (tmp_path / "job").write_text(job)
        command = ["bash", str(SCRIPT), *flags]
        done = subprocess.run(
            command,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        calls = tmp_path / "calls"
        return done.returncode, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_script_starts_ray_runs_the_job_and_stops_ray(slurm: Any) -> None:
    status, calls = slurm(
        'echo "job $* at $RAY_ADDRESS with $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>calls; exit 3',
        "job.py",
        "-x",
    )
    assert status == 3
    assert sorted(calls).count("ray ended") == 3
    started = [call for call in calls if call.startswith("ray start")]
    assert [("--head" in call, "--address=10.0.0.1:20001" in call) for call in started] == [
        (True, False),
        *[(False, True)] * 2,
    ]
    assert all("--num-cpus=8 --num-gpus=2" in call and "--block" in call for call in started)
    assert all("--metrics-export-port=8080" in call for call in started)
    place = {call: calls.index(call) for call in ("joined 1", "joined 3", *started)}
    assert place[started[0]] < place["joined 1"] < place[started[1]] < place["joined 3"]
    assert "job job.py -x at 10.0.0.1:20001 with token token" in calls


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("127.0.1.1\n", "10.0.0.1"),
        ("::1 127.0.0.1\n", "10.0.0.1"),
        ("fe80::1 10.9.0.7\n", "10.9.0.7"),
    ],
)
def test_script_finds_an_address_that_other_nodes_reach(
    slurm: Any, tmp_path: Path, named: str, address: str
) -> None:
    (tmp_path / "named").write_text(named)
    status, calls = slurm('echo "job at $RAY_ADDRESS" >>calls', "job.py")
    assert status == 0
    assert f"job at {address}:20001" in calls
    assert f"--node-ip-address={address} " in next(call for call in calls if "--head" in call)


def test_script_fails_without_such_an_address(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "bound").write_text("fd00::5\n")
    assert slurm("", "job.py") == (1, [])


def test_script_requeues_the_job_when_its_time_is_over(slurm: Any) -> None:
    job = "trap 'echo told >>calls; kill $!; exit 130' TERM; kill -USR1 $PPID; sleep 60 & wait"
    status, calls = slurm(job, "job.py")
    assert status == 130
    assert [call for call in calls if call in ("told", "requeue 70001")] == [
        "told",
        "requeue 70001",
    ]
    assert calls.count("ray ended") == 3


def test_script_requires_a_job(slurm: Any) -> None:
    assert slurm("") == (2, [])


def test_scripts_pass_shellcheck() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    subprocess.run([program, SCRIPT, ROOT / ".ci" / "run"], check=True)
