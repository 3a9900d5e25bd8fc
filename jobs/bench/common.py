"""Shared by the benchmarks: the command line, generated files, and the JSON line.

Imports nothing heavy: pipeline.py measures the memory of processes that import this module.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.results.storage import Folder

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"


def argument_parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def print_json(bench: str, **values: Any) -> None:
    print(json.dumps({"bench": bench, **values}), flush=True)


def write_manifest(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    with path.open("w") as manifest:
        for row in rows:
            manifest.write(json.dumps(row) + "\n")
    return path


def blurred_noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture without edges: its JPEG file is about as large as a photo's."""
    import numpy as np
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def write_photo(path: Path, seed: int) -> None:
    blurred_noise(640, 480, seed).save(path, quality=85)


def run_folders(output: Path) -> list[Folder]:
    """Folders of all runs below an output folder."""
    from pipelines.results.storage import Folder

    return [Folder.of(str(path.parent)) for path in output.glob("*/config.yaml")]
