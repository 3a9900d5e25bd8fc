"""Pictures of tokens: selected rows, kept patches, score maps, and hostile texts."""

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
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from apet import ApET, attach
from apet.methods import build
from jobs import visualize as job
from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.manifest import Manifest
from pipelines.results.answers import AnswerParts
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.visualize import figures, visualize
from pipelines.visualize.draw import update_list
from pipelines.visualize.model_probe import ModelProbe, Prompt, TokenGroup
from pipelines.visualize.row_selection import load_runs, select_rows
from pipelines.visualize.token_scores import token_scores
from tests.support import tiny

Checkpoint = Callable[[str], Path]
HOSTILE_TEXTS = (
    "<script>alert('x')</script> & <b>",
    "two\nlines\r\nand\ttabs \x00 \x1b[31m",
    "$\\frac{1}{0}$ _^{}% $",
    "W" * 5000,
    "word " * 5000,
    "这是什么? \u202eturned\u202c \ud7ff 🦜",
    "",
)
VANILLA = MethodSpec.of("vanilla")
APET = MethodSpec.of("apet", budget="9")
RANDOM = MethodSpec.of("random", budget="9")


def store_run(
    output: Path, config: EvalConfig, spec: MethodSpec, answers: dict[str, tuple[str, bool | None]]
) -> str:
    """Write a run's folder as a job leaves it; `answers`: prediction and correctness by row."""
    identity = config.identity(spec, "digest of the manifest", f"of {config.model}", "1")
    name = config.run_name(spec, identity)
    folder = Folder.of(str(output / name))
    record = RunRecord(name=name, identity=identity, config=config.to_dict())
    record.point = {"name": spec.name, "method": spec.method, **dict(spec.options)}
    record.tags = {"model": config.model_name}
    record.save(folder)
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
    AnswerParts(folder, list(answers)).write(rows)
    return folder.uri


def make_config(model: Path | str, data: Path, kind: str = "image", **options: Any) -> EvalConfig:
    return EvalConfig.of(kind, model=str(model), data=str(data), max_new_tokens=3, **options)


@pytest.fixture
def rival_runs(tmp_path: Path) -> list[str]:
    """Three runs on ten rows: ApET is right on six, random on another two."""
    config = make_config("m", tmp_path / "rows.jsonl")
    ids = [f"{number // 2}-{number}" for number in range(10)]
    right = {"vanilla": range(10), "apet": range(6), "random": (6, 7)}
    return [
        store_run(
            tmp_path,
            config,
            spec,
            {row_id: ("yes", i in right[spec.method]) for i, row_id in enumerate(ids)},
        )
        for spec in (RANDOM, VANILLA, APET)
    ]


def test_selection_alternates_rows_on_which_methods_disagree(rival_runs: list[str]) -> None:
    runs = load_runs(rival_runs)
    assert [run.spec.method for run in runs] == ["vanilla", "apet", "random"]
    selected = select_rows(runs, None, 4)
    rows = {run.spec.method: run.answers([row.row_id for row in selected]) for run in runs}
    verdicts = [
        tuple(rows[method][row.row_id]["correct"] for method in ("apet", "random"))
        for row in selected
    ]
    assert verdicts == [(True, False), (False, True)] * 2
    summary = "Of 10 rows, only apet-9 is right on 6 and only random-9 on 2."
    assert all(summary in row.reason for row in selected)
    assert len(select_rows(runs, None, 100)) == 8
    assert [row.row_id for row in select_rows(runs, ["4-9", "0-0"], 1)] == ["4-9", "0-0"]


def test_selection_without_correctness_uses_different_answers(tmp_path: Path) -> None:
    config = make_config("m", tmp_path)
    one = store_run(tmp_path, config, APET, {"0-0": ("a", None), "1-1": ("b", None)})
    other = store_run(tmp_path, config, RANDOM, {"0-0": ("a", None), "1-1": ("c", None)})
    (row,) = select_rows(load_runs([one, other]), None, 4)
    assert row.row_id == "1-1"
    assert "apet-9 and random-9 answer 1 of 2 rows differently." in row.reason
    with pytest.raises(ValueError, match="a single run has nothing to disagree with"):
        select_rows(load_runs([one]), None, 4)
    same = store_run(tmp_path, config, VANILLA, {"0-0": ("a", None)})
    with pytest.raises(ValueError, match="disagree on no row"):
        select_rows(load_runs([one, same]), None, 4)


def test_many_runs_draw_two_beside_vanilla(tmp_path: Path) -> None:
    config = make_config("m", tmp_path)
    specs = [VANILLA, APET, *(MethodSpec.of("random", budget="9", seed=seed) for seed in range(4))]
    uris = [
        store_run(tmp_path, config, spec, {"0-0": ("a", spec.method != "random")}) for spec in specs
    ]
    (row,) = select_rows(load_runs(uris), None, 4)
    assert [run.spec.method for run in row.runs] == ["vanilla", "apet", "random"]


def test_unusable_runs_and_rows_are_refused(
    rival_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="has no answer to a row '2-44'; did you mean '2-4'"):
        select_rows(load_runs(rival_runs), ["2-44"], 4)
    other = store_run(tmp_path, make_config("another", tmp_path), APET, {"0-0": ("a", True)})
    with pytest.raises(ValueError, match="cannot be compared: another, manifest; m, manifest"):
        load_runs([rival_runs[0], other])
    assert len(load_runs([rival_runs[0], rival_runs[0]])) == 1
    RunRecord(name="job").save(Folder.of(str(tmp_path / "job")))
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "no runs in"),
        ([str(tmp_path / "job")], "no answers in any run"),
        ([*rival_runs, "--count", "none"], "none"),
    ):
        assert _main(arguments) == 2
        assert message in capsys.readouterr().err


def _main(argv: Sequence[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["visualize.py", *argv])
        return job.main()


def probe_one_image(checkpoint: Path, folder: Path) -> tuple[ModelProbe, Prompt]:
    """Write a manifest of one image, and read it with a probe."""
    data = folder / "rows.jsonl"
    tiny.image(40, 30).save(folder / "0.png")
    data.write_text(json.dumps({"id": "0-0", "media": "0.png", "question": "What?"}) + "\n")
    probe = ModelProbe(make_config(checkpoint, data))
    manifest = Manifest.of(str(data))
    return probe, probe.read(manifest.read(manifest.index())[0], manifest)


@torch.inference_mode()
def test_kept_figure_fades_patches_by_site_of_dropping(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    probe, prompt = probe_one_image(checkpoint("llava"), tmp_path)
    method = build("apet", schedule="encoder=12,3=6")
    generation = probe.generate(prompt, method)
    with attach(probe.model, method, keep_index=True) as attached:
        probe.model(**prompt.inputs)
        (stats,) = attached.stats
    assert stats.index is not None
    assert generation.sites == [("encoder", 12), ("3", 6)]

    row = {"prediction": generation.answer, "correct": True, "score": 1.0, "budget": 9.0}
    outcome = figures.Outcome("apet", row, generation)
    original, panel = figures.kept_panels(prompt, [outcome])
    assert original.title == "what the model sees"
    assert [text for text, _ in panel.notes] == [
        *("9 of 36 tokens in the average layer", "kept to the end: 6"),
        *("dropped at the decoder's layer 3: 6", "dropped at the encoder: 24"),
    ]
    [overlay] = panel.overlays
    assert (overlay[..., :3] == 1).all()
    for token in range(36):
        last, first = token in stats.index["3"], token in stats.index["encoder"]
        clarity = 1.0 if last else 0.565 if first else 0.13
        assert overlay[divmod(token, 6)][3] == pytest.approx(1 - clarity), token


def test_patches_lie_on_their_place_of_the_picture() -> None:
    """Draws a picture of four colours below a veil that hides one of its quarters."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :20], pixels[:20, 20:] = (255, 0, 0), (0, 255, 0)
    pixels[20:, :20], pixels[20:, 20:] = (0, 0, 255), (255, 0, 255)
    group = TokenGroup("", pixels, (2, 2), np.arange(4), torch.arange(4))
    veil = np.ones((2, 2, 4))
    veil[..., 3] = [[0, 1], [0, 0]]
    panel = figures.Panel("title", [("note", "none")], overlays=[veil])
    png = figures.render("", "", Prompt("0", {}, [group]), [panel])
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    counts = [(drawn == colour).all(axis=1).sum() for colour in pixels[::20, ::20].reshape(-1, 3)]
    assert counts[1] == 0
    assert min(counts[0], *counts[2:]) > 0.95 * max(counts) > 10_000


@torch.inference_mode()
def test_token_scores_rank_as_the_methods_choose(checkpoint: Checkpoint, tmp_path: Path) -> None:
    probe, prompt = probe_one_image(checkpoint("llava"), tmp_path)
    scores = token_scores(probe, prompt, ApET(budget=9, basis=4), pytest.fail)
    tower, decoder, error = (values for _, values in scores)

    def kept_patches(method: str, site: str, **options: Any) -> set[int]:
        with attach(probe.model, build(method, **options), keep_index=True) as attached:
            probe.model(**prompt.inputs)
            (stats,) = attached.stats
        assert stats.index is not None
        return set(stats.index[site].tolist())

    def top(values: np.ndarray, count: int) -> set[int]:
        return set(np.argsort(-values)[:count].tolist())

    # VisionZip's tenth token is the CLS
    assert top(tower, 9) < kept_patches(
        "visionzip", "encoder", schedule="encoder=10", contextual=0.0
    )
    assert top(decoder, 10) == kept_patches("fastv", "2", schedule="2=10")
    basis = set(np.flatnonzero(np.isnan(error)).tolist())
    assert len(basis) == 4
    by_error = top(np.nan_to_num(error), 8) | basis
    assert by_error == kept_patches("apet", "encoder", schedule="encoder=12", basis=4)


def test_heatmap_uses_viridis_and_skips_patches_without_numbers() -> None:
    columns, cells = torch.arange(4), np.array([0, 1, 2, 4])
    group = TokenGroup("", np.zeros((4, 6, 3), np.uint8), (2, 3), cells, columns)
    scale = ScalarMappable(Normalize(0, 2), figures.COLOURMAP)
    drawn = figures.heatmap(np.array([0.0, 2.0, 1.0, np.nan]), group, scale)
    published = [(68, 1, 84), (253, 231, 37), (33, 145, 140)]
    assert 255 * drawn[0, :, :3] == pytest.approx(np.array(published), abs=1)
    # a patch without a token, a token that is not ranked, a patch without a token
    assert drawn[..., 3].tolist() == [[0.8] * 3, [0.0] * 3]


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_layout_confines_hostile_texts(text: str) -> None:
    for width in (0.9, 5.5):
        lines = figures.wrap(text, width, 17).split("\n")
        assert len(lines) <= figures.MAX_LINES
        assert all(figures.text_width(line, 17) <= width for line in lines)
    picture = np.full((20, 20, 3), 9, np.uint8)
    group = TokenGroup(text, picture, (1, 1), np.zeros(1, np.int64), torch.zeros(1))
    panel = figures.Panel(f"{text}\n{text}", [(text, "none"), (text, "grey")])
    for groups in ([group], [group] * 9):
        png = figures.render(text, text, Prompt("0", {}, groups), [panel] * 3)
        drawn = Image.open(io.BytesIO(png)).convert("RGB")
        assert drawn.width == round(figures.DPI * figures.WIDTH)
        assert drawn.height < 2200
        assert (np.asarray(drawn)[:, -3:] == 255).all()


def write_video(path: Path, frames: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in tiny.video(frames, 64, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("family", "kind", "grids"),
    [
        ("llava", "image", {"": (6, 6)}),
        ("llava_next", "image", {"whole image": (6, 6), "crop 1": (6, 6), "crop 2": (6, 6)}),
        ("qwen2_5_vl", "image", {"": (4, 8)}),
        ("video_llava", "video", {f"frame {n}": (6, 6) for n in range(1, 5)}),
        ("qwen2_5_vl", "video", {"frames 1 to 2": (6, 8), "frames 3 to 4": (6, 8)}),
    ],
)
def test_visualize_draws_every_family_and_kind(
    checkpoint: Checkpoint,
    tmp_path: Path,
    family: str,
    kind: str,
    grids: dict[str, tuple[int, int]],
) -> None:
    data = tmp_path / "rows.jsonl"
    tiny.image(64, 32).save(tmp_path / "0.png")
    write_video(tmp_path / "0.mp4")
    row = {
        "id": "0/<b>",
        "media": "0.png" if kind == "image" else "0.mp4",
        "question": HOSTILE_TEXTS[0] + HOSTILE_TEXTS[1],
        "answers": list(HOSTILE_TEXTS[:3]),
        "type": "t",
    }
    data.write_text(json.dumps(row) + "\n")
    frames = {"frames": 4} if kind == "video" else {}
    config = make_config(checkpoint(family), data, kind, **frames)
    probe = ModelProbe(config)
    manifest = Manifest.of(str(data), kind=kind)
    prompt = probe.read(manifest.read(manifest.index())[0], manifest)
    assert {group.name: group.grid for group in prompt.groups} == grids
    for group in prompt.groups:
        cells = group.cells.tolist()
        assert len(set(cells)) == len(cells)
        assert set(cells) <= set(range(group.grid[0] * group.grid[1]))

    spec = MethodSpec.of("apet", schedule="encoder=50%,3=25%", basis=2)
    answer = probe.generate(prompt, spec.build()).answer
    runs = [
        store_run(tmp_path / "out", config, spec, {"0/<b>": (answer, True)}),
        store_run(tmp_path / "out", config, VANILLA, {"0/<b>": ("something\nelse", False)}),
    ]
    log: list[str] = []
    entries = visualize(runs, ["0/<b>"], say=log.append)
    folder = tmp_path / "out" / "pictures"
    assert json.loads((folder / "pictures.json").read_text()) == entries
    assert [set(entry) for entry in entries] == [{"file", "title", "caption"}] * 2
    for entry in entries:
        with Image.open(folder / entry["file"]) as png:
            assert png.format == "PNG"
            assert png.width == round(figures.DPI * figures.WIDTH)
    (warning,) = (line for line in log if "in the run" in line)
    assert "vanilla answers" in warning
    assert "“something else”, wrong (alone" in entries[0]["caption"]
    assert any("has changed since the runs were made" in line for line in log)


def test_pictures_of_several_calls_are_listed_once_each(tmp_path: Path) -> None:
    folder = Folder.of(str(tmp_path))
    one, other, missing = (
        {"file": f"{name}.png", "title": name, "caption": ""}
        for name in ("one", "other", "missing")
    )
    redrawn = {**one, "title": "again"}
    for entries in ([one, missing], [other], [redrawn]):
        for entry in entries:
            if entry is not missing:
                folder.write(entry["file"], b"png")
        update_list(folder, entries)
    assert json.loads(folder.read("pictures.json")) == [other, redrawn]


def test_permissions_in_a_record_are_ignored(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    probe_one_image(checkpoint("llava"), folder)
    (folder / "0.png").rename(tmp_path / "0.png")
    data = folder / "rows.jsonl"
    data.write_text(data.read_text().replace('"0.png"', '"../0.png"'))
    config = make_config(checkpoint("llava"), data, allow_outside=True)
    run = store_run(tmp_path, config, APET, {"0-0": ("a", True)})
    log: list[str] = []
    with pytest.raises(ValueError, match="none of the rows could be drawn"):
        visualize([run], ["0-0"], say=log.append)
    assert any("--allow-outside" in line for line in log), log
    assert visualize([run], ["0-0"], say=log.append, allow_outside=True)


def test_missing_rows_and_media_are_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    probe_one_image(checkpoint("llava"), tmp_path)
    config = make_config(checkpoint("llava"), tmp_path / "rows.jsonl")
    run = store_run(tmp_path, config, APET, {"gone": ("a", True), "0-0": ("a", True)})
    with pytest.raises(ValueError, match="row 'gone' is no longer in the data"):
        visualize([run], ["gone"])
    (tmp_path / "0.png").unlink()
    log: list[str] = []
    with pytest.raises(ValueError, match="none of the rows could be drawn"):
        visualize([run], ["0-0"], say=log.append)
    assert any(line.startswith("0-0 cannot be drawn: FileNotFoundError: ") for line in log)
