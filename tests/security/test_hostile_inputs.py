"""Hostile rows, media, checkpoints and texts: no requests, no code, no memory, no markup.

Secrets have test_secrets.py and tests/pipelines/results/test_redaction.py.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from transformers import dynamic_module_utils

from apet.models import load
from pipelines.data.formats import parquet
from pipelines.data.manifest import Manifest
from pipelines.data.media import images, videos
from pipelines.data.memory_limit import bounded
from pipelines.data.rows import Medium
from pipelines.inference.model_info import model_info
from pipelines.judge.local import Reader
from pipelines.report.writer import write_report
from pipelines.results.run_record import RunRecord
from tests.support import reported, samples, tiny


class ConnectionCounter:
    """Listens on a port of this machine and counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            caller.close()


@pytest.fixture
def listener(servers: None) -> Iterator[ConnectionCounter]:
    listener = ConnectionCounter()
    yield listener
    listener.socket.close()


def test_listener_counts_connections(listener: ConnectionCounter) -> None:
    socket.create_connection(("127.0.0.1", listener.port)).close()
    socket.create_connection(("127.0.0.1", listener.port)).close()
    while listener.connections < 2:
        pass


def addresses(port: int) -> list[str]:
    """Paths that lead to a port of this machine, in forms that address filters have missed."""
    hosts = [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "[::1]",
    ]
    hosts += [
        "[::ffff:127.0.0.1]",
        "user@127.0.0.1",
        "host@127.0.0.1",
        "127.0.0.1.nip.io",
        "a.127.0.0.1.sslip.io",
    ]
    found = [
        f"{scheme}://{host}:{port}/a.jpg" for scheme in ("http", "HTTPS", "ftp") for host in hosts
    ]
    found += [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://10.0.0.1/a.jpg",
    ]
    schemes = (
        "rtsp",
        "rtmp",
        "tcp",
        "udp",
        "gopher",
        "ldap",
        "smb",
        "ssh",
        "sftp",
        "hdfs",
        "abfss",
        "jar",
        "data",
    )
    found += [f"{scheme}://127.0.0.1:{port}/a.jpg" for scheme in schemes]
    found += [
        f"//127.0.0.1:{port}/a.jpg",
        f"\\\\127.0.0.1@{port}\\a.jpg",
        f"http:/127.0.0.1:{port}/a.jpg",
    ]
    overrides = (
        f"endpoint_override=127.0.0.1:{port}&scheme=http",
        f"endpoint_override=http://127.0.0.1:{port}",
    )
    found += [
        f"{scheme}://bucket/a.jpg?{each}"
        for scheme in ("s3", "S3", "gs", "gcs")
        for each in overrides
    ]
    return [
        *found,
        f"concat:http://127.0.0.1:{port}/a|b",
        f"subfile,,start,0,end,9,,:http://127.0.0.1:{port}/a",
    ]


@pytest.mark.parametrize("allow_outside", [False, True], ids=["careful", "trusting"])
def test_no_path_in_a_row_causes_a_request(
    tmp_path: Path, listener: ConnectionCounter, allow_outside: bool
) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": 1, "image": "a.jpg", "question": "q"}')
    manifest = Manifest.of(str(tmp_path / "m.jsonl"), allow_outside=allow_outside)
    for address in addresses(listener.port):
        with pytest.raises((ValueError, PermissionError, FileNotFoundError)):
            manifest.fetch(Medium("image", address))
    assert listener.connections == 0


def test_no_medium_causes_a_request_or_reads_a_file(
    tmp_path: Path, listener: ConnectionCounter
) -> None:
    (tmp_path / "secret.mp4").write_bytes(samples.clip("mp4", "mpeg4"))
    (tmp_path / "secret.png").write_bytes(samples.saved(samples.noise(), "PNG"))
    for target in (
        f"http://127.0.0.1:{listener.port}/a.mp4",
        f"file://{tmp_path}/secret.mp4",
        f"{tmp_path}/secret.mp4",
    ):
        segments = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
        for text in (
            segments,
            f"#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI={target}\n{segments}",
            f"ffconcat version 1.0\nfile '{target}'\n",
            '<?xml version="1.0"?><MPD><Period><AdaptationSet>'
            f"<BaseURL>{target}</BaseURL></AdaptationSet></MPD>",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n"
            f"m=video {listener.port} RTP/AVP 96\na=control:{target}\n",
            f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        ):
            for name in ("a.mp4", "a.m3u8", "a.sdp", "a.mpd"):
                (tmp_path / name).write_text(text)
                with pytest.raises(ValueError, match=r"cut or damaged|web page"):
                    videos.decode(tmp_path / name, 4)
            with pytest.raises(ValueError, match=r"cut or damaged|web page"):
                videos.decode(text.encode(), 4)
    link = f"http://127.0.0.1:{listener.port}/a.png"
    for text in (
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{link}"/></svg>',
        f"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 9,9 '{link}'\n",
        f"%!PS\n({tmp_path}/secret.png) (r) file\n",
    ):
        with pytest.raises(ValueError, match=r"web page|not an image"):
            images.decode(text.encode())
    assert listener.connections == 0


def claims(count: int) -> bytes:
    """A small MP4 that says it has so many frames."""
    data = bytearray(samples.clip("mp4", "mpeg4"))
    for atom, *fields in (
        (b"stsz", 0, 1, count),
        (b"stts", 0, 1, count, 1),
        (b"stsc", 0, 1, 1, count, 1),
    ):
        struct.pack_into(f">{len(fields)}I", data, data.index(atom) + 4, *fields)
    return bytes(data)


@pytest.mark.skipif(sys.platform != "linux", reason="the ceiling on memory is Linux's")
@pytest.mark.parametrize("count", [2_000_000, 170_000_000, 2**31])
def test_false_frame_count_is_refused(count: int) -> None:
    with bounded(2 << 30), pytest.raises(ValueError, match=r"cut|frames"):
        videos.decode(claims(count), 4)


def test_gigantic_frames_are_refused() -> None:
    gif = bytearray(samples.clip("gif", "gif"))
    struct.pack_into("<HH", gif, 6, 65535, 65535)
    ivf = bytearray(samples.clip("ivf", "libvpx"))
    at = ivf.index(b"\x9d\x01\x2a")
    while at > 0:  # the size in the header of every key frame, which the container does not know of
        struct.pack_into("<HH", ivf, at + 3, 16383, 16383)
        at = ivf.find(b"\x9d\x01\x2a", at + 1)
    for data in (gif, ivf):
        with (
            bounded(1 << 30),
            pytest.raises(ValueError, match=r"pixels; at most|cut or damaged|no frames"),
        ):
            videos.decode(bytes(data), 4)
    with bounded(1 << 30), pytest.raises(ValueError, match="too many pixels"):
        images.decode(bytes(gif))


@pytest.mark.skipif(sys.platform != "linux", reason="the ceiling on memory is Linux's")
def test_excessive_memory_is_an_error_of_that_row() -> None:
    for _ in range(3):
        with pytest.raises(MemoryError), bounded(64 << 20):
            bytearray(128 << 20)
        with bounded(1 << 30), bounded(256 << 20):
            bytearray(128 << 20)
    bytearray(128 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="the ceiling on memory is Linux's")
def test_parquet_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text that all rows refer to: together they are 1 GB, each by itself is nothing."""
    rows = 20_000
    long = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["q" * 50_000])
    )
    table = pa.table(
        {"id": [str(row) for row in range(rows)], "image": ["a.jpg"] * rows, "question": long}
    )
    path = tmp_path / "m.parquet"
    pq.write_table(
        table, path, store_schema=False, dictionary_pagesize_limit=10_000_000, compression="zstd"
    )
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(parquet, "MAX_MEMORY", 128 << 20)
    manifest = Manifest.of(str(path))
    index = manifest.index()
    assert [len(row.question) for row in manifest.read(index.take([3, 4, 19_999]))] == [50_000] * 3


CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("it ran")
from transformers import LlavaConfig as Config, LlavaForConditionalGeneration as Model
from transformers import LlavaProcessor as Processor
"""


def write_hostile_checkpoint(folder: Path) -> Path:
    """Write code for every class of a checkpoint; the returned file exists once any of it ran."""
    marker = folder.parent / "ran"
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    classes = {
        "AutoConfig": "Config",
        "AutoModelForImageTextToText": "Model",
        "AutoProcessor": "Processor",
    }
    classes |= {"AutoModelForCausalLM": "Model", "AutoModel": "Model"}
    classes |= {"AutoTokenizer": "Processor", "AutoImageProcessor": "Processor"}
    for path in folder.glob("*config.json"):
        held = json.loads(path.read_text())
        held["auto_map"] = {auto: f"code.{own}" for auto, own in classes.items()}
        path.write_text(json.dumps(held))
    return marker


def test_checkpoint_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = write_hostile_checkpoint(tiny.save("llava", tmp_path / "model"))
    model, _ = load(tmp_path / "model")
    assert type(model) is type(tiny.model("llava"))
    assert model_info(str(tmp_path / "model")).visual_tokens == 36
    assert not marker.exists()
    dynamic_module_utils.get_class_from_dynamic_module("code.Config", str(tmp_path / "model"))
    assert marker.exists()  # it would have


def test_judge_code_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny._TEXT)).save_pretrained(folder)
    tiny.tokenizer(begin=True).save_pretrained(folder)
    marker = write_hostile_checkpoint(folder)
    assert (
        type(Reader(str(folder), None, gpu=False, threads=None).model)
        is transformers.LlamaForCausalLM
    )
    own = {"model_type": "its own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match="trust_remote_code"):
        Reader(str(folder), None, gpu=False, threads=None)
    assert not marker.exists()


class Bang:
    """A pickle that runs code when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "names", [("pytorch_model.bin",), ("pytorch_model.bin", "training_args.bin", "adapter.pt")]
)
def test_checkpoint_pickles_are_not_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tiny.save("llava", tmp_path / "model")
    for name in names:
        torch.save({"weight": Bang(tmp_path / "ran")}, folder / name)
    load(folder)  # beside safetensors they are ignored
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    torch.load(folder / names[0], weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


LISTENING = """
import os, psutil
os.environ.pop("RAY_AUTH_MODE", None)  # as for a user
from pipelines.inference.cluster import join
join(None)
import ray
assert ray.get(ray.remote(lambda: 1).remote()) == 1
ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
sockets = [socket for process in ours for socket in process.net_connections("inet")]
found = {socket.laddr.ip for socket in sockets if socket.status == "LISTEN"}
print("listens on", *sorted(found), "with", os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.mark.usefixtures("subprocesses")
def test_job_listens_on_loopback_only(tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.stdout.splitlines()[-1] == "listens on 127.0.0.1 ::ffff:127.0.0.1 with token", (
        done.stderr
    )


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1",
    "\uff201",
)


def test_no_text_becomes_markup_or_a_formula(tmp_path: Path) -> None:
    """Ids, questions, answers, types, methods and models, in every format of a report."""
    evil = [f"{formula}{MARKUP}" for formula in FORMULAS]
    for point, right in (("vanilla", 12), ("apet", 6), ("random", 0)):
        rows = []
        for at, text in enumerate(evil):
            asked = {
                "row_id": text,
                "question": text,
                "type": text,
                "media": [text],
                "reference": [text],
            }
            rows.append({**asked, "prediction": text, "correct": at < right})
            rows.append({**asked, "row_id": f"{text}torn", "status": "error", "error": text})
        folder = reported.run(
            tmp_path,
            "manifest",
            point,
            rows,
            budget=None if point == "vanilla" else "64",
            model="m",
        )
        record = RunRecord.load(folder)
        record.point["name"] = record.point["name"].replace("random", evil[0])
        record.point["method"] = record.identity["method"] = record.point["method"].replace(
            "random", evil[1]
        )
        record.tags["model"] = evil[2]
        record.save(folder)
    write_report([str(tmp_path)])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    cells = []
    for file in (tmp_path / "report" / "tables").glob("*.csv"):
        with file.open(newline="") as lines:
            cells += [cell for line in csv.reader(lines) for cell in line]
    shown = [cell for cell in cells if "script" in cell]
    assert shown
    for cell in shown:
        assert cell.lstrip(" ")[:1] not in ("", *"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"), cell
