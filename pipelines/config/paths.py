"""Where things are: what the user's paths mean in this process, and what a model's files are.

`ray job submit` runs a job in a copy of the working directory that is deleted afterwards. What is read from there may
be relative; what is written must not be.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import hub
from pipelines.data.rows import Kind

if TYPE_CHECKING:
    from pipelines.config.eval_config import EvalConfig

OUTPUT = "results"  # beside the user
HOME = "~/apet-results"  # where there is no such place
DEMO = Path(__file__).parents[2] / "demo"
PIECE, PIECES = 2**16, 64  # of a file of weights, evenly spread from its first byte to its last
_URI = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_SQLITE = "sqlite:///"


def submitted() -> bool:
    """Is this process a Ray job, in a directory that will be deleted?"""
    return (
        "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        or "/runtime_resources/working_dir_files/" in f"{Path.cwd()}/"
    )


def resolve_paths(config: EvalConfig) -> EvalConfig:
    """The config with absolute paths, a place for what is tracked, and a model's commit, which the hub may be asked."""
    model, output = _model(config.model, config.kind), to_write(config.output, "output")
    resolved = replace(
        config,
        model=model,
        data=_to_read(config.data, "data"),
        media_root=_to_read(config.media_root, "media-root"),
        output=output,
        revision=hub.revision_of(model, config.revision, output),
    )
    return replace(resolved, tracking_uri=_tracking(config.tracking_uri, resolved.output))


def demo_model(kind: Kind) -> Path:
    return DEMO / ("demo-llava" if kind == "image" else "demo-video-llava")


def _model(model: str, kind: Kind) -> str:
    if model == "demo":
        if not demo_model(kind).is_dir():
            raise ValueError(
                f"the demo model is not in {demo_model(kind)}; get the whole repository, or give --model"
            )
        return str(demo_model(kind))
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if model.startswith(("/", ".", "~")):
        raise ValueError(
            f"--model {model}: there is no such folder; give one, a model's name on the hub, or demo"
        )
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


def _tracking(uri: str | None, output: str) -> str:
    """MLflow's address: what was given, else what the environment says, else a file beside the answers."""
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return mlflow_at(given)
    local = output.removeprefix("file://") if output.startswith("file://") else output
    folder = Path(HOME).expanduser() if _URI.match(local) else Path(local)
    return f"{_SQLITE}{folder}/mlflow.db"


def mlflow_at(given: str) -> str:
    """A server as it is, a database file by its absolute path."""
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
        if (
            not path.is_file()
            or path.suffix == ".md"
            or any(part.startswith(".") for part in name.parts)
        ):
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
