"""Pictures of what a model was shown and what was left of it, made again from the records of real runs.

`visualize` reads runs (record.json and the answers), finds the rows to draw (`cases`), asks the model
again about them (`seen`, `rankings`), and draws (`figures`, on `page`). What the model answers now is compared with
what the run has: a picture of something else says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from apet.methods.apet import ApET
from pipelines.config.eval_config import EvalConfig
from pipelines.config.paths import model_fingerprint
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Row
from pipelines.inference.benchmark_job import manifest_of
from pipelines.inference.preprocess import RowError, error_of
from pipelines.report.pictures import FOLDER, LIST
from pipelines.results.storage import Folder
from pipelines.text import redacted
from pipelines.visualize import cases, figures
from pipelines.visualize.cases import Case, Run
from pipelines.visualize.page import GREY, INK, Line
from pipelines.visualize.rankings import Ranking, rankings
from pipelines.visualize.seen import Eye, Prompt

ASKED = (  # of a run's config: how its rows are found, read and asked; what it was trusted with is not for it to say
    *("model", "revision", "benchmark", "data", "split", "media_root"),
    *(
        "question",
        "limit",
        "frames",
        "min_pixels",
        "max_pixels",
        "conversation",
        "temperature",
        "max_new_tokens",
    ),
    *("seed", "dtype", "attn"),
)


def visualize(
    uris: Sequence[str],
    rows: Sequence[str] | None = None,
    count: int = 4,
    output: str | None = None,
    say: Callable[[str], None] = print,
    *,
    trust_remote_code: bool = False,
    allow_outside: bool = False,
) -> list[dict[str, str]]:
    """Draw rows of runs; returns {"file", "title", "caption"} of each picture, as pictures.json has them.

    rows:   ids; None: `count` rows on which the runs disagree
    output: the folder below which `pictures` lie; None: the one that the first run is in
    """
    found = cases.runs(uris)
    chosen = cases.chosen(found, rows, count)
    config = replace(
        _config(found[0]), trust_remote_code=trust_remote_code, allow_outside=allow_outside
    )
    if model_fingerprint(config.model, config.revision) != found[0].record.identity["model"]:
        say(f"{config.model} is not what it was when the runs were made; answers may differ")
    eye = Eye(config)
    manifest, read = _read(config, [case.row_id for case in chosen])
    said = {run: run.rows([case.row_id for case in chosen if run in case.runs]) for run in found}
    folder = (Folder.of(output) if output else found[0].folder.parent).child(FOLDER)
    made: list[dict[str, str]] = []
    for case, row in zip(chosen, read, strict=True):
        try:
            stored = [said[run][row.row_id] for run in case.runs]
            pictures = _drawn(eye, eye.read(row, manifest), row, case, stored, say)
        except (
            ValueError,
            OSError,
            RowError,
        ) as error:  # a picture that is gone takes no other with it
            say(redacted(f"{row.row_id} cannot be drawn: {error_of(error)}"))
            continue
        for entry, png in pictures:
            folder.write(entry["file"], png)
            made.append(entry)
            say(f"{redacted(folder.uri)}/{entry['file']}")
    if not made:
        raise ValueError("none of the rows could be drawn")
    listed(folder, made)
    return made


def _config(run: Run) -> EvalConfig:
    """How the run asked."""
    given = run.record.config
    known = {name: given[name] for name in ASKED if given.get(name) is not None}
    if known.get("limit") == "all":
        del known["limit"]
    return EvalConfig.of(given["kind"], **known)


def _read(config: EvalConfig, row_ids: Sequence[str]) -> tuple[Manifest, list[Row]]:
    """The rows as they lie in the data, in this order."""
    manifest = manifest_of(config)
    index = manifest.index(config.limit)
    places = pc.index_in(pa.array(row_ids, pa.string()), value_set=index["row_id"].combine_chunks())
    if places.null_count:
        gone = row_ids[places.is_null().index(True).as_py()]
        raise ValueError(f"row {gone!r} is not in the data any more; the runs cannot be drawn")
    return manifest, manifest.read(index.take(places))


def _drawn(
    eye: Eye,
    prompt: Prompt,
    row: Row,
    case: Case,
    stored: Sequence[dict[str, Any]],
    say: Callable[[str], None],
) -> list[tuple[dict[str, str], bytes]]:
    """A row's two figures; `stored` is what each run of the case has of it."""
    told = []
    methods = [run.point.build() for run in case.runs]
    for run, method, answer in zip(case.runs, methods, stored, strict=True):
        told.append(figures.Told(run.name, answer, eye.ask(prompt, method)))
        if not told[-1].same:
            here, there = told[-1].came.answer, answer["prediction"]
            say(
                redacted(f"{row.row_id}: {run.name} answers {here!r} here and {there!r} in the run")
            )
    like = next((method for method in methods if isinstance(method, ApET)), ApET(budget=1))
    maps = list(rankings(eye, prompt, like))
    for note in maps:
        if isinstance(note, str):
            say(redacted(f"{row.row_id}: {note}"))
    ranked = [each for each in maps if isinstance(each, Ranking)]
    names = " and ".join(each.name for each in told if each.came.sites)
    where = f"{eye.config.benchmark}, row {row.row_id}"
    answers = "; ".join(
        f"{each.name} answers {_quoted(each.row['prediction'])}{_so(each)}" for each in told
    )
    asked = f"{where}: {_quoted(row.question)} {_reference(row)}"
    return [
        (
            {
                "file": _file(eye, case, "kept"),
                "title": f"Tokens kept by {names or 'the model'}, {row.row_id}",
                "caption": f"{asked} {answers}. {case.why}".strip(),
            },
            figures.kept(prompt, told, _head(where, row)),
        ),
        (
            {
                "file": _file(eye, case, "ranked"),
                "title": f"Attention beside the approximation error, {row.row_id}",
                "caption": f"{asked} "
                + " ".join(f"{_capital(each.name)}: {each.meaning}." for each in ranked),
            },
            figures.ranked(prompt, ranked, _head(where, row)),
        ),
    ]


def _head(where: str, row: Row) -> list[Line]:
    kind = f", {row.type}" if row.type else ""
    options = f"The options are {_listed(row.options)}." if row.options else ""
    about = f"{_reference(row)} {options}".strip()
    lines = [Line(f"{where}{kind}", 15, GREY, most=1), Line(row.question, 23, INK, bold=True)]
    return [*lines, Line(about, 17, GREY)] if about else lines


def _reference(row: Row) -> str:
    return f"The reference answer is {_listed(row.answers, ' or ')}." if row.answers else ""


def _listed(texts: Sequence[str], between: str = ", ") -> str:
    return between.join(map(_quoted, dict.fromkeys(texts)))


def _so(told: figures.Told) -> str:
    return (f", {told.verdict}" if told.verdict else "") + (
        "" if told.same else f" (alone {_quoted(told.came.answer)})"
    )


def _quoted(text: Any) -> str:
    plain = " ".join(str(text or "").split())
    return f"“{plain[:200]}{'…' if len(plain) > 200 else ''}”"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _file(eye: Eye, case: Case, what: str) -> str:
    """A name of its own for a row and the runs that are put side by side."""
    exact = "\n".join([case.row_id, *(run.record.name for run in case.runs)])
    plain = re.sub(
        r"[^A-Za-z0-9_.-]", "_", f"{eye.config.benchmark}-{eye.config.model_name}-{case.row_id}"
    )
    return f"{plain[:80]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}-{what}.png"


def listed(folder: Folder, made: Sequence[dict[str, str]]) -> None:
    """Add to what earlier calls have drawn."""
    earlier = json.loads(folder.read(LIST)) if folder.exists(LIST) else []
    files = {entry["file"] for entry in made}
    there = [
        entry for entry in earlier if entry["file"] not in files and folder.exists(entry["file"])
    ]
    folder.write(LIST, json.dumps([*there, *made], indent=1, ensure_ascii=False).encode())
