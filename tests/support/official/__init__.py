"""The official benchmarks in miniature: each layout on disk, with a few rows.

bench, split, write = LAYOUTS["gqa of the hub"]
write(folder)                # the rows by hand
write(folder, TEN[bench])    # ten plain ones
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.official import folders, hub

LAYOUTS: dict[
    str, tuple[str, str, Callable[..., Any]]
] = {  # test's name -> benchmark, split, who writes it
    "gqa": ("gqa", "test", folders.gqa),
    "gqa of the hub": ("gqa", "test", hub.gqa),
    "mmbench": ("mmbench", "dev", folders.mmbench),
    "mmbench of the hub": ("mmbench", "dev", hub.mmbench),
    "mmbench_cn": (
        "mmbench_cn",
        "dev",
        partial(folders.mmbench, name="mmbench_dev_cn_20231003.tsv"),
    ),
    "mmbench_cn of the hub": ("mmbench_cn", "dev", partial(hub.mmbench, config="cn")),
    "mme": ("mme", "test", folders.mme),
    "mme of the hub": ("mme", "test", hub.mme),
    "pope": ("pope", "test", folders.pope),
    "pope of the hub": ("pope", "test", hub.pope),
    "scienceqa": ("scienceqa", "test", folders.scienceqa),
    "scienceqa of the hub": ("scienceqa", "test", hub.scienceqa),
    "vqav2 val": ("vqav2", "val", folders.vqav2),
    "vqav2 test": ("vqav2", "test", folders.vqav2_test),
    "vqav2 of the hub": ("vqav2", "val", hub.vqav2),
    "textvqa": ("textvqa", "test", folders.textvqa),
    "textvqa of the hub": ("textvqa", "test", hub.textvqa),
    "vizwiz test": ("vizwiz", "test", folders.vizwiz),
    "vizwiz val": ("vizwiz", "val", folders.vizwiz_val),
    "vizwiz of the hub": ("vizwiz", "val", hub.vizwiz),
    "tgif": ("tgif", "test", partial(folders.clips, name="TGIF", home="mp4")),
    "msvd": ("msvd", "test", partial(folders.clips, name="MSVD", home="videos")),
    "msrvtt": ("msrvtt", "test", partial(folders.clips, name="MSRVTT", home="videos/all")),
}
