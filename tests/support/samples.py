"""Small whole files of every kind that is read from outside: what the fuzzer damages."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.data import spreadsheet

RECORDS = [
    {
        "id": f"r{number}",
        "image": f"pictures/{number}.jpg",
        "question": f'Wörter, "in quotes" {number}?',
        "answers": ["one", "a one"],
        "choices": {"A": "x", "B": "y"},
        "meta": {"grade": number},
    }
    for number in range(12)
]
CLIPS = (  # container, codec
    ("mp4", "libx264"),
    ("mov", "mpeg4"),
    ("matroska", "libx264"),
    ("webm", "libvpx-vp9"),
    ("mpegts", "libx264"),
    ("avi", "mpeg4"),
    ("mpeg", "mpeg2video"),
    ("flv", "flv"),
    ("asf", "wmv2"),
    ("ogg", "libvpx"),
    ("ivf", "libvpx"),
    ("gif", "gif"),
    ("h264", "libx264"),
    ("mp4", "libx265"),
    ("avi", "mjpeg"),
    ("mov", "prores"),
)
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p", "prores": "yuv422p10le"}


def noise(size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    )


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def images() -> list[bytes]:
    picture = noise()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    several: dict[str, Any] = {
        "save_all": True,
        "append_images": [picture.rotate(90), picture.rotate(180)],
    }
    deep = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40)
    real = Image.fromarray(np.linspace(0, 1, 48 * 32, dtype=np.float32).reshape(32, 48))
    clear = picture.convert("RGBA")
    clear.putalpha(128)
    return [
        saved(picture, "JPEG", exif=exif),
        saved(picture, "JPEG", progressive=True, quality=40),
        saved(picture.convert("CMYK"), "JPEG"),
        saved(picture, "PNG", exif=exif),
        saved(deep, "PNG"),
        saved(picture.quantize(16), "PNG", transparency=3),
        saved(picture, "WEBP", exif=exif),
        saved(clear, "WEBP", lossless=True),
        saved(picture, "WEBP", **several),
        saved(picture, "GIF", **several),
        saved(picture, "BMP"),
        saved(picture.quantize(16), "BMP"),
        *(
            saved(picture, "TIFF", compression=how)
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")
        ),
        saved(real, "TIFF"),
        saved(clear, "AVIF", quality=50),
        saved(picture, "JPEG2000"),
        saved(picture, "PPM"),
        b"P3\n2 2\n255\n" + b"1 2 3 4 5 6 7 8 9 10 11 12\n",
    ]


def clip(container: str, codec: str, frames: int = 14, size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.gop_size = *size, 6
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1  # the same bytes every time
        for number in range(frames):
            pixels = np.roll(np.asarray(noise(size)), 4 * number, axis=1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def videos() -> list[bytes]:
    return [clip(*each) for each in CLIPS]


def manifests() -> list[tuple[str, bytes]]:
    """Each with the end of the name that says what it is."""
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    found = [(".jsonl", lines.encode()), (".json", json.dumps(RECORDS, indent=1).encode())]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(RECORDS[0])
        for record in RECORDS:
            writer.writerow(
                [
                    json.dumps(cell) if isinstance(cell, list | dict) else cell
                    for cell in record.values()
                ]
            )
        found.append((suffix, text.getvalue().encode()))
    rows = [
        {**record, "image": {"bytes": b"\xff\xd8" * 20, "path": record["image"]}}
        for record in RECORDS
    ]
    for compression in ("none", "snappy", "zstd", "gzip"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=5, compression=compression)
        found.append((".parquet", sink.getvalue().to_pybytes()))
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            for number in range(3):
                question = json.dumps({"question": "q", "answers": ["a"]}).encode()
                for name, data in (
                    (f"{'w' * 110}{number}.jpg", b"\xff\xd8" * 99),
                    (f"{number}.json", question),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        found.append((".tar", file.getvalue()))
    return found


def spreadsheets() -> list[bytes]:
    return [
        spreadsheet.to_xlsx(
            ("index", "A", "prediction"), [(number, 0.5, "a dog") for number in range(6)]
        )
    ]
