"""Draws rows of stored runs: what the model sees, and which visual tokens each method keeps.

Runs are read from disk (record.json and the answers). The model is loaded again and run on the
selected rows; a warning appears where its answer differs from the stored one.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from apet.methods.apet import ApET
from pipelines.config.eval_config import EvalConfig
from pipelines.config.model_version import model_fingerprint
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Row
from pipelines.inference.benchmark_job import manifest_of
from pipelines.inference.preprocess import RowError, row_error
from pipelines.report.pictures import PICTURES_FOLDER, PICTURES_INDEX
from pipelines.results.storage import Folder
from pipelines.text import redacted
from pipelines.visualize.figures import Outcome, kept_panels, quoted, render, score_panels
from pipelines.visualize.model_probe import ModelProbe, Prompt
from pipelines.visualize.row_selection import SelectedRow, StoredRun, load_runs, select_rows
from pipelines.visualize.token_scores import token_scores

# Fields of a run's config that decide how rows are found, read and prompted. Permissions are not
# among them: a record must not decide that remote code runs or that files elsewhere are read.
CONFIG_FIELDS = (
    *("model", "revision", "benchmark", "data", "split", "media_root", "question", "limit"),
    *("frames", "min_pixels", "max_pixels", "image_fit", "conversation", "generation"),
    *("temperature", "max_new_tokens", "seed", "dtype", "attn"),
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
    """Draw rows of runs; returns {"file", "title", "caption"} per picture, as in pictures.json.

    rows:   ids; None: `count` rows on which the runs disagree
    output: parent of the folder `pictures`; None: the parent of the first run
    """
    runs = load_runs(uris, say)
    selected = select_rows(runs, rows, count)
    config = _config(runs[0], trust_remote_code=trust_remote_code, allow_outside=allow_outside)
    if model_fingerprint(config.model, config.revision) != runs[0].run.record.identity["model"]:
        say(f"{config.model} has changed since the runs were made; answers may differ")
    probe = ModelProbe(config)
    row_ids = [selection.row_id for selection in selected]
    manifest, data = _read_rows(config, row_ids)
    stored = {run: run.answers(row_ids) for run in runs}
    folder = (Folder.of(output) if output else runs[0].run.folder.parent).child(PICTURES_FOLDER)
    entries: list[dict[str, str]] = []
    for selection, row in zip(selected, data, strict=True):
        try:
            answers = [stored[run][row.row_id] for run in selection.runs]
            prompt = probe.read(row, manifest)
            pictures = _draw(probe, prompt, row, selection, answers, say)
        except (ValueError, OSError, RowError) as error:
            # one unreadable picture must not prevent the others
            say(redacted(f"{row.row_id} cannot be drawn: {row_error(error)}"))
            continue
        for entry, png in pictures:
            folder.write(entry["file"], png)
            entries.append(entry)
            say(f"{redacted(folder.uri)}/{entry['file']}")
    if not entries:
        raise ValueError("none of the rows could be drawn")
    update_list(folder, entries)
    return entries


def _config(run: StoredRun, **permissions: bool) -> EvalConfig:
    """The run's config, reduced to CONFIG_FIELDS, with these permissions."""
    config = run.run.record.config
    fields = {name: config[name] for name in CONFIG_FIELDS if config.get(name) is not None}
    if fields.get("limit") == "all":
        del fields["limit"]
    return EvalConfig.of(config["kind"], **fields, **permissions)


def _read_rows(config: EvalConfig, row_ids: Sequence[str]) -> tuple[Manifest, list[Row]]:
    """The rows of the data with these ids, in this order."""
    manifest = manifest_of(config)
    index = manifest.index(config.limit)
    ids = pa.array(row_ids, pa.string())
    positions = pc.index_in(ids, value_set=index["row_id"].combine_chunks())
    if positions.null_count:
        row_id = row_ids[positions.is_null().index(True).as_py()]
        raise ValueError(f"row {row_id!r} is no longer in the data; the runs cannot be drawn")
    return manifest, manifest.read(index.take(positions))


def _draw(
    probe: ModelProbe,
    prompt: Prompt,
    row: Row,
    selection: SelectedRow,
    stored: Sequence[dict[str, Any]],
    say: Callable[[str], None],
) -> list[tuple[dict[str, str], bytes]]:
    """The row's two figures with their entries; `stored` has one answer per selected run."""

    def warn(text: str) -> None:
        say(redacted(f"{row.row_id}: {text}"))

    methods = [run.spec.build() for run in selection.runs]
    outcomes = []
    for run, method, answer in zip(selection.runs, methods, stored, strict=True):
        outcome = Outcome(run.spec.name, answer, probe.generate(prompt, method))
        outcomes.append(outcome)
        if not outcome.is_reproduced:
            here, before = outcome.generation.answer, answer["prediction"]
            warn(f"{outcome.name} answers {here!r} here, {before!r} in the run")
    apet = next((method for method in methods if isinstance(method, ApET)), ApET(budget=1))
    scores = token_scores(probe, prompt, apet, warn)

    title = f"{probe.config.benchmark}, row {row.row_id}"
    reference = f"The reference answer is {_join(row.answers, ' or ')}." if row.answers else ""
    options = f"The options are {_join(row.options, ', ')}." if row.options else ""
    kind = f", {row.type}" if row.type else ""
    details = f"{title}{kind}. {reference} {options}"
    question = f"{title}: {quoted(row.question)} {reference}"
    names = " and ".join(outcome.name for outcome in outcomes if outcome.generation.sites)
    answers = "; ".join(outcome.describe() for outcome in outcomes)
    meanings = " ".join(f"{score.name.capitalize()}: {score.meaning}." for score, _ in scores)
    kept = kept_panels(prompt, outcomes)
    figures = (
        ("kept", f"Tokens kept by {names or 'the model'}", f"{answers}. {selection.reason}", kept),
        (
            "ranked",
            "Attention beside the approximation error",
            meanings,
            score_panels(prompt, scores),
        ),
    )
    stem = _file_stem(probe.config, selection)
    pictures = []
    for kind, title, text, panels in figures:
        caption = f"{question} {text}".strip()
        entry = {
            "file": f"{stem}-{kind}.png",
            "title": f"{title}, {row.row_id}",
            "caption": caption,
        }
        pictures.append((entry, render(row.question, details, prompt, panels)))
    return pictures


def _join(texts: Sequence[str], separator: str) -> str:
    return separator.join(map(quoted, dict.fromkeys(texts)))


def _file_stem(config: EvalConfig, selection: SelectedRow) -> str:
    """A file name that is unique to the row and the runs drawn side by side."""
    identity = "\n".join([selection.row_id, *(run.run.id for run in selection.runs)])
    name = f"{config.benchmark}-{config.model_name}-{selection.row_id}"
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return f"{plain[:80]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def update_list(folder: Folder, entries: Sequence[dict[str, str]]) -> None:
    """Add entries to pictures.json; drops replaced entries and those whose file is gone."""
    earlier = json.loads(folder.read(PICTURES_INDEX)) if folder.exists(PICTURES_INDEX) else []
    files = {entry["file"] for entry in entries}
    remaining = [e for e in earlier if e["file"] not in files and folder.exists(e["file"])]
    folder.write(
        PICTURES_INDEX, json.dumps([*remaining, *entries], indent=1, ensure_ascii=False).encode()
    )
