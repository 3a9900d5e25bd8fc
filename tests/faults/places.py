"""Room that runs out: on the disk of the answers, and in Ray's object stores."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from functools import cache
from pathlib import Path

from transformers.image_utils import SizeDict

from tests.faults.machines import Machines
from tests.faults.scene import Night
from tests.support import tiny

SIDE = 1344  # of a large picture, which is 5.4 MB


@cache
def mounts() -> bool:
    """May we mount file systems here?"""
    return (
        _mount(Path("/mnt"), "64k")
        and subprocess.run(["umount", "/mnt"], check=False).returncode == 0
    )


def _mount(where: Path, size: str) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def disk_full(night: Night) -> Generator[None, None, None]:
    """The disk of the output fills up; when there is room again, the same command goes on."""
    night.output.mkdir()
    assert _mount(night.output, "1m"), "file systems cannot be mounted here"
    yield
    try:
        night.in_a_batch()
        with (night.output / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        status = night.job.wait()
        assert status == 1, night.job.said
        last = [line for line in night.job.said.splitlines() if "No space left on device" in line][
            -1
        ]
        assert "make room" in last, night.job.said
        (night.output / "filler").unlink()
        night.start()
        night.others()
        yield
    finally:
        night.job.kill()
        copy = night.folder / "kept"  # what is counted after the disk is gone
        shutil.copytree(night.output, copy)
        subprocess.run(["umount", "--lazy", str(night.output)], check=False)
        shutil.copytree(copy, night.output, dirs_exist_ok=True)


def store_small(night: Night) -> Generator[None, None, None]:
    """A batch is a quarter of what an object store holds: rows wait, or go to disk, and all are answered."""
    folder = night.theatre.folder / "large"
    if not folder.exists():
        config = tiny.model("llava").config
        config.vision_config.image_size, config.vision_config.patch_size = SIDE, SIDE // 6
        tiny.build(config, "sdpa", tiny.torch.float32, 0).save_pretrained(folder)
        processor = tiny.processor("llava")
        processor.patch_size = SIDE // 6
        processor.image_processor.size = SizeDict(shortest_edge=SIDE)
        processor.image_processor.crop_size = SizeDict(height=SIDE, width=SIDE)
        processor.save_pretrained(folder)
    night.given["model"] = str(folder)
    yield
    assert len(night.names) * SIDE * SIDE * 3 > Machines.STORE, "it would all fit"
    yield
