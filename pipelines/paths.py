"""Where things are: what the user's paths mean in this process, and what a model's files are.

`ray job submit` runs a job in a copy of the working directory that is deleted afterwards. What is read from there may
be relative; what is written must not be.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.rows import Kind
from pipelines.storage import Folder, redacted

if TYPE_CHECKING:
    from pipelines.config import EvalConfig

OUTPUT = "results"  # beside the user
HOME = "~/apet-results"  # where there is no such place
DEMO = Path(__file__).parent.parent / "demo"
PIECE, PIECES = 2**16, 64  # of a file of weights, evenly spread from its first byte to its last
_URI = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_SQLITE = "sqlite:///"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def submitted() -> bool:
    """Is this process a Ray job, in a directory that will be deleted?"""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "/runtime_resources/working_dir_files/" in f"{Path.cwd()}/"


def resolve_paths(config: EvalConfig) -> EvalConfig:
    """The config with absolute paths, and with a place for what is tracked."""
    model, output = _model(config.model, config.kind), to_write(config.output, "output")
    resolved = replace(
        config,
        model=model,
        data=_to_read(config.data, "data"),
        media_root=_to_read(config.media_root, "media-root"),
        output=output,
        revision=(None if Path(model).is_dir() else commit_of(model, config.revision or "main", output))
        or config.revision,
    )
    return replace(resolved, tracking_uri=tracking(config.tracking_uri, resolved.output))


def demo_model(kind: Kind) -> Path:
    return DEMO / ("demo-llava" if kind == "image" else "demo-video-llava")


def _model(model: str, kind: Kind) -> str:
    if model == "demo":
        if not demo_model(kind).is_dir():
            raise ValueError(f"the demo model is not in {demo_model(kind)}; get the whole repository, or give --model")
        return str(demo_model(kind))
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if model.startswith(("/", ".", "~")):
        raise ValueError(f"--model {model}: there is no such folder; give one, a model's name on the hub, or demo")
    return model


def _absolute(path: str) -> str | None:
    """A path that means the same everywhere, or a URI; None for one that depends on where we are."""
    if _URI.match(path):
        return path
    expanded = Path(path).expanduser()
    return os.path.normpath(expanded) if expanded.is_absolute() else None


def _to_read(path: str | None, flag: str) -> str | None:
    if path is None or (fixed := _absolute(path)):
        return None if path is None else fixed
    here = Path(os.path.normpath(Path.cwd() / path))
    if submitted() and not here.exists():
        raise ValueError(
            f"--{flag} {path}: not among the files that came with the job (what .gitignore names stays behind);"
            f' give an absolute path that all machines see, such as "$PWD/{path}", or an s3:// or gs:// URI'
        )
    return str(here)


def to_write(path: str, flag: str) -> str:
    """Where a user's path to write to is; a ValueError for one that a Ray job would lose at its end."""
    if fixed := _absolute(path):
        return fixed
    if not submitted():
        return os.path.normpath(Path.cwd() / path)
    if path == OUTPUT:
        return str(Path(HOME).expanduser())
    raise ValueError(
        f"--{flag} {path} would be deleted with the job's working directory;"
        f' give an absolute path, such as --{flag} "$PWD/{path}", or an s3:// or gs:// URI'
    )


def tracking(uri: str | None, output: str) -> str:
    """MLflow's address: what was given, else what the environment says, else a file beside the answers."""
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        local = output.removeprefix("file://") if output.startswith("file://") else output
        folder = Path(HOME).expanduser() if _URI.match(local) else Path(local)
        return f"{_SQLITE}{folder}/mlflow.db"
    if given.startswith(_SQLITE):
        return _SQLITE + to_write(given.removeprefix(_SQLITE), "tracking-uri")
    if _URI.match(given) or given == "databricks":
        return given
    if given.endswith(".db"):
        return _SQLITE + to_write(given, "tracking-uri")
    raise ValueError(
        f"--tracking-uri {given}: MLflow keeps no runs in plain folders any more;"
        f" give http://host:5000 or a file such as {_SQLITE}{given.rstrip('/')}/mlflow.db"
    )


@functools.cache
def commit_of(model: str, branch: str, output: str) -> str | None:
    """The commit that stands for a branch or tag of a model on the hub, in all jobs with this output; None: not known.

    The first of them asks the hub, and `pin` notes it. So the same command goes on with the same model when the branch
    has moved, or the hub does not answer; a finished job asks nobody.
    """
    if _COMMIT.fullmatch(branch):
        return branch
    folder, (name, file) = Folder.of(output), _pin(model, branch)
    known = _pinned(folder, file)
    if known is not None:
        print(f"{name} is at {known} for {redacted(folder.uri)}; --revision COMMIT, or deleting {file}, takes another")
        return known
    known = _hub(model, branch)
    if known is None and (known := _cached(model, branch)):
        print(f"the hub does not say what {name} is; taken is what this machine has of it, {known}")
    return known


def refuse_unknown(config: EvalConfig) -> None:
    """A ValueError if a model is on the hub, and nobody said at which commit."""
    if not Path(config.model).is_dir() and _commit(config.revision or "") is None:
        raise ValueError(
            f"the hub did not say which commit {config.model}@{config.revision or 'main'} is, so the same command could"
            " not go on with the same model; run it again, or give --revision COMMIT"
        )


def pin(config: EvalConfig, revision: str | None) -> None:
    """Note for later jobs at which commit this one, which begins, asks its model; a ValueError if they know another.

    config:   a resolved one
    revision: what it had been before
    """
    found = _commit(config.revision or "")
    if Path(config.model).is_dir() or found is None or found == revision:
        return
    folder, (name, file) = Folder.of(config.output), _pin(config.model, revision or "main")
    if _pinned(folder, file) is None:
        folder.write(file, found.encode())
    if (known := _pinned(folder, file)) != found:
        raise ValueError(f"another job has begun meanwhile, with {name} at {known}; run the same command again")


def _pin(model: str, branch: str) -> tuple[str, str]:
    """What a commit is noted for, and the file that it is noted in."""
    name = f"{model}@{branch}"
    return name, f"{name.replace('/', '--')}.commit"


def _pinned(folder: Folder, file: str) -> str | None:
    try:
        known = folder.read(file).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not _COMMIT.fullmatch(known):
        raise ValueError(f"{redacted(folder.uri)}/{file} holds no commit; delete it, or give --revision COMMIT")
    return known


def _hub(model: str, branch: str) -> str | None:
    """The commit that a branch stands at now, if the hub says."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return _commit(HfApi().model_info(model, revision=branch, timeout=10).sha or "")
    except Exception:  # of the network, of httpx, of the hub: loading will say it
        return None


def _cached(model: str, branch: str) -> str | None:
    """The commit that this machine has of a branch: as its download said, or of main the only one there is."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
    with contextlib.suppress(OSError):
        return _commit((folder / "refs" / branch).read_text().strip())
    with contextlib.suppress(OSError, ValueError):
        (only,) = (folder / "snapshots").iterdir()  # a job loads a commit, which leaves no branch behind
        return _commit(only.name) if branch == "main" else None
    return None


def _commit(text: str) -> str | None:
    return text if _COMMIT.fullmatch(text) else None


def model_fingerprint(model: str, revision: str | None = None) -> str:
    """What the model is: of a folder, a digest that ignores where it lies; of a name on the hub, name and revision.

    Of weights the size and a part in 64 places are read, so that a hundred gigabytes take a moment: training that
    touches any layer of more than a sixty-fourth of a file shows, and so does a torn copy.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or path.suffix == ".md" or any(part.startswith(".") for part in name.parts):
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
