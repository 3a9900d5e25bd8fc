"""Pictures of tokens: which rows are drawn, which patches are dimmed, what maps show; and texts that are hostile."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from apet import ApET, attach
from apet.methods import build
from jobs import visualize as job
from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.manifest import Manifest
from pipelines.results.answers import Block
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.visualize import cases, figures, listed, page, visualize
from pipelines.visualize.rankings import Ranking, rankings
from pipelines.visualize.seen import Eye, Prompt, Shown
from tests.support import tiny

Checkpoint = Callable[[str], Path]
HOSTILE = (
    "<script>alert('x')</script> & <b>",
    "two\nlines\r\nand\ttabs \x00 \x1b[31m",
    "$\\frac{1}{0}$ _^{}% $",
    "W" * 5000,
    "word " * 5000,
    "这是什么? \u202eturned\u202c \ud7ff 🦜",
    "",
)


def stored(
    output: Path, config: EvalConfig, point: MethodSpec, answers: dict[str, tuple[str, bool | None]]
) -> str:
    """A run's folder as a job leaves it; `answers`: prediction and verdict by row."""
    identity = config.identity(point, "digest of the manifest", f"of {config.model}", "1")
    folder = Folder.of(str(output / config.run_name(point, identity)))
    RunRecord(
        name=config.run_name(point, identity), identity=identity, config=config.to_dict()
    ).save(folder)
    rows = [
        {
            "row_id": row_id,
            "media": [f"{row_id.split('-')[0]}.png"],
            "prediction": text,
            "correct": correct,
            "score": None if correct is None else float(correct),
            "budget": 9.0,
            "status": "ok",
            "answered_at": datetime.now(UTC),
        }
        for row_id, (text, correct) in answers.items()
    ]
    Block(folder, list(answers)).write(rows)
    return folder.uri


def asked(model: Path | str, data: Path, **more: Any) -> EvalConfig:
    return EvalConfig.of(
        more.pop("kind", "image"), model=str(model), data=str(data), max_new_tokens=3, **more
    )


VANILLA, APET, RANDOM = (
    MethodSpec.of("vanilla"),
    MethodSpec.of("apet", budget="9"),
    MethodSpec.of("random", budget="9"),
)


@pytest.fixture
def rivals(tmp_path: Path) -> list[str]:
    """Three runs on ten rows about five pictures: ApET is right on six of them, random on another two."""
    config = asked("m", tmp_path / "rows.jsonl")
    ids = [f"{number // 2}-{number}" for number in range(10)]
    right = {"vanilla": range(10), "apet": range(6), "random": (6, 7)}
    return [
        stored(
            tmp_path,
            config,
            point,
            {row: ("yes", at in right[point.method]) for at, row in enumerate(ids)},
        )
        for point in (RANDOM, VANILLA, APET)
    ]


def test_rows_are_drawn_on_which_methods_disagree(rivals: list[str]) -> None:
    runs = cases.runs(rivals)
    assert [run.point.method for run in runs] == ["vanilla", "apet", "random"]
    found = cases.chosen(runs, None, 4)
    rows = {run.point.method: run.rows([case.row_id for case in found]) for run in runs}
    verdicts = [
        tuple(rows[method][case.row_id]["correct"] for method in ("apet", "random"))
        for case in found
    ]
    assert sorted(verdicts) == [
        (False, True),
        (True, False),
        (True, False),
        (True, False),
    ]  # one picture has the former
    assert verdicts[:2] == [(True, False), (False, True)]
    assert len({case.row_id.split("-")[0] for case in found}) == 4
    assert all(
        "Of 10 rows, apet-9 alone is right on 6 and random-9 alone on 2." in case.why
        for case in found
    )
    assert len(cases.chosen(runs, None, 100)) == 8
    assert [case.row_id for case in cases.chosen(runs, ["4-9", "0-0"], 1)] == ["4-9", "0-0"]


def test_where_nobody_knows_what_is_right_other_words_are_a_disagreement(tmp_path: Path) -> None:
    config = asked("m", tmp_path)
    one = stored(tmp_path, config, APET, {"0-0": ("a", None), "1-1": ("b", None)})
    other = stored(tmp_path, config, RANDOM, {"0-0": ("a", None), "1-1": ("c", None)})
    (case,) = cases.chosen(cases.runs([one, other]), None, 4)
    assert case.row_id == "1-1"
    assert "Of 2 rows, apet-9 and random-9 answer 1 differently." in case.why
    with pytest.raises(ValueError, match="one run disagrees with nobody"):
        cases.chosen(cases.runs([one]), None, 4)
    with pytest.raises(ValueError, match="disagree on no row"):
        cases.chosen(
            cases.runs([one, stored(tmp_path, config, VANILLA, {"0-0": ("a", None)})]), None, 4
        )


def test_of_many_runs_two_are_drawn_beside_the_unmodified_model(tmp_path: Path) -> None:
    config = asked("m", tmp_path)
    points = [VANILLA, APET, *(MethodSpec.of("random", budget="9", seed=seed) for seed in range(4))]
    runs = cases.runs(
        [stored(tmp_path, config, p, {"0-0": ("a", p.method != "random")}) for p in points]
    )
    (case,) = cases.chosen(runs, None, 4)
    assert [run.point.method for run in case.runs] == ["vanilla", "apet", "random"]


def test_what_cannot_be_drawn_is_said(
    rivals: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="has no answer to a row '2-44'; did you mean '2-4'"):
        cases.chosen(cases.runs(rivals), ["2-44"], 4)
    elsewhere = stored(tmp_path, asked("another", tmp_path), APET, {"0-0": ("a", True)})
    with pytest.raises(
        ValueError, match=r"cannot be compared: their model differs \(of m and of another\)"
    ):
        cases.runs([rivals[0], elsewhere])
    with pytest.raises(ValueError, match="given twice"):
        cases.runs([rivals[0], rivals[0]])
    for wrong, why in (("nowhere", "no record.json"), ("job", "record of a job")):
        RunRecord(name="job").save(Folder.of(str(tmp_path / "job")))
        assert _main([str(tmp_path / wrong)]) == 2
        assert why in capsys.readouterr().err
    assert _main([*rivals, "--count", "none"]) == 2
    assert "none" in capsys.readouterr().err


def _main(argv: Sequence[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["visualize.py", *argv])
        return job.main()


def one_image(
    checkpoint: Path, folder: Path, width: int = 40, height: int = 30
) -> tuple[Eye, Prompt]:
    tiny.image(width, height).save(folder / "0.png")
    (folder / "rows.jsonl").write_text(
        json.dumps({"id": "0-0", "media": "0.png", "question": "What?"}) + "\n"
    )
    eye = Eye(asked(checkpoint, folder / "rows.jsonl"))
    manifest = Manifest.of(str(folder / "rows.jsonl"))
    return eye, eye.read(manifest.read(manifest.index())[0], manifest)


@torch.inference_mode()
def test_bright_patches_are_the_tokens_that_are_kept(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    eye, prompt = one_image(checkpoint("llava"), tmp_path)
    method = build("apet", schedule="encoder=12,3=6")
    came = eye.ask(prompt, method)
    with attach(eye.model, method, keep_index=True) as attached:
        eye.model(**prompt.inputs)
        (stats,) = attached.stats
    assert stats.index is not None
    assert came.sites == [("encoder", 12), ("3", 6)]

    row = {"prediction": came.answer, "correct": True, "score": 1.0, "budget": 9.0}
    (shown,) = prompt.shown
    png = figures.kept(prompt, [figures.Told("apet", row, came)], [])
    drawn = np.asarray(Image.open(io.BytesIO(png)))
    width = page.room(2, 1)
    original = page.scaled(shown.pixels, width)
    top = next(
        y
        for y in range(len(drawn) - width)
        if (drawn[y : y + width, page.MARGIN :][:, :width] == original).all()
    )
    dimmed = drawn[top : top + width, page.MARGIN + width + page.GAP :][:, :width].astype(int)
    side = width / 6
    for token in range(36):
        y, x = (int((place + 0.5) * side) for place in divmod(token, 6))
        before, after = original[y - 4 : y + 4, x - 4 : x + 4], dimmed[y - 4 : y + 4, x - 4 : x + 4]
        clear = (
            1.0 if token in stats.index["3"] else 0.565 if token in stats.index["encoder"] else 0.13
        )
        assert np.abs(after - (clear * before + (1 - clear) * 255)).max() <= 1, token


@torch.inference_mode()
def test_maps_show_what_methods_choose_by(checkpoint: Checkpoint, tmp_path: Path) -> None:
    eye, prompt = one_image(checkpoint("llava"), tmp_path)
    found = list(rankings(eye, prompt, ApET(budget=9, basis=4)))
    tower, decoder, error = (each.values for each in found if isinstance(each, Ranking))

    def left(method: str, site: str, **options: Any) -> set[int]:
        with attach(eye.model, build(method, **options), keep_index=True) as attached:
            eye.model(**prompt.inputs)
            (stats,) = attached.stats
        assert stats.index is not None
        return set(stats.index[site].tolist())

    def top(values: np.ndarray, count: int) -> set[int]:
        return set(np.argsort(-values)[:count].tolist())

    assert top(tower, 9) < left(
        "visionzip", "encoder", schedule="encoder=10", contextual=0.0
    )  # CLS has the tenth place
    assert top(decoder, 10) == left("fastv", "2", schedule="2=10")
    basis = set(np.flatnonzero(np.isnan(error)).tolist())
    assert len(basis) == 4
    assert top(np.nan_to_num(error), 8) | basis == left(
        "apet", "encoder", schedule="encoder=12", basis=4
    )


def test_a_map_has_the_colours_of_its_scale() -> None:
    shown = Shown(
        "", np.zeros((4, 6, 3), np.uint8), (2, 3), np.array([0, 1, 2, 4]), torch.arange(4)
    )
    drawn = figures.heated(
        np.zeros((40, 60, 3), np.uint8), np.array([0.0, 1.0, 0.5, np.nan]), shown
    ).astype(int)
    ends = {
        (5, 5): (68, 1, 84),
        (5, 25): (253, 231, 37),
        (5, 45): (33, 145, 140),
    }  # viridis, published
    for (y, x), colour in ends.items():
        assert np.abs(drawn[y, x] - 0.8 * np.array(colour)).max() <= 2
    assert (drawn[25:39, 5:19] == 0).all()  # a patch without a token
    assert (drawn[25:39, 25:39] == 0).all()  # and one that is out of the ranking


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_in_their_place(text: str) -> None:
    for width in (60, 400):
        lines = page.wrapped(text, width, 17, most=3)
        assert len(lines) <= 3
        assert all(page._length(line, 17, False) <= width for line in lines)
    picture = np.full((20, 20, 3), 9, np.uint8)
    panel = page.Panel(text, text, [picture], [text], [page.Line(text, swatch=picture, before="0")])
    for panels in ([panel], [page.Panel(text, text, [picture] * 9, [text] * 9, [])]):
        png = Image.open(io.BytesIO(page.drawn([page.Line(text)], panels)))
        assert png.width == page.WIDTH
        assert png.height < 900
        edge = np.asarray(png)[:, -page.MARGIN + 4 :]
        assert (edge == 255).all()


def film(path: Path, frames: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in tiny.video(frames, 64, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("family", "kind", "pictures"),
    [
        ("llava", "image", {"": (6, 6)}),
        ("llava_next", "image", {"whole": (6, 6), "crop 1": (6, 6), "crop 2": (6, 6)}),
        ("qwen2_5_vl", "image", {"": (4, 8)}),
        ("video_llava", "video", {f"frame {n}": (6, 6) for n in range(1, 5)}),
        ("qwen2_5_vl", "video", {"frames 1 to 2": (6, 8), "frames 3 to 4": (6, 8)}),
    ],
)
def test_runs_of_every_kind_are_drawn(
    checkpoint: Checkpoint,
    tmp_path: Path,
    family: str,
    kind: str,
    pictures: dict[str, tuple[int, int]],
) -> None:
    tiny.image(64, 32).save(tmp_path / "0.png")
    film(tmp_path / "0.mp4")
    name = "0.png" if kind == "image" else "0.mp4"
    row = {
        "id": "0/<b>",
        "media": name,
        "question": HOSTILE[0] + HOSTILE[1],
        "answers": list(HOSTILE[:3]),
        "type": "t",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    frames = {"frames": 4} if kind == "video" else {}
    config = asked(checkpoint(family), tmp_path / "rows.jsonl", kind=kind, **frames)
    eye = Eye(config)
    manifest = Manifest.of(str(tmp_path / "rows.jsonl"), kind=kind)
    prompt = eye.read(manifest.read(manifest.index())[0], manifest)
    assert {shown.name: shown.grid for shown in prompt.shown} == pictures
    for shown in prompt.shown:
        assert len(set(shown.cells.tolist())) == len(shown.cells)
        assert shown.cells.min() >= 0
        assert shown.cells.max() < shown.grid[0] * shown.grid[1]

    half = MethodSpec.of("apet", schedule="encoder=50%,3=25%", basis=2)
    true = eye.ask(prompt, half.build()).answer
    runs = [
        stored(tmp_path / "out", config, half, {"0/<b>": (true, True)}),
        stored(tmp_path / "out", config, VANILLA, {"0/<b>": ("something\nelse", False)}),
    ]
    said: list[str] = []
    made = visualize(runs, ["0/<b>"], say=said.append)
    folder = tmp_path / "out" / "pictures"
    assert json.loads((folder / "pictures.json").read_text()) == made
    assert [set(entry) for entry in made] == [{"file", "title", "caption"}] * 2
    for entry in made:
        with Image.open(folder / entry["file"]) as png:
            assert png.format == "PNG"
            assert png.width == page.WIDTH
    differ = [line for line in said if "in the run" in line]
    assert len(differ) == 1
    assert "vanilla answers" in differ[0]
    assert "“something else”, wrong (alone" in made[0]["caption"]
    assert f"of {config.model}" != eye.config.model
    assert any("is not what it was when the runs were made" in line for line in said)


def test_pictures_of_several_calls_are_listed_once_each(tmp_path: Path) -> None:
    folder = Folder.of(str(tmp_path))
    one, other, lost = (
        {"file": f"{name}.png", "title": name, "caption": ""} for name in ("one", "other", "lost")
    )
    for made in ([one, lost], [other], [{**one, "title": "again"}]):
        for entry in made:
            if entry is not lost:
                folder.write(entry["file"], b"png")
        listed(folder, made)
    assert json.loads(folder.read("pictures.json")) == [other, {**one, "title": "again"}]


def test_what_a_run_was_trusted_with_is_not_for_it_to_say(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    one_image(checkpoint("llava"), tmp_path / "data")
    (tmp_path / "data" / "0.png").rename(tmp_path / "0.png")
    rows = (tmp_path / "data" / "rows.jsonl").read_text().replace('"0.png"', '"../0.png"')
    (tmp_path / "data" / "rows.jsonl").write_text(rows)
    config = asked(checkpoint("llava"), tmp_path / "data" / "rows.jsonl", allow_outside=True)
    run = stored(tmp_path, config, APET, {"0-0": ("a", True)})
    said: list[str] = []
    with pytest.raises(ValueError, match="none of the rows could be drawn"):
        visualize([run], ["0-0"], say=said.append)
    assert any("--allow-outside" in line for line in said), said
    assert visualize([run], ["0-0"], say=said.append, allow_outside=True)


def test_what_the_data_has_no_more(checkpoint: Checkpoint, tmp_path: Path) -> None:
    one_image(checkpoint("llava"), tmp_path)
    config = asked(checkpoint("llava"), tmp_path / "rows.jsonl")
    run = stored(tmp_path, config, APET, {"gone": ("a", True), "0-0": ("a", True)})
    with pytest.raises(ValueError, match="row 'gone' is not in the data any more"):
        visualize([run], ["gone"])
    (tmp_path / "0.png").unlink()
    said: list[str] = []
    with pytest.raises(ValueError, match="none of the rows could be drawn"):
        visualize([run], ["0-0"], say=said.append)
    assert any("0-0 cannot be drawn: FileNotFoundError: there is no 0.png" in line for line in said)
