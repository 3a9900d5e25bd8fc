"""At which commit a model on the hub is asked: the same one in all jobs with one output.

The first job with an output turns a branch into a commit, and notes it beside the answers when it begins. So the same
command goes on with the same model when the branch has moved, or the hub does not answer; a finished job asks nobody.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.results.storage import Folder
from pipelines.text import redacted

if TYPE_CHECKING:
    from pipelines.config.eval_config import EvalConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(model: str, revision: str | None, output: str) -> str | None:
    """The commit that stands for a branch or tag; the revision as it is of a folder, or where nobody knows."""
    return (
        revision if Path(model).is_dir() else _found(model, revision or "main", output) or revision
    )


def refuse_unknown(config: EvalConfig) -> None:
    """A ValueError if the model is on the hub, and nobody said at which commit."""
    if not Path(config.model).is_dir() and _valid(config.revision or "") is None:
        raise ValueError(
            f"the hub did not say which commit {config.model}@{config.revision or 'main'} is, so the same command could"
            " not go on with the same model; run it again, or give --revision COMMIT"
        )


def note(model: str, commit: str | None, asked: str | None, output: str) -> None:
    """Note for later jobs what `revision_of` has made of the revision that was asked for.

    A ValueError if another job has just noted another commit. Two that note at the same moment may miss each other.
    """
    if commit is None or commit == asked:
        return
    folder, (name, file) = Folder.of(output), _entry(model, asked or "main")
    known = _noted(folder, file)
    if known is None:
        folder.write(file, commit.encode())
        known = _noted(folder, file)
    if known != commit:
        raise ValueError(
            f"another job has begun meanwhile, with {name} at {known}; run the same command again"
        )


@functools.cache  # a sweep asks for each benchmark
def _found(model: str, branch: str, output: str) -> str | None:
    if _valid(branch):
        return branch
    folder, (name, file) = Folder.of(output), _entry(model, branch)
    known = _noted(folder, file)
    if known is not None:
        print(
            f"{name} is at {known} for {redacted(folder.uri)}; --revision COMMIT, or deleting {file}, takes another"
        )
        return known
    known = _told(model, branch)
    if known is None and (known := _cached(model, branch)):
        print(f"the hub does not say what {name} is; taken is what this machine has of it, {known}")
    return known


def _entry(model: str, branch: str) -> tuple[str, str]:
    """What a commit is noted for, and the file that it is noted in."""
    name = f"{model}@{branch}"
    return name, f"{name.replace('/', '--')}.commit"


def _noted(folder: Folder, file: str) -> str | None:
    try:
        known = folder.read(file).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if _valid(known) is None:
        raise ValueError(
            f"{redacted(folder.uri)}/{file} holds no commit; delete it, or give --revision COMMIT"
        )
    return known


def _told(model: str, branch: str) -> str | None:
    """The commit that a branch stands at now, if the hub says."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return _valid(HfApi().model_info(model, revision=branch, timeout=10).sha or "")
    except Exception:  # of the network, of httpx, of the hub: loading will say it
        return None


def _cached(model: str, branch: str) -> str | None:
    """The commit that this machine has of a branch: as its download said, or of main the only one there is."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
    with contextlib.suppress(OSError):
        return _valid((folder / "refs" / branch).read_text().strip())
    with contextlib.suppress(OSError, ValueError):
        (only,) = (
            folder / "snapshots"
        ).iterdir()  # a job loads a commit, which leaves no branch behind
        return _valid(only.name) if branch == "main" else None
    return None


def _valid(text: str) -> str | None:
    return text if _COMMIT.fullmatch(text) else None
