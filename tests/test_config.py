"""The command line: what it means, what it refuses and how it says so, and what a run's identity is made of."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apet import METHODS, Budget, attach
from apet.methods.base import Model
from apet.models import FAMILIES
from pipelines import guide, paths, values
from pipelines.config import EvalConfig, digest, parse, to_yaml
from pipelines.flags import flags_of
from pipelines.paths import model_fingerprint, resolve_paths
from pipelines.points import LONGEST, Point, known_methods, points, read
from pipelines.reach import reach

ROOT = Path(__file__).parent.parent
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
    assert (image.model, image.benchmark, image.limit, image.max_new_tokens) == ("demo", "shapes", 200, 16)
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
    file.write_text("method: [apet, 'fastv:budget=128']\nbudget: [64, 10%]\nbatch-size: 4\nretry_errors: true\nattn:\n")
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
    assert set(yaml.safe_load(to_yaml(config))) == {"kind", *(each.field for each in flags_of(EvalConfig, kind))}


def test_the_resolved_config_tells_no_password() -> None:
    config = EvalConfig.of("image", tracking_uri="postgresql://me:secret@host/db", output="s3://key:secret@bucket/o")
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
        ("--lang cn", "--lang; leave it out: it is a property of a benchmark, not of a run (docs/flags.md)"),
        ("--cache_dir x", "--cache_dir; leave it out: HF_HOME says where the hub's files are"),
        ("--all-rounds", "--all-rounds; leave it out: it is a property of a benchmark"),
        ("--config nowhere.yaml", "no such file"),
    ],
)
def test_a_wrong_command_is_one_line_with_a_way_out(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert max(map(len, text.replace(guide.DESCRIPTION.format(kind=kind), "").splitlines())) <= 120


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_examples_of_help_are_right(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("budget: 64")
    lines = guide.EXAMPLES[kind].replace("\\\n", " ").splitlines()[1:]
    commands = [re.split(r"\s{3,}(?!-)", line.partition(f"jobs/eval_{kind}.py")[2].rstrip())[0] for line in lines]
    assert len(commands) > 3
    assert all(parse(kind, shlex.split(command)).points for command in commands)


def test_flags_of_the_release_are_in_the_table() -> None:
    table = (ROOT / "docs/flags.md").read_text()
    ours = {each.option for kind in ("image", "video") for each in flags_of(EvalConfig, kind)}  # type: ignore[arg-type]
    for line in table.splitlines():
        if line.startswith("| ") and "--" in line:
            assert set(re.findall(r"`?(--[a-z-]+)", line.split(" | ")[1])) <= ours, line
    said = {name.replace("-", "_") for name in re.findall(r"--([A-Za-z][\w-]+)", table)}
    released = {name for name, instead in guide.INSTEAD.items() if "apet:" not in instead and name != "frames"}
    assert released <= said
    empty = " ".join(line.partition(" | | ")[0] for line in table.splitlines() if " | | " in line)
    nothing = {name.replace("-", "_") for name in re.findall(r"--([A-Za-z][\w-]+)", empty)}
    assert guide.NOTHING.keys() == nothing - guide.INSTEAD.keys()
    for instead in guide.INSTEAD.values():
        assert set(re.findall(r"--[a-z-]+", instead)) <= ours


# ---- nothing heavy


@pytest.mark.parametrize("argv", [["--help"], ["--bugdet", "64"], ["--method", "apet:basis=5", "--actors", "0"]])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_job_answers_before_anything_is_loaded(kind: str, argv: list[str]) -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY} & set(sys.modules))))\n"
        f"sys.argv = {[str(JOBS[kind]), *argv]}\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.endswith("heavy: []\n"), done.stderr
    assert done.returncode == (0 if argv == ["--help"] else 2)
    assert time.monotonic() - began < 30


def test_a_right_command_is_parsed_resolved_and_identified_without_anything_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipelines.config import parse, to_yaml\n"
        "from pipelines.paths import model_fingerprint, resolve_paths\n"
        f"config = resolve_paths(parse('image', ['--model', {str(tmp_path)!r}, '--method', 'apet']))\n"
        "identity = config.identity(config.points[0], 'm', model_fingerprint(config.model), '1')\n"
        "to_yaml(config), config.run_name(config.points[0], identity)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


# ---- points


def test_the_methods_are_known_without_importing_them() -> None:
    assert set(known_methods()) == set(METHODS)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("vanilla", "vanilla"),
        ("apet:budget=64", "apet-64"),
        ("apet: basis=5, budget=10%", "apet-10pct-basis5"),
        ("apet:sampling=dpc,budget=64,merge=false", "apet-64-merge=false-sampling=dpc"),
        ("sparsevlm:budget=12.50%,tau=0.25", "sparsevlm-12.5pct-tau0.25"),
        ("tome:schedule=vision.6=50%, encoder=30%,16=5%", "tome-vision.6=50pct_encoder=30pct_16=5pct"),
        ("apet:schedule=encoder=96,16=32,basis=5", "apet-encoder=96_16=32-basis5"),
    ],
)
def test_names_of_points(given: str, name: str) -> None:
    assert read(given).name == name


def test_options_are_numbers_where_they_read_as_such() -> None:
    assert dict(read("apet:basis=5,merge=true,sampling=dpc").options) == {"basis": 5, "merge": True, "sampling": "dpc"}
    assert read("apet:basis=5,seed=1") == read("apet:seed=1,basis=5")


def test_every_method_meets_every_budget_once() -> None:
    found = points(["vanilla", "apet", "fastv:budget=128", "apet:basis=5"], ["64", "10%"], None)
    assert [point.name for point in found] == [
        "vanilla",
        "apet-64",
        "apet-10pct",
        "fastv-128",
        "apet-64-basis5",
        "apet-10pct-basis5",
    ]
    with pytest.raises(ValueError, match="--budget 64"):
        points(["apet"], [], None)


OPTIONS = st.dictionaries(
    st.sampled_from(["budget", "schedule", "basis", "sampling", "merge", "pivot_image"]),
    st.one_of(st.integers(), st.floats(0, 1), st.text(string.printable + "é%", min_size=1)),
    max_size=4,
).map(lambda options: {key: value for key, value in options.items() if key not in ("budget", "schedule")})
SPENT = st.sampled_from(["64", "6.4%", "10%", "encoder=64", "encoder=96,16=32", "full", ",".join(["16=32"] * 30)])


@given(st.lists(st.tuples(st.sampled_from(["apet", "apet_greedy", "dart"]), SPENT, OPTIONS), max_size=6))
def test_names_are_safe_short_and_unique(made: list[tuple[str, str, dict[str, Any]]]) -> None:
    found = {
        Point.of(method, **{"schedule" if "=" in spent else "budget": spent}, **options)
        for method, spent, options in made
    }
    names = {point.name for point in found}
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]+", name) and len(name) <= LONGEST for name in names)
    assert len(names) == len({json.dumps([point.method, point.options]) for point in found})


def test_a_point_becomes_the_method() -> None:
    assert read("apet:basis=5,sampling=dpc,budget=10%").build() == METHODS["apet"](
        budget="10%",
        basis=5,
        sampling="dpc",  # type: ignore[call-arg]
    )
    assert read("vanilla").build().name == "vanilla"
    assert read("visionzip:budget=64,contextual=0").build() == METHODS["visionzip"](budget="64", contextual=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("apet:bassi=5,budget=64", "did you mean 'basis'?"),
        ("apet:basis=five,budget=64", "takes a whole number"),
        ("apet:basis=5.5,budget=64", "takes a whole number"),
        ("apet:merge=1,budget=64", "takes true or false"),
        ("apet:sampling=dcp,budget=64", "did you mean 'dpc'?"),
        ("sparsevlm:tau=2,budget=64", "from 0 to 1"),
        ("visionzip:contextual=half,budget=64", "takes a number"),
    ],
)
def test_wrong_options_of_a_method_are_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refusal:
        read(given).build()
    assert said in str(refusal.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_is_known_without_its_weights(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.config.save_pretrained(tmp_path)  # config.json alone
    known = reach(str(tmp_path), frames=4)
    assert known.model == attach(model, METHODS["vanilla"]())._model
    assert known.visual_tokens == {"llava": 4 * 36, "video_llava": 4 * 36}.get(family)


def test_a_budget_out_of_reach_is_refused_with_the_smallest_possible() -> None:
    model = Model(layers=32, tower_layers=23, first_decoder_site=0, encoder_only=False)
    with pytest.raises(ValueError, match=r"fastv-10: .* the smallest possible is \d+") as refusal:
        read("fastv:budget=10").build(model, 576)
    least = str(refusal.value).rpartition(" ")[2]
    read(f"fastv:budget={least}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        read(f"fastv:budget={int(least) - 1}").build(model, 576)
    with pytest.raises(ValueError, match="smallest possible"):
        read("fastv:budget=1%").build(model)  # a share is out of reach whatever the size
    read("fastv:budget=10").build(model)  # a count depends on it
    with pytest.raises(ValueError, match="its layers are 0 to 31"):
        read("apet:schedule=encoder=96,32=32").build(model, 576)
    with pytest.raises(ValueError, match="tokens only drop"):
        read("apet:schedule=encoder=10%,16=20%").build(model)


@given(st.one_of(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?%?", fullmatch=True), st.text(string.printable, max_size=6)))
def test_a_budget_is_what_apet_takes_for_one(text: str) -> None:
    try:
        expected = Budget.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match="is no budget"):
            values.budget(text)
    else:
        assert values.budget(text) == str(expected)
        assert Budget.parse(values.budget(text)) == expected


# ---- paths


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, and a home."""
    (tmp_path / "home").mkdir()
    (tmp_path / "demo/demo-llava").mkdir(parents=True)
    (tmp_path / "demo/demo-video-llava").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(paths, "DEMO", tmp_path / "demo")
    return tmp_path


def resolved(kind: Any = "image", **given: Any) -> EvalConfig:
    return resolve_paths(EvalConfig.of(kind, **given))


def test_paths_are_relative_to_the_user(here: Path) -> None:
    config = resolved(data="../project/q.jsonl", media_root="s3://b/photos", output="out/")
    assert config.data == f"{here}/project/q.jsonl"
    assert config.media_root == "s3://b/photos"
    assert config.output == f"{here}/project/out"
    assert config.tracking_uri == f"sqlite:///{here}/project/out/mlflow.db"
    assert config.model == f"{here}/demo/demo-llava"
    assert config.model_name == "demo-llava"
    assert resolved("video").model_name == "demo-video-llava"
    assert resolve_paths(config) == config


def test_models_are_folders_or_names(here: Path) -> None:
    (here / "project/mine").mkdir()
    assert resolved(model="mine").model == f"{here}/project/mine"
    assert resolved(model="org/name").model == "org/name"
    with pytest.raises(ValueError, match="no such folder"):
        resolved(model="./nowhere")
    shutil.rmtree(here / "demo")
    with pytest.raises(ValueError, match="the demo model is not in"):
        resolved()


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        (None, None, "sqlite:///{here}/project/results/mlflow.db"),
        (None, "http://host:5000", "http://host:5000"),
        ("http://other:1", "http://host:5000", "http://other:1"),
        ("sqlite:///runs.db", None, "sqlite:///{here}/project/runs.db"),
        ("runs.db", None, "sqlite:///{here}/project/runs.db"),
        ("sqlite:////abs/runs.db", None, "sqlite:////abs/runs.db"),
        ("databricks", None, "databricks"),
    ],
)
def test_where_tracking_goes(
    given: str | None, environment: str | None, found: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert resolved(tracking_uri=given).tracking_uri == found.format(here=here)


def test_tracking_beside_remote_answers_is_at_home(here: Path) -> None:
    assert resolved(output="s3://b/o").tracking_uri == f"sqlite:///{here}/home/apet-results/mlflow.db"
    assert resolved(output=f"file://{here}/o").tracking_uri == f"sqlite:///{here}/o/mlflow.db"
    with pytest.raises(ValueError, match=r"sqlite:///mlruns/mlflow\.db"):
        resolved(tracking_uri="mlruns")


@pytest.mark.parametrize("by", ["environment", "directory"])
def test_a_submitted_job_writes_nothing_where_it_vanishes(by: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    else:
        copy = here / "session/runtime_resources/working_dir_files/_ray_pkg_1"
        copy.mkdir(parents=True)
        monkeypatch.chdir(copy)
    Path("q.jsonl").touch()
    config = resolved(data="q.jsonl")
    assert config.output == f"{here}/home/apet-results"
    assert config.tracking_uri == f"sqlite:///{here}/home/apet-results/mlflow.db"
    assert config.data == str(Path.cwd() / "q.jsonl")
    assert resolved(output="/abs/o").output == "/abs/o"
    for wrong in ({"output": "out"}, {"tracking_uri": "sqlite:///runs.db"}, {"data": "other.jsonl"}):
        with pytest.raises(ValueError, match=r"absolute path.*\$PWD/"):
            resolved(**wrong)


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
        assert digest(replace(config, **{name: value}).identity(point, "manifest", "model", "1")) == of, name
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
    assert digest(identity) == GOLDEN, "a changed identity makes every run of before start again: was that meant?"
    assert config.run_name(config.points[1], identity) == f"shapes-Some-Model_1.5-apet-64-{GOLDEN[:8]}"
    assert digest(dict(reversed(identity.items()))) == GOLDEN


def test_a_model_is_its_files_wherever_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part/weights.safetensors").write_bytes(bytes(5 * 2**20))
    first = model_fingerprint(str(folder))
    assert model_fingerprint(str(shutil.copytree(folder, tmp_path / "copy"))) == first
    (folder / "README.md").write_text("words")
    (folder / ".cache").mkdir()
    (folder / ".cache/x").touch()
    assert model_fingerprint(str(folder)) == first
    seen = {first}
    for place in (0, 5 * 2**19, 5 * 2**20 - 2**17):  # a layer somewhere
        with (folder / "part/weights.safetensors").open("r+b") as file:
            file.seek(place)
            file.write(b"1" * 2**17)
        seen.add(model_fingerprint(str(folder)))
    (folder / "config.json").write_text("{ }")
    seen.add(model_fingerprint(str(folder)))
    (folder / "config.json").rename(folder / "other.json")
    seen.add(model_fingerprint(str(folder)))
    assert len(seen) == 6
    assert model_fingerprint("org/name", "v1") == "org/name@v1"
    assert model_fingerprint("org/name") == "org/name@main"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose branch stands at what the test says, and this machine's copies of its models, none so far."""
    from huggingface_hub import HfApi, constants

    found = Hub(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **asked: found.asked())
    paths.commit_of.cache_clear()
    yield found
    paths.commit_of.cache_clear()


@dataclass
class Hub:
    cache: Path
    sha: str | None = None  # None: it does not answer
    questions: int = 0

    def asked(self) -> SimpleNamespace:
        self.questions += 1
        if self.sha is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.sha)

    def run_of(self, output: Path, **more: Any) -> str:
        """The folder of a run of another process."""
        paths.commit_of.cache_clear()
        config = resolve_paths(EvalConfig.of("image", model="org/m", data=str(output), output=str(output), **more))
        paths.pin(config, more.get("revision"))  # it begins
        fingerprint = paths.model_fingerprint(config.model, config.revision)
        return config.run_name(config.points[0], config.identity(config.points[0], "manifest", fingerprint, "1"))


ONE, OTHER = "1" * 40, "2" * 40


def test_a_job_that_goes_on_asks_the_model_that_it_began_with(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when its branch has moved, or the hub is down; and what is finished asks nobody."""
    hub.sha, output = ONE, tmp_path / "results"
    first = hub.run_of(output)
    assert ONE not in capsys.readouterr().out
    hub.sha = OTHER
    assert hub.run_of(output) == first
    hub.sha = None
    assert hub.run_of(output) == first
    assert hub.questions == 1
    assert f"org/m@main is at {ONE}" in capsys.readouterr().out
    hub.sha = OTHER
    elsewhere = hub.run_of(tmp_path / "another")
    assert elsewhere != first
    assert hub.run_of(output, revision=OTHER) == elsewhere
    (output / "org--m@main.commit").unlink()
    paths.commit_of.cache_clear()
    early = resolve_paths(EvalConfig.of("image", model="org/m", output=str(output)))
    assert not (output / "org--m@main.commit").exists()  # of a job that did not begin
    assert hub.run_of(output) == elsewhere
    paths.pin(early, None)
    with pytest.raises(ValueError, match=f"another job has begun meanwhile, with org/m@main at {OTHER}"):
        paths.pin(replace(early, revision=ONE), None)
    (output / "org--m@main.commit").write_text("main")
    with pytest.raises(ValueError, match="holds no commit; delete it"):
        hub.run_of(output)


def test_without_the_hub_a_model_is_what_this_machine_has_of_it(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert paths.commit_of("org/m", "v1", str(output)) is None  # nobody knows it: loading it will say so
    with pytest.raises(ValueError, match=r"did not say which commit org/m@v1 is, .* or give --revision COMMIT"):
        paths.refuse_unknown(EvalConfig.of("image", model="org/m", revision="v1"))
    assert not output.exists()
    repository = hub.cache / "models--org--m"
    (repository / "snapshots" / ONE).mkdir(parents=True)  # of a job, which loads a commit
    known = hub.run_of(output)
    assert f"taken is what this machine has of it, {ONE}" in capsys.readouterr().out
    assert paths.commit_of("org/m", "v1", str(output)) is None  # which it may not be
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(OTHER)
    (repository / "snapshots" / OTHER).mkdir()
    assert hub.run_of(output) == known
    assert hub.run_of(tmp_path / "another") == hub.run_of(output, revision=OTHER) != known
