"""Resolves the paths of a config to absolute ones.

`ray job submit` runs a job in a copy of the working directory that is deleted afterwards. Paths to
read from there may be relative, paths to write to may not.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from pipelines.config import model_version
from pipelines.config.eval_config import EvalConfig
from pipelines.data.rows import Kind

OUTPUT = "results"  # the default, in the working directory
HOME = "~/apet-results"  # the default for a submitted job
DEMO = Path(__file__).parents[2] / "demo"
_URI = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_SQLITE = "sqlite:///"


def submitted() -> bool:
    """Does this process run in the working directory of a Ray job, which will be deleted?"""
    return (
        "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        or "/runtime_resources/working_dir_files/" in f"{Path.cwd()}/"
    )


def resolve_paths(config: EvalConfig) -> EvalConfig:
    """The config with absolute paths, an MLflow address and the model's commit.

    May ask the hub for the commit.
    """
    model, output = _model(config.model, config.kind), to_write(config.output, "output")
    return replace(
        config,
        model=model,
        data=_to_read(config.data, "data"),
        media_root=_to_read(config.media_root, "media-root"),
        output=output,
        revision=model_version.revision_of(model, config.revision, output),
        tracking_uri=_tracking(config.tracking_uri, output),
    )


def _model(model: str, kind: Kind) -> str:
    if model == "demo":
        folder = DEMO / ("demo-llava" if kind == "image" else "demo-video-llava")
        if not folder.is_dir():
            raise ValueError(
                f"the demo model is not in {folder}; clone the complete repository, or give --model"
            )
        return str(folder)
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if model.startswith(("/", ".", "~")):
        raise ValueError(
            f"--model {model}: no such folder; give a folder, a name on the Hugging Face Hub, or"
            " demo"
        )
    return model


def _absolute(path: str) -> str | None:
    """An absolute path or a URI; None if the path depends on the working directory."""
    if _URI.match(path):
        return path
    expanded = Path(path).expanduser()
    return os.path.normpath(expanded) if expanded.is_absolute() else None


def _to_read(path: str | None, flag: str) -> str | None:
    if path is None:
        return None
    if absolute := _absolute(path):
        return absolute
    here = os.path.abspath(path)
    if submitted() and not Path(here).exists():
        raise ValueError(
            f"--{flag} {path}: not in the files submitted with the job (files in .gitignore are not"
            f' submitted); give an absolute path that all machines see, e.g. "$PWD/{path}", or an'
            " s3:// or gs:// URI"
        )
    return here


def to_write(path: str, flag: str) -> str:
    """The absolute path to write to; a ValueError if it would be deleted with a Ray job."""
    if absolute := _absolute(path):
        return absolute
    if not submitted():
        return os.path.abspath(path)
    if path == OUTPUT:
        return str(Path(HOME).expanduser())
    raise ValueError(
        f"--{flag} {path} would be deleted with the job's working directory; give an absolute path,"
        f' e.g. --{flag} "$PWD/{path}", or an s3:// or gs:// URI'
    )


def _tracking(uri: str | None, output: str) -> str:
    """MLflow's address: the flag's, else the environment's, else a file beside the answers."""
    if address := uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return mlflow_address(address)
    local = output.removeprefix("file://")
    folder = Path(HOME).expanduser() if _URI.match(local) else Path(local)
    return f"{_SQLITE}{folder}/mlflow.db"


def mlflow_address(uri: str) -> str:
    """The address of a server unchanged, that of a database file with its absolute path."""
    if uri.startswith(_SQLITE):
        return _SQLITE + to_write(uri.removeprefix(_SQLITE), "tracking-uri")
    if _URI.match(uri) or uri == "databricks":
        return uri
    if uri.endswith(".db"):
        return _SQLITE + to_write(uri, "tracking-uri")
    raise ValueError(
        f"--tracking-uri {uri}: MLflow no longer stores runs in plain folders; give a server, e.g."
        f" http://host:5000, or a file, e.g. {_SQLITE}{uri.rstrip('/')}/mlflow.db"
    )
