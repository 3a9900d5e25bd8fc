"""Storage that runs out: the disk of the answers, and Ray's object stores."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from functools import cache
from pathlib import Path

from transformers.image_utils import SizeDict

from tests.faults.machines import Machines
from tests.faults.scenario import Scenario
from tests.support import tiny

LARGE_SIDE = 1344  # pixels; such a picture takes 5.4 MB


@cache
def can_mount() -> bool:
    """True if this process may mount file systems, which takes root."""
    return (
        _mount(Path("/mnt"), "64k")
        and subprocess.run(["umount", "/mnt"], check=False).returncode == 0
    )


def _mount(folder: Path, size: str) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def disk_full(scenario: Scenario) -> Generator[None, None, None]:
    """Fill the disk of the output; when it has room again, the same command continues."""
    scenario.output.mkdir()
    assert _mount(scenario.output, "4m"), "file systems cannot be mounted here"
    yield
    try:
        scenario.wait_for_batch()
        with (scenario.output / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        assert scenario.job.wait() == 1, scenario.job.log_text
        lines = scenario.job.log_text.splitlines()
        last = [line for line in lines if "No space left on device" in line][-1]
        assert "make room" in last, scenario.job.log_text
        (scenario.output / "filler").unlink()
        scenario.start()
        scenario.wait_for_recovery()
        yield
    finally:
        scenario.job.kill()
        # The answers are counted after the disk is gone.
        copy = scenario.folder / "copy-of-output"
        shutil.copytree(scenario.output, copy)
        subprocess.run(["umount", "--lazy", str(scenario.output)], check=False)
        shutil.copytree(copy, scenario.output, dirs_exist_ok=True)


def object_store_full(scenario: Scenario) -> Generator[None, None, None]:
    """A batch fills a quarter of an object store: rows wait or spill to disk, all are answered."""
    folder = scenario.testbed.folder / "large"
    if not folder.exists():
        config = tiny.model("llava").config
        config.vision_config.image_size = LARGE_SIDE
        config.vision_config.patch_size = LARGE_SIDE // 6
        tiny.build(config, "sdpa", tiny.torch.float32, 0).save_pretrained(folder)
        processor = tiny.processor("llava")
        processor.patch_size = LARGE_SIDE // 6
        processor.image_processor.size = SizeDict(shortest_edge=LARGE_SIDE)
        processor.image_processor.crop_size = SizeDict(height=LARGE_SIDE, width=LARGE_SIDE)
        processor.save_pretrained(folder)
    scenario.overrides["model"] = str(folder)
    yield
    total = len(scenario.rows) * LARGE_SIDE * LARGE_SIDE * 3
    assert total > Machines.OBJECT_STORE_BYTES, "all pictures fit into the object store"
    yield
