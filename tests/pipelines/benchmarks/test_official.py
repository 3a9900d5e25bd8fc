"""The official benchmarks from files to prompts: every layout gives the same questions."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.benchmarks import BENCHMARKS, benchmark
from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Row
from pipelines.inference.preprocess import Preprocessor
from tests.support.official import LAYOUTS, files, folders
from tests.support.official.rows import (
    CHINESE,
    GQA,
    LETTER,
    MME,
    POPE,
    SHORT,
    TEXT,
    UNANSWERABLE,
    VIZ,
    VQA,
)


def rows_of(name: str, folder: Path) -> tuple[Manifest, list[Row]]:
    bench, split, write = LAYOUTS[name]
    write(folder)
    manifest = pickle.loads(pickle.dumps(benchmark(bench).load(str(folder), split).require_media()))
    index = manifest.index()
    assert index["row_id"].to_pylist() == [row.row_id for row in manifest.read(index)]
    return manifest, manifest.read(index)


def prompts(name: str, folder: Path) -> list[str]:
    return [benchmark(LAYOUTS[name][0]).prompt(row) for row in rows_of(name, folder)[1]]


PROMPTS = {
    "gqa": [question + SHORT for _, _, question, *_ in GQA],
    "pope": [f"Is there a {thing} in the image?{SHORT}" for *_, thing, _ in POPE],
    "textvqa": [
        "What is the brand?\nReference OCR token: DAKOTA, Single-Use" + SHORT,
        "What does it say?\nReference OCR token: " + SHORT,
    ],
    "vqav2 val": [question + SHORT for _, _, question, *_ in VQA],
    "vqav2 test": [question + SHORT for _, _, question, *_ in VQA],
    "vizwiz test": [question + UNANSWERABLE + SHORT for _, question, *_ in VIZ],
    "vizwiz val": [question + UNANSWERABLE + SHORT for _, question, *_ in VIZ],
    "scienceqa": [
        "Which is it?\nSing,\n—Homer\nA. chiasmus\nB. apostrophe" + LETTER,
        "Context: Read the passage.\nFigure: snow.\nWhich could show it?"
        "\nA. a test\nB. two\nlines\nC. none of it" + LETTER,
        "Which is farther north?\nA. Ohio\nB. Texas" + LETTER,
    ],
    "mmbench": [
        "A passage.\nWhat can it answer?\nA. wax or none\nB. thin or thick" + LETTER,
        "A passage.\nWhat can it answer?\nA. thin or thick\nB. wax or none" + LETTER,
        'What is "this"?\nA. a cat\nB. a dog' + LETTER,
    ],
    "msvd": ["who opened the box?", "how many men are there?"],
}
PROMPTS["mmbench_cn"] = [prompt.replace(LETTER, CHINESE) for prompt in PROMPTS["mmbench"]]
SAME = ("gqa", "pope", "textvqa", "scienceqa", "mmbench", "mmbench_cn")
PROMPTS |= {f"{name} of the hub": PROMPTS[name] for name in SAME}
PROMPTS |= {f"{name} of the hub": PROMPTS[f"{name} val"] for name in ("vqav2", "vizwiz")}
PROMPTS |= dict.fromkeys(("tgif", "msrvtt"), PROMPTS["msvd"])


@pytest.mark.parametrize("name", ["mme", "mme of the hub"])
def test_mme_prompts_and_ids_are_the_same_in_both_layouts(name: str, tmp_path: Path) -> None:
    assert sorted(prompts(name, tmp_path)) == sorted(question + SHORT for _, _, question, _ in MME)
    ids = {row.row_id for row in rows_of(name, tmp_path / "again")[1]}
    expected = {
        f"{subtask}/{image.partition('.')[0]}/{question}" for subtask, image, question, _ in MME
    }
    assert ids == expected


def test_references_in_another_order_are_joined_by_id(tmp_path: Path) -> None:
    """In every fixture the answers are in another order than the questions."""
    result = {name: rows_of(name, tmp_path / name)[1] for name in LAYOUTS}
    assert [row.answers for row in result["gqa"]] == [("no",), ("woman",), ("red",)]
    assert [row.answers for row in result["gqa of the hub"]] == [("no",), ("woman",), ("red",)]
    assert [row.answers for row in result["pope"]] == [(label,) for *_, label in POPE]
    assert [row.answers for row in result["textvqa"]] == [tuple(answers) for *_, answers in TEXT]
    assert [row.answers for row in result["vqav2 val"]] == [tuple(row[3]) for row in VQA]
    assert [row.answers for row in result["vqav2 test"]] == [(), (), ()]
    assert [row.answers for row in result["msvd"]] == [("someone",), ("two",)]
    assert [row.answers for row in result["scienceqa"]] == [("B",), ("A",), ("A",)]
    assert {row.row_id: row.answers for row in result["mme"]} == {
        row.row_id: row.answers for row in result["mme of the hub"]
    }
    for name in ("scienceqa", "scienceqa of the hub"):
        assert [len(row.media) for row in result[name]] == [0, 1, 1]
        assert [row.type for row in result[name]] == ["natural science"] * 3
        assert [row.meta["grade"] for row in result[name]] == ["9", "11", "11"]


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        (
            "gqa",
            "data/testdev_balanced_questions.json",
            r"no file of answers; looked for testdev_balanced_questions",
        ),
        (
            "gqa",
            "llava_gqa_testdev_balanced.jsonl",
            r"no file of questions.*llava_gqa.*Parquet files of lmms-lab/GQA",
        ),
        (
            "pope",
            "coco/coco_pope_random.json",
            "labels of the random split; looked for coco/coco_pope_random.json",
        ),
        (
            "mme",
            "MME_Benchmark_release_version",
            r"looked for MME_Benchmark_release_version/existence or .*, \.\.\. in",
        ),
        ("mmbench", "mmbench_dev_20230712.tsv", "looked for mmbench_dev_20230712.tsv"),
        ("scienceqa", "llava_test_CQM-A.json", "looked for llava_test_CQM-A.json"),
        ("textvqa", "TextVQA_0.5.1_val.json", "looked for TextVQA_0.5.1_val.json"),
        (
            "vqav2 val",
            "v2_mscoco_val2014_annotations.json",
            "annotations.json.*--split names another",
        ),
        (
            "vizwiz test",
            "llava_test.jsonl",
            "llava_test.jsonl or test.json.*lmms-lab/VizWiz-VQA.*--split",
        ),
        ("msvd", "MSVD_Zero_Shot_QA/test_a.json", "looked for MSVD_Zero_Shot_QA/test_a.json"),
        (
            "gqa",
            "data/images",
            "the images are not there; looked for the folder data/images or images",
        ),
        ("msrvtt", "MSRVTT_Zero_Shot_QA/videos", "the videos are not there"),
    ],
)
def test_missing_file_error_names_the_expected_paths(
    name: str, missing: str, message: str, tmp_path: Path
) -> None:
    bench, split, write = LAYOUTS[name]
    write(tmp_path)
    target = tmp_path / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        benchmark(bench).load(str(tmp_path), split).require_media()


def test_media_root_replaces_the_default_media_folder(tmp_path: Path) -> None:
    folders.gqa(tmp_path)
    (tmp_path / "data" / "images").rename(tmp_path / "pictures")
    manifest = benchmark("gqa").load(str(tmp_path), media_root=str(tmp_path / "pictures"))
    manifest = manifest.require_media()
    assert (
        manifest.fetch(manifest.read(manifest.index())[0].media[0])
        == tmp_path / "pictures" / "n161313.jpg"
    )


def test_labels_of_another_version_raise(tmp_path: Path) -> None:
    folders.pope(tmp_path)
    path = tmp_path / "coco" / "coco_pope_popular.json"
    path.write_text(path.read_text().replace("dining table", "chair"))
    with pytest.raises(
        ValueError,
        match=r"1 of 6 questions of llava_pope_test.jsonl have no answer in .*dining table",
    ):
        benchmark("pope").load(str(tmp_path)).index()


def test_file_with_other_columns_raises(tmp_path: Path) -> None:
    folders.gqa(tmp_path)
    lines = [{"id": "1", "image": "a.jpg", "question": "q"}]
    files.jsonl(tmp_path / "llava_gqa_testdev_balanced.jsonl", lines)
    with pytest.raises(
        ValueError, match="no column question_id and no column text; it has id, image, question"
    ):
        benchmark("gqa").load(str(tmp_path)).index()
    (tmp_path / "data" / "testdev_balanced_questions.json").write_text("[]")
    files.jsonl(
        tmp_path / "llava_gqa_testdev_balanced.jsonl",
        [{"question_id": "1", "image": "a", "text": "q"}],
    )
    with pytest.raises(ValueError, match="must be a JSON object"):
        benchmark("gqa").load(str(tmp_path)).index()


def test_data_may_name_the_file_itself(tmp_path: Path) -> None:
    folders.mmbench(tmp_path, name="mine.tsv")
    manifest = benchmark("mmbench").load(str(tmp_path / "mine.tsv"))
    assert manifest.index()["row_id"].to_pylist() == ["241", "1000241", "305"]


def test_file_of_another_split_raises(tmp_path: Path) -> None:
    folders.mmbench(tmp_path, name="mmbench_test_20230712.tsv")
    with pytest.raises(
        FileNotFoundError, match=r"looked for mmbench_dev_20230712.tsv or .*--split names another"
    ):
        benchmark("mmbench").load(str(tmp_path))
    with pytest.raises(ValueError, match="rows of the split 'dev'; expected 'test'"):
        benchmark("mmbench").load(str(tmp_path), "test").index()


def test_two_references_for_a_question_raise(tmp_path: Path) -> None:
    folders.textvqa(tmp_path)
    path = tmp_path / "TextVQA_0.5.1_val.json"
    truth = json.loads(path.read_text())
    files.as_json(path, {"data": [*truth["data"], {**truth["data"][0], "answers": ["other"] * 10}]})
    with pytest.raises(
        ValueError,
        match=r"TextVQA_0.5.1_val.json has several answers to 1 questions: 003a8ae2ef43b901",
    ):
        benchmark("textvqa").load(str(tmp_path)).index()


def test_row_without_its_image_has_an_error(tmp_path: Path) -> None:
    files.parquet(
        tmp_path / "val-0.parquet",
        [{"question_id": "a", "question": "q", "answers": ["x"], "image": None}],
    )
    manifest = benchmark("vizwiz").load(str(tmp_path), "val")
    assert manifest.read(manifest.index())[0].error is not None


def test_digest_changes_with_the_references(tmp_path: Path) -> None:
    folders.gqa(tmp_path)
    before = benchmark("gqa").load(str(tmp_path)).digest()
    path = tmp_path / "data" / "testdev_balanced_questions.json"
    path.write_text(path.read_text().replace("woman", "man"))
    assert benchmark("gqa").load(str(tmp_path)).digest() != before


def test_invalid_base64_is_the_error_of_its_row_only(tmp_path: Path) -> None:
    folders.mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], lines[1].rpartition("\t")[0] + "\tno base64!", *lines[2:]]) + "\n"
    )
    manifest = benchmark("mmbench").load(str(tmp_path))
    first, *others = manifest.read(manifest.index())
    assert first.error is not None
    assert "the image is not valid base64: 'no base64!'" in first.error
    assert [row.error for row in others] == [None, None]


@pytest.mark.parametrize(
    "name", ["gqa of the hub", "mmbench_cn", "mme", "scienceqa", "textvqa", "vizwiz val"]
)
def test_rows_become_model_inputs_in_the_conversation(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """They use the conversation of LLaVA's scripts, without an image if a question has none."""
    config = EvalConfig.of(
        "image",
        model=str(checkpoint("llava")),
        benchmark=LAYOUTS[name][0],
        data=str(tmp_path),
        conversation="vicuna_v1",
        max_new_tokens=8,
    )
    manifest, rows = rows_of(name, tmp_path)
    prepare = Preprocessor(config)
    for row in rows:
        prompt, inputs = prepare(row, manifest)
        assert prompt.startswith(
            "A chat between a curious user and an artificial intelligence assistant."
        )
        image = "<image>\n" if row.media else ""
        assert prompt.endswith(f" USER: {image}{prepare.benchmark.prompt(row)} ASSISTANT:")
        assert ("pixel_values" in inputs) == bool(row.media)


RAW_ANSWERS = (
    "",
    "yes",
    "No.",
    "A",
    "(b)",
    "B. x",
    "Two",
    "The answer is A.",
    "red",
    "unanswerable",
    "wax or none",
)
VERSIONS = {
    "gqa": "1 0eee2a3c",
    "gqa of the hub": "1 0eee2a3c",
    "mmbench": "1 dd0a7179",
    "mmbench of the hub": "1 dd0a7179",
    "mmbench_cn": "1 1098d5f8",
    "mmbench_cn of the hub": "1 1098d5f8",
    "mme": "1 52029e39",
    "mme of the hub": "1 0df0a1ef",
    "pope": "1 d3406ae5",
    "pope of the hub": "1 2c397bfa",
    "scienceqa": "1 2b2c12f8",
    "scienceqa of the hub": "1 db7e0066",
    "vqav2 val": "1 b7398e34",
    "vqav2 test": "1 c31b8e16",
    "vqav2 of the hub": "1 b7398e34",
    "textvqa": "1 b86a333b",
    "textvqa of the hub": "1 db0abc48",
    "vizwiz test": "1 648e6cd4",
    "vizwiz val": "1 8e5d814b",
    "vizwiz of the hub": "1 8e5d814b",
    "tgif": "1 69d247ce",
    "msvd": "1 69d247ce",
    "msrvtt": "1 69d247ce",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_gives_its_media_prompts_and_version(name: str, tmp_path: Path) -> None:
    """Whoever changes rows, prompts or scores raises the version, and then the table VERSIONS.

    Finished runs are answered anew only if the version has changed.
    """
    bench, (manifest, rows) = benchmark(LAYOUTS[name][0]), rows_of(name, tmp_path)
    assert [row.error for row in rows] == [None] * len(rows)
    for row in rows:
        for medium in row.media:
            content = manifest.fetch(medium)
            data = content.read_bytes() if isinstance(content, Path) else content
            assert data.startswith(b"RIFF" if medium.kind == "video" else b"\x89PNG")
    assert manifest.read(manifest.index().take(list(range(len(rows)))[::-1])) == rows[::-1]
    assert manifest.digest() == bench.load(str(tmp_path), LAYOUTS[name][1]).digest()
    prompts = [bench.prompt(row) for row in rows]
    assert prompts == PROMPTS.get(name, prompts)
    digest = hashlib.sha256()
    for row, prompt in zip(rows, prompts, strict=True):
        meta = sorted(row.meta.items())
        fields = (row.row_id, len(row.media), row.answers, row.options, row.type, meta)
        scores = [bench.score(row, answer) for answer in RAW_ANSWERS]
        digest.update(repr((fields, prompt, scores)).encode())
    assert f"{bench.version} {digest.hexdigest()[:8]}" == VERSIONS[name]


def test_every_registered_benchmark_loads() -> None:
    for name in BENCHMARKS:
        result = benchmark(name)
        assert result.name == name
        assert result.version


def write_vqav2_val(folder: Path, count: int) -> Manifest:
    """Write questions and annotations of VQAv2, in opposite orders."""
    questions = [
        {"image_id": number // 3, "question": "Is it?", "question_id": number}
        for number in range(count)
    ]
    files.as_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": questions}
    )
    people = [
        {"answer": "yes", "answer_confidence": "yes", "answer_id": each} for each in range(10)
    ]
    truth = [
        {
            "question_id": number,
            "answers": people,
            "question_type": "is it",
            "answer_type": "yes/no",
        }
        for number in reversed(range(count))
    ]
    files.as_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": truth})
    return benchmark("vqav2").load(str(folder), "val")


def test_index_of_100000_rows_is_small(tmp_path: Path) -> None:
    """The driver keeps ids and positions, 5 MB for 70 MB of annotations."""
    manifest = write_vqav2_val(tmp_path / "all", 100_000)
    index = manifest.index()
    assert len(index) == 100_000
    assert index.nbytes < 60 * len(index)
    [row] = manifest.read(index.slice(77_777, 1))
    assert (row.row_id, row.answers, row.media[0].path) == (
        "77777",
        ("yes",) * 10,
        "COCO_val2014_000000025925.jpg",
    )
    assert row.meta == {"question_type": "is it"}
    # Fewer rows, because tracemalloc makes Python ten times slower.
    small = write_vqav2_val(tmp_path / "small", 20_000)
    tracemalloc.start()
    small.index()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The text of the JSON array is in memory once; its records are never all Python objects.
    assert peak < 36 << 20
