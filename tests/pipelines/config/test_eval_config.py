"""The command line: what it means, what it refuses and how it says so, and what a run's identity is made of."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from apet import METHODS
from pipelines.config import cli_help
from pipelines.config.eval_config import EvalConfig, digest, parse, to_yaml
from pipelines.config.flags import flags_of
from tests.support import ROOT

JOBS = {"image": ROOT / "jobs/eval_image.py", "video": ROOT / "jobs/eval_video.py"}
GOLDEN = "c6537bef2ace23ba9f2c6edfee3824e4867a7773cbccd5fccf1e69daefdd0722"
HEAVY = {"torch", "ray", "mlflow", "transformers"}


def refused(capsys: pytest.CaptureFixture[str], *argv: str, kind: Any = "image") -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as stopped:
        parse(kind, argv)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"eval_{kind}.py: ")
    return err.partition(": ")[2].strip()


# ---- what is asked for


def test_no_argument_is_the_demo() -> None:
    image, video = parse("image", []), parse("video", [])
    assert (image.model, image.benchmark, image.limit, image.max_new_tokens) == (
        "demo",
        "shapes",
        200,
        16,
    )
    assert (video.model, video.benchmark, video.limit, video.frames) == ("demo", "motion", 200, 8)
    assert [point.name for point in image.points] == ["vanilla", "apet-64"]
    assert [point.name for point in video.points] == ["vanilla", "apet-12.5pct"]


def test_beyond_the_demo_everything_is_asked() -> None:
    assert parse("image", ["--limit", "all"]).limit is None
    assert parse("image", ["--model", "org/model"]).limit is None
    assert parse("image", ["--model", "org/model"]).max_new_tokens == 128
    own = parse("image", ["--data", "q.jsonl"])
    assert (own.benchmark, own.limit) == ("manifest", None)
    assert parse("image", ["--benchmark", "shapes", "--data", "q.jsonl"]).limit is None


def test_every_flag_is_read() -> None:
    config = parse(
        "video",
        shlex.split(
            "--model org/m --revision v1 --trust-remote-code --benchmark manifest --data s3://b/q.parquet --split val"
            " --media-root clips --allow-outside --question 'What is it?' --limit 1_000 --method apet --budget 10.0%"
            " --frames 4 --min-pixels 9 --max-pixels 99 --conversation vicuna_v1 --temperature 0.7 --max-new-tokens 32"
            " --seed 3 --dtype bfloat16 --attn sdpa --ray-address auto --actors 1,4 --gpus-per-actor 0.25"
            " --cpus-per-actor 2 --batch-size 8 --batch-tokens 4096 --compile --batch-timeout 90 --output gs://b/o"
            " --tracking-uri http://host:5000 --experiment e --max-error-rate 5% --retry-errors"
        ),
    )
    assert config == EvalConfig(
        kind="video",
        model="org/m",
        revision="v1",
        trust_remote_code=True,
        benchmark="manifest",
        data="s3://b/q.parquet",
        split="val",
        media_root="clips",
        allow_outside=True,
        question="What is it?",
        limit=1000,
        methods=("apet",),
        budgets=("10%",),
        frames=4,
        min_pixels=9,
        max_pixels=99,
        conversation="vicuna_v1",
        temperature=0.7,
        max_new_tokens=32,
        seed=3,
        dtype="bfloat16",
        attn="sdpa",
        ray_address="auto",
        actors=(1, 4),
        gpus_per_actor=0.25,
        cpus_per_actor=2.0,
        batch_size=8,
        batch_tokens=4096,
        compile=True,
        batch_timeout=90.0,
        output="gs://b/o",
        tracking_uri="http://host:5000",
        experiment="e",
        max_error_rate=0.05,
        retry_errors=True,
    )
    default = EvalConfig.of("video")
    same = [
        each.field
        for each in flags_of(EvalConfig, "video")
        if getattr(default, each.field) == getattr(config, each.field)
    ]
    assert same == ["schedule"], "a flag is missing from this test"


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: [apet, 'fastv:budget=128']\nbudget: [64, 10%]\nbatch-size: 4\nretry_errors: true\nattn:\n"
    )
    config = parse("image", ["--config", str(file), "--batch-size", "2", "--no-retry-errors"])
    assert (config.batch_size, config.retry_errors, config.attn) == (2, False, "packed")
    assert [point.name for point in config.points] == ["apet-64", "apet-10pct", "fastv-128"]
    config = parse("image", ["--config", str(file), "--schedule", "encoder=96, 16=32"])
    assert [point.name for point in config.points] == ["apet-encoder=96_16=32", "fastv-128"]


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "--limit all --actors 1,4",
        "--schedule encoder=30%,14=10%",
        "--data q.jsonl --budget 1 --budget 2 --temperature 1",
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_resolved_config_is_a_config_file(kind: Any, argv: str, tmp_path: Path) -> None:
    config = parse(kind, argv.split())
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert parse(kind, ["--config", str(file)]) == config
    assert set(yaml.safe_load(to_yaml(config))) == {
        "kind",
        *(each.field for each in flags_of(EvalConfig, kind)),
    }


def test_the_resolved_config_tells_no_password() -> None:
    config = EvalConfig.of(
        "image", tracking_uri="postgresql://me:secret@host/db", output="s3://key:secret@bucket/o"
    )
    assert "secret" not in to_yaml(config)
    assert "host/db" in to_yaml(config)


# ---- what is refused


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--bugdet 64", "did you mean '--budget'?"),
        ("--batch_size 3", "did you mean '--batch-size'?"),
        ("--batch-size", "--batch-size: expected one argument"),
        ("--model=", "--model: it is empty"),
        ("64", "'64' stands alone"),
        ("--budget 0.1", "did you mean '10%'?"),
        ("--budget 0", "no budget"),
        ("--budget 101%", "no budget"),
        ("--budget 64,", "'' is no budget"),
        ("--budget 64 --budget 6x4", "--budget: '6x4' is no budget"),
        ("--schedule encoder96", "encoder=96,16=32"),
        ("--schedule encoder=0", "cannot read 'encoder=0'"),
        ("--schedule encoder=96 --budget 64", "exclude each other"),
        ("--method aept", "did you mean 'apet'?"),
        ("--method apet:basis", "apet:budget=64,basis=5"),
        ("--method apet:basis=5,basis=6", "gives basis twice"),
        ("--method apet:budget=x", "budget in 'apet:budget=x'"),
        ("--method apet:budget=64,schedule=encoder=9", "one of the two"),
        ("--method vanilla:budget=64", "vanilla is the unmodified model"),
        ("--method apet --method apet", "apet-64 is asked for twice"),
        ("--budget 64,64", "apet-64 is asked for twice"),
        ("--method apet --method apet:budget=64", "apet-64 is asked for twice"),
        ("--benchmark shape", "did you mean 'shapes'?"),
        ("--benchmark manifest", "needs --data"),
        ("--dtype fp16", "did you mean 'float16'?"),
        ("--attn flash", "did you mean 'flash_attention_2'?"),
        ("--conversation vicuna", "did you mean 'vicuna_v1'?"),
        ("--limit 0", "'all'"),
        ("--actors 4,1", "did you mean '1,4'?"),
        ("--actors 0", "such as 4"),
        ("--gpus-per-actor 1.5", "a part of one"),
        ("--gpus-per-actor -1", "no number from 0"),
        ("--cpus-per-actor 0", "such as 0.5"),
        ("--max-error-rate 5", "0 to 1"),
        ("--temperature nan", "no number from 0"),
        ("--max-new-tokens 0", "whole number from 1"),
        ("--batch-size 1.5", "whole number from 1"),
        ("--min-pixels 9 --max-pixels 8", "swap them"),
        ("--frames 8", "eval_video.py"),
        ("--visual_token_num 96", "use --budget 64 or --schedule encoder=96,16=32"),
        ("--basis 5", "apet:basis="),
        ("--conv-mode vicuna_v1", "use --conversation"),
        (
            "--lang cn",
            "--lang; leave it out: it is a property of a benchmark, not of a run (docs/flags.md)",
        ),
        ("--cache_dir x", "--cache_dir; leave it out: HF_HOME says where the hub's files are"),
        ("--all-rounds", "--all-rounds; leave it out: it is a property of a benchmark"),
        ("--config nowhere.yaml", "no such file"),
    ],
)
def test_a_wrong_command_is_one_line_with_a_way_out(
    argv: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *argv.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bugdet: 64", "there is no key 'bugdet'; did you mean 'budget'?"),
        ("budget: 6x4", "budget: '6x4' is no budget"),
        ("budget: {a: 1}", "give one value"),
        ("batch_size: [1, 2]", "give one value"),
        ("batch_size: 1\nbatch-size: 2", "there twice"),
        ("retry_errors: perhaps", "none of true, false"),
        ("budget: 64\nschedule: encoder=9", "exclude each other"),
        ("kind: video", "use the other job"),
        ("- 1", "no keys and values"),
        ("a: [", "is no YAML"),
        ("visual_token_num: 96", "use --budget 64"),
    ],
)
def test_a_wrong_file_is_one_line_with_a_way_out(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = refused(capsys, "--config", str(file))
    assert said in message
    assert "run.yaml" in message or "exclude" in message


@pytest.mark.parametrize("kind", ["image", "video"])
def test_help_teaches(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(kind, ["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "what a budget is" in text
    for each in flags_of(EvalConfig, kind):
        assert each.option in text
        assert each.help.split()[0] in text
    for name in METHODS:
        assert name in text
    assert (
        max(map(len, text.replace(cli_help.DESCRIPTION.format(kind=kind), "").splitlines())) <= 120
    )


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_examples_of_help_are_right(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("budget: 64")
    lines = cli_help.EXAMPLES[kind].replace("\\\n", " ").splitlines()[1:]
    commands = [
        re.split(r"\s{3,}(?!-)", line.partition(f"jobs/eval_{kind}.py")[2].rstrip())[0]
        for line in lines
    ]
    assert len(commands) > 3
    assert all(parse(kind, shlex.split(command)).points for command in commands)


def test_flags_of_the_release_are_in_the_table() -> None:
    table = (ROOT / "docs/flags.md").read_text()
    ours = {each.option for kind in ("image", "video") for each in flags_of(EvalConfig, kind)}  # type: ignore[arg-type]
    for line in table.splitlines():
        if line.startswith("| ") and "--" in line:
            assert set(re.findall(r"`?(--[a-z-]+)", line.split(" | ")[1])) <= ours, line
    said = {name.replace("-", "_") for name in re.findall(r"--([A-Za-z][\w-]+)", table)}
    released = {
        name
        for name, instead in cli_help.INSTEAD.items()
        if "apet:" not in instead and name != "frames"
    }
    assert released <= said
    empty = " ".join(line.partition(" | | ")[0] for line in table.splitlines() if " | | " in line)
    nothing = {name.replace("-", "_") for name in re.findall(r"--([A-Za-z][\w-]+)", empty)}
    assert cli_help.NOTHING.keys() == nothing - cli_help.INSTEAD.keys()
    for instead in cli_help.INSTEAD.values():
        assert set(re.findall(r"--[a-z-]+", instead)) <= ours


# ---- nothing heavy


@pytest.mark.parametrize(
    "argv", [["--help"], ["--bugdet", "64"], ["--method", "apet:basis=5", "--actors", "0"]]
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_job_answers_before_anything_is_loaded(kind: str, argv: list[str]) -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY} & set(sys.modules))))\n"
        f"sys.argv = {[str(JOBS[kind]), *argv]}\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.endswith("heavy: []\n"), done.stderr
    assert done.returncode == (0 if argv == ["--help"] else 2)
    assert time.monotonic() - began < 30


def test_a_right_command_is_parsed_resolved_and_identified_without_anything_heavy(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\n"
        "from pipelines.config.eval_config import parse, to_yaml\n"
        "from pipelines.config.paths import model_fingerprint, resolve_paths\n"
        f"config = resolve_paths(parse('image', ['--model', {str(tmp_path)!r}, '--method', 'apet']))\n"
        "identity = config.identity(config.points[0], 'm', model_fingerprint(config.model), '1')\n"
        "to_yaml(config), config.run_name(config.points[0], identity)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


# ---- identity


def test_identity_is_what_affects_answers() -> None:
    config = EvalConfig.of("video")
    point = config.points[1]
    of = digest(config.identity(point, "manifest", "model", "1"))
    same = {
        "actors": (3, 4),
        "batch_size": 3,
        "batch_tokens": 900,
        "batch_timeout": 9.0,
        "output": "o",
        "tracking_uri": "t",
        "limit": None,
        "retry_errors": True,
        "max_error_rate": 0.5,
        "gpus_per_actor": 0.5,
        "cpus_per_actor": 2.0,
        "ray_address": "a",
        "experiment": "e",
        "media_root": "m",
        "allow_outside": True,
        "data": "d",
        "methods": ("dart",),
        "budgets": ("10%",),
        "model": "told by its fingerprint",
        "revision": "too",
        "trust_remote_code": True,
    }
    other = {
        "dtype": "float16",
        "attn": "eager",
        "compile": True,
        "benchmark": "shapes",
        "split": "val",
        "question": "What?",
        "frames": 9,
        "min_pixels": 1,
        "max_pixels": 2,
        "conversation": "vicuna_v1",
        "temperature": 1.0,
        "max_new_tokens": 9,
        "seed": 1,
    }
    assert {*same, *other, "schedule"} == {each.field for each in flags_of(EvalConfig, "video")}
    for name, value in same.items():
        assert (
            digest(replace(config, **{name: value}).identity(point, "manifest", "model", "1")) == of
        ), name
    changed = [
        digest(replace(config, **{name: value}).identity(point, "manifest", "model", "1"))
        for name, value in other.items()
    ]
    changed += [
        digest(config.identity(point, *what))
        for what in [("x", "model", "1"), ("manifest", "x", "1"), ("manifest", "model", "2")]
    ]
    changed += [digest(config.identity(config.points[0], "manifest", "model", "1"))]
    assert len({of, *changed}) == 1 + len(changed)


def test_the_digest_and_the_name_of_a_run_stay() -> None:
    config = EvalConfig.of("image", model="org/Some-Model_1.5")
    identity = config.identity(config.points[1], "manifest", "model@main", "1")
    assert digest(identity) == GOLDEN, (
        "a changed identity makes every run of before start again: was that meant?"
    )
    assert (
        config.run_name(config.points[1], identity) == f"shapes-Some-Model_1.5-apet-64-{GOLDEN[:8]}"
    )
    assert digest(dict(reversed(identity.items()))) == GOLDEN
