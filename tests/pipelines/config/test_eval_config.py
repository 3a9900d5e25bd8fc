"""The command line: its values, its errors, and the identity of a run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from apet import METHODS
from jobs import eval_image, eval_video
from pipelines.config.eval_config import EvalConfig, digest, parse, to_yaml
from pipelines.config.flags import field_docs, flags_of, help_text
from tests.support import ROOT

GOLDEN = "c6537bef2ace23ba9f2c6edfee3824e4867a7773cbccd5fccf1e69daefdd0722"
HEAVY = {"torch", "ray", "mlflow", "transformers"}


def error_of(*argv: str) -> str:
    """The message of a wrong command, which has one line."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        parse("image", argv)
    return str(error.value)


# ---- values


def test_without_arguments_the_demo_runs() -> None:
    image, video = parse("image", []), parse("video", [])
    assert (image.model, image.benchmark, image.limit, image.max_new_tokens) == (
        "demo",
        "shapes",
        200,
        16,
    )
    assert (video.model, video.benchmark, video.limit, video.frames) == ("demo", "motion", 200, 8)
    assert [spec.name for spec in image.method_specs] == ["vanilla", "apet-64"]
    assert [spec.name for spec in video.method_specs] == ["vanilla", "apet-12.5pct"]


def test_other_models_and_data_have_no_limit() -> None:
    assert parse("image", ["--limit", "all"]).limit is None
    assert parse("image", ["--model", "org/model"]).limit is None
    assert parse("image", ["--model", "org/model"]).max_new_tokens == 128
    own = parse("image", ["--data", "q.jsonl"])
    assert (own.benchmark, own.limit) == ("manifest", None)
    assert parse("image", ["--benchmark", "shapes", "--data", "q.jsonl"]).limit is None


def test_every_flag_sets_its_field() -> None:
    config = parse(
        "video",
        shlex.split(
            """
            --model org/m --revision v1 --trust-remote-code --benchmark manifest
            --data s3://b/q.parquet --split val --media-root clips --allow-outside
            --question 'What is it?' --limit 1_000 --method apet --budget 10.0% --frames 4
            --min-pixels 9 --max-pixels 99 --conversation vicuna_v1 --temperature 0.7
            --generation official --max-new-tokens 32 --seed 3 --dtype bfloat16 --attn sdpa
            --ray-address auto --actors 1,4 --gpus-per-actor 0.25 --cpus-per-actor 2 --batch-size 8
            --batch-tokens 4096 --share none --compile --batch-timeout 90 --output gs://b/o
            --tracking-uri http://host:5000 --experiment e --max-error-rate 5% --retry-errors
            """
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
        generation="official",
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
        share="none",
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
        flag.field
        for flag in flags_of(EvalConfig, "video")
        if getattr(default, flag.field) == getattr(config, flag.field)
    ]
    assert same == ["schedule"], "a flag is missing from this test"


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: [apet, 'fastv:budget=128']\nbudget: [64, 10%]\n"
        "batch-size: 4\nretry_errors: true\nattn:\n"
    )
    config = parse("image", ["--config", str(file), "--batch-size", "2", "--no-retry-errors"])
    assert (config.batch_size, config.retry_errors, config.attn) == (2, False, "packed")
    assert [spec.name for spec in config.method_specs] == ["apet-64", "apet-10pct", "fastv-128"]
    config = parse("image", ["--config", str(file), "--schedule", "encoder=96, 16=32"])
    assert [spec.name for spec in config.method_specs] == ["apet-encoder=96_16=32", "fastv-128"]


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
def test_resolved_config_is_a_valid_config_file(kind: Any, argv: str, tmp_path: Path) -> None:
    config = parse(kind, argv.split())
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert parse(kind, ["--config", str(file)]) == config
    assert set(yaml.safe_load(to_yaml(config))) == {
        "kind",
        *(flag.field for flag in flags_of(EvalConfig, kind)),
    }


def test_resolved_config_hides_passwords() -> None:
    config = EvalConfig.of(
        "image", tracking_uri="postgresql://me:secret@host/db", output="s3://key:secret@bucket/o"
    )
    assert "secret" not in to_yaml(config)
    assert "host/db" in to_yaml(config)


# ---- errors


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--bugdet 64", "did you mean '--budget'?"),
        ("--batch_size 3", "did you mean '--batch-size'?"),
        ("--batch-size", "--batch-size: expected one argument"),
        ("--model=", "--model: the value is empty"),
        ("64", "unexpected argument '64'"),
        ("--budget 0.1", "did you mean '10%'?"),
        ("--budget 0", "not a valid budget"),
        ("--budget 101%", "not a valid budget"),
        ("--budget 64,", "'' is not a valid budget"),
        ("--budget 64 --budget 6x4", "--budget: '6x4' is not a valid budget"),
        ("--schedule encoder96", "encoder=96,16=32"),
        ("--schedule encoder=0", "cannot read 'encoder=0'"),
        ("--schedule encoder=96 --budget 64", "exclude each other"),
        ("--method aept", "did you mean 'apet'?"),
        ("--method apet:basis", "apet:budget=64,basis=5"),
        ("--method apet:basis=5,basis=6", "sets basis twice"),
        ("--method apet:budget=x", "budget in 'apet:budget=x'"),
        ("--method apet:budget=64,schedule=encoder=9", "set only one of them"),
        ("--method vanilla:budget=64", "vanilla is the unmodified model"),
        ("--method apet --method apet", "apet-64 is requested twice"),
        ("--budget 64,64", "apet-64 is requested twice"),
        ("--method apet --method apet:budget=64", "apet-64 is requested twice"),
        ("--benchmark shape", "did you mean 'shapes'?"),
        ("--benchmark manifest", "needs --data"),
        ("--dtype fp16", "did you mean 'float16'?"),
        ("--attn flash", "did you mean 'flash_attention_2'?"),
        ("--generation offical", "did you mean 'official'?"),
        ("--conversation vicuna", "did you mean 'vicuna_v1'?"),
        ("--limit 0", "'all'"),
        ("--actors 4,1", "did you mean '1,4'?"),
        ("--actors 0", "e.g. 4"),
        ("--gpus-per-actor 1.5", "a fraction of one GPU"),
        ("--gpus-per-actor -1", "expected a whole number"),
        ("--cpus-per-actor 0", "expected more than 0"),
        ("--max-error-rate 5", "0 to 1"),
        ("--temperature nan", "expected 0 or more"),
        ("--max-new-tokens 0", "whole number from 1"),
        ("--batch-size 1.5", "whole number from 1"),
        ("--min-pixels 9 --max-pixels 8", "swap them"),
        ("--frames 8", "--frames is only for videos; use eval_video.py"),
        ("--visual_token_num 96", "unknown flag --visual_token_num; --help lists all flags"),
        ("--config nowhere.yaml", "no such file"),
    ],
)
def test_wrong_command_has_an_error_of_one_line(argv: str, expected: str) -> None:
    assert expected in error_of(*argv.split())


@pytest.mark.parametrize("job", [eval_image, eval_video])
def test_wrong_command_prints_one_line_and_returns_2(
    job: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"{job.__name__.rpartition('.')[2]}.py"
    monkeypatch.setattr(sys, "argv", [script, "--budget", "s3://key:secret@bucket\nx"])
    assert job.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"{script}: --budget: 's3://***@bucket x' is not a valid budget")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bugdet: 64", "unknown key 'bugdet'; did you mean 'budget'?"),
        ("budget: 6x4", "budget: '6x4' is not a valid budget"),
        ("budget: {a: 1}", "expected one value"),
        ("batch_size: [1, 2]", "expected one value"),
        ("batch_size: 1\nbatch-size: 2", "given twice"),
        ("retry_errors: perhaps", "not one of true, false"),
        ("budget: 64\nschedule: encoder=9", "exclude each other"),
        ("kind: video", "needs the other job"),
        ("- 1", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("visual_token_num: 96", "unknown key 'visual_token_num'; --help lists all flags"),
        ("frames: 8", "--frames is only for videos"),
    ],
)
def test_wrong_file_has_an_error_of_one_line(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = error_of("--config", str(file))
    assert expected in message
    assert "run.yaml" in message or "exclude" in message or "only for" in message


@pytest.mark.parametrize("kind", ["image", "video"])
def test_help_shows_every_flag_in_100_columns(
    kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(kind, ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "A budget is the number of visual tokens" in text
    for flag in flags_of(EvalConfig):
        assert (f"  {flag.option}" in text) == (flag.kind in (None, kind))
    docs = field_docs(EvalConfig)
    assert docs.keys() == {flag.field for flag in flags_of(EvalConfig)}, "a field has no help"
    words = text.split()
    assert all(doc.split()[0] in words for field, doc in docs.items() if field in text)
    for name in METHODS:
        assert name in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("kind", ["image", "video"])
def test_examples_of_help_can_be_parsed(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("budget: 64")
    lines = help_text(f"examples_{kind}").replace("\\\n", " ").splitlines()
    script = f"jobs/eval_{kind}.py"
    commands = [line.partition(script)[2] for line in lines if script in line]
    assert len(commands) > 3
    assert all(parse(kind, shlex.split(command)).method_specs for command in commands)


def test_table_of_the_releases_flags_names_existing_flags() -> None:
    table = (ROOT / "docs/flags.md").read_text()
    ours = {flag.option for flag in flags_of(EvalConfig)}
    for line in table.splitlines():
        if line.startswith("| ") and "--" in line:
            assert set(re.findall(r"`?(--[a-z-]+)", line.split(" | ")[1])) <= ours, line


# ---- start-up


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize(
    ("job", "argv", "status"),
    [
        ("eval_image", ["--help"], 0),
        ("eval_video", ["--bugdet", "64"], 2),
        ("sweep", ["x.yaml"], 2),
    ],
)
def test_job_shows_help_and_errors_before_heavy_imports(
    job: str, argv: list[str], status: int
) -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY} & set(sys.modules))))\n"
        f"sys.argv = {[f'jobs/{job}.py', *argv]}\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.endswith("heavy: []\n"), done.stderr
    assert done.returncode == status


@pytest.mark.usefixtures("subprocesses")
def test_config_and_identity_need_no_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipelines.config.eval_config import parse, to_yaml\n"
        "from pipelines.config.model_version import model_fingerprint\n"
        "from pipelines.config.model_defaults import with_model_defaults\n"
        "from pipelines.config.paths import resolve_paths\n"
        f"config = resolve_paths(parse('image', ['--model', {str(tmp_path)!r}]))\n"
        "config = with_model_defaults(config)\n"
        "spec, fingerprint = config.method_specs[0], model_fingerprint(config.model)\n"
        "config.run_name(spec, config.identity(spec, 'm', fingerprint, '1')), to_yaml(config)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


# ---- identity


def test_identity_changes_with_every_field_that_changes_answers() -> None:
    config = EvalConfig.of("video")
    spec = config.method_specs[1]
    of = digest(config.identity(spec, "manifest", "model", "1"))
    same = {
        "actors": (3, 4),
        "batch_size": 3,
        "batch_tokens": 900,
        "batch_timeout": 9.0,
        "share": "none",
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
        "model": "part of the identity as a fingerprint",
        "revision": "also in the fingerprint",
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
        "generation": "official",
        "temperature": 1.0,
        "max_new_tokens": 9,
        "seed": 1,
    }
    assert {*same, *other, "schedule"} == {flag.field for flag in flags_of(EvalConfig, "video")}
    for name, value in same.items():
        assert (
            digest(replace(config, **{name: value}).identity(spec, "manifest", "model", "1")) == of
        ), name
    changed = [
        digest(replace(config, **{name: value}).identity(spec, "manifest", "model", "1"))
        for name, value in other.items()
    ]
    changed += [
        digest(config.identity(spec, *changed_part))
        for changed_part in [
            ("x", "model", "1"),
            ("manifest", "x", "1"),
            ("manifest", "model", "2"),
        ]
    ]
    changed += [digest(config.identity(config.method_specs[0], "manifest", "model", "1"))]
    assert len({of, *changed}) == 1 + len(changed)


def test_digest_and_run_name_are_stable() -> None:
    config = EvalConfig.of(
        "image", model="org/Some-Model_1.5", image_fit="model", conversation="model"
    )
    identity = config.identity(config.method_specs[1], "manifest", "model@main", "1")
    assert digest(identity) == GOLDEN, (
        "a changed identity makes all earlier runs start again: is that intended?"
    )
    assert (
        config.run_name(config.method_specs[1], identity)
        == f"shapes-Some-Model_1.5-apet-64-{GOLDEN[:8]}"
    )
    assert digest(dict(reversed(identity.items()))) == GOLDEN
