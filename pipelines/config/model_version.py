"""Which model exactly: the commit of a model on the Hugging Face Hub, the fingerprint of a folder.

The first job with an output resolves a branch to a commit, and notes the commit beside the answers
when it begins. So the same command resumes with the same model after the branch has moved, and
while the hub does not respond. A finished job does not contact the hub, unless the model's config
is missing in the local cache.
"""

import contextlib
import functools
import hashlib
import re
from pathlib import Path

from pipelines.results.storage import Folder
from pipelines.text import redacted

PIECE = 2**16  # bytes of one sample of a file of weights
PIECES = 64  # samples per file, evenly spaced from its first byte to its last
HUB_TIMEOUT_S = 10
_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(model: str, revision: str | None, output: str) -> str | None:
    """The commit of a branch or tag; the revision itself for a folder, or if no commit is known."""
    commit = None if Path(model).is_dir() else _resolve(model, revision or "main", output)
    return commit or revision


def require_commit(model: str, revision: str | None) -> None:
    """Raise a ValueError if the model is on the hub and its commit is unknown."""
    if not Path(model).is_dir() and _commit(revision or "") is None:
        raise ValueError(
            f"cannot resolve {model}@{revision or 'main'} to a commit: the hub did not tell it, and"
            " without a commit a resumed job might use another model; try again, or give"
            " --revision COMMIT"
        )


def note_commit(model: str, commit: str | None, revision: str | None, output: str) -> None:
    """Store for later jobs the commit to which `revision_of` resolved the revision.

    Raises a ValueError if another job has just stored another commit. Two jobs that store one at
    the same moment may miss each other.
    """
    if commit is None or commit == revision:
        return
    folder, (name, file) = Folder.of(output), _note_file(model, revision or "main")
    noted = _noted_commit(folder, file)
    if noted is None:
        folder.write(file, commit.encode())
        noted = _noted_commit(folder, file)
    if noted != commit:
        raise ValueError(
            f"another job has just started with {name} at {noted}; run the same command again"
        )


@functools.cache  # a sweep asks again for each benchmark
def _resolve(model: str, branch: str, output: str) -> str | None:
    if _commit(branch):
        return branch
    folder, (name, file) = Folder.of(output), _note_file(model, branch)
    if noted := _noted_commit(folder, file):
        print(
            f"{name} is pinned to {noted} in {redacted(folder.uri)}; to change it, give"
            f" --revision COMMIT or delete {file}"
        )
        return noted
    commit = _hub_commit(model, branch)
    if commit is None and (commit := _cached_commit(model, branch)):
        print(f"the hub did not tell the commit; using the local copy of {name}, commit {commit}")
    return commit


def _note_file(model: str, branch: str) -> tuple[str, str]:
    """A model's name with its branch, and the file that stores its commit."""
    name = f"{model}@{branch}"
    return name, f"{name.replace('/', '--')}.commit"


def _noted_commit(folder: Folder, file: str) -> str | None:
    try:
        noted = folder.read(file).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if _commit(noted) is None:
        raise ValueError(
            f"{redacted(folder.uri)}/{file} does not contain a commit; delete it, or give"
            " --revision COMMIT"
        )
    return noted


def _hub_commit(model: str, branch: str) -> str | None:
    """The current commit of a branch; None if the hub does not respond."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi().model_info(model, revision=branch, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of the network, httpx or the hub: loading the model will report it
        if _is_no_answer(error):
            work_offline()
        return None
    return _commit(info.sha or "")


def _is_no_answer(error: Exception) -> bool:
    """Whether a request failed because of the hub or the way to it, not because of the model."""
    response = getattr(error, "response", None)
    if response is None:  # a ValueError is about the name
        return not isinstance(error, ValueError)
    return bool(response.status_code >= 500)


def work_offline() -> None:
    """Let this process read models from the local cache alone.

    Loading a model asks the hub some twenty times, also for files that the model does not have.
    While the hub does not answer, each request waits until it times out.
    """
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def is_offline() -> bool:
    """Whether models are read from the local cache alone."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@functools.cache  # a sweep asks again for each benchmark
def check_hub(model: str, revision: str | None) -> None:
    """Work offline if the model is on the hub and the hub does not answer."""
    if Path(model).is_dir() or is_offline():
        return
    _hub_commit(model, revision or "main")
    if is_offline():
        print(f"the hub does not answer; {model} is read from the local cache", flush=True)


def _cached_commit(model: str, branch: str) -> str | None:
    """The commit that was downloaded for a branch, or for main the only commit in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
    with contextlib.suppress(OSError):
        return _commit((folder / "refs" / branch).read_text().strip())
    # A job loads a commit, which leaves a snapshot but no branch in the cache.
    with contextlib.suppress(OSError, ValueError):
        (snapshot,) = (folder / "snapshots").iterdir()
        return _commit(snapshot.name) if branch == "main" else None
    return None


def _commit(text: str) -> str | None:
    return text if _COMMIT.fullmatch(text) else None


def model_fingerprint(model: str, revision: str | None = None) -> str:
    """A folder's digest, which does not depend on its path; for a model on the hub, name@revision.

    Of large files only the size and 64 samples are read, so that a hundred gigabytes take a moment.
    Training that changes any layer of more than a sixty-fourth of a file shows, and so does an
    incomplete copy.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or path.suffix == ".md" or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= PIECE * PIECES:
                digest.update(file.read())
                continue
            for piece in range(PIECES):
                file.seek((size - PIECE) * piece // (PIECES - 1))
                digest.update(file.read(PIECE))
    return f"sha256:{digest.hexdigest()}"
