"""Images and videos: the right pixels, and a clear error for everything else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.data.media import images, videos
from tests.support import samples

BARS = 10  # a frame shows its number in binary: white bars are ones
SIZE = (80, 48)


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def corners() -> Image.Image:
    """An image with four colors in its corners, so that every turn and flip is visible."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[:8, 16:], pixels[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return Image.fromarray(pixels)


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    bits = [number >> bit & 1 for bit in range(BARS)]
    return np.repeat(
        np.repeat(np.array(bits, np.uint8)[None, :, None] * 255, size[0] // BARS, 1), size[1], 0
    ).repeat(3, 2)


def number(frame: np.ndarray) -> int:
    width = frame.shape[1] // BARS
    return sum(
        1 << bit
        for bit in range(BARS)
        if frame[:, bit * width + 2 : (bit + 1) * width - 2].mean() > 128
    )


def encode(
    path: Path,
    frames: int = 40,
    codec: str = "h264",
    b_frames: int = 2,
    keyframe_interval: int = 12,
    size: tuple[int, int] = SIZE,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = (
            *size,
            "yuv420p",
            keyframe_interval,
        )
        stream.codec_context.max_b_frames = b_frames
        if codec == "h264":
            interval = f"keyint={keyframe_interval}:min-keyint={keyframe_interval}"
            stream.options = {"x264-params": f"{interval}:scenecut=0"}
        for place in range(frames):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(numbered(place, size), format="rgb24"))
            )
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """All frames, decoded in order."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {  # by the standard: the position of row 0 and column 0 of the file in the image
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.array_equal(
        images.decode(saved(corners(), "PNG", exif=exif)), turned(np.array(corners()))
    )


def test_every_mode_is_decoded_to_rgb() -> None:
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert images.decode(saved(deep, "PNG"))[0, :, 0].tolist() == [0, 1, 255]
    clear = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    for picture in (clear, clear.quantize(4)):
        assert images.decode(saved(picture, "PNG"))[0].tolist() == [
            [255, 255, 255],
            [200, 0, 0],
        ]
    inks = images.decode(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert abs(inks.astype(int) - [255, 0, 0]).max() < 8
    assert images.decode(saved(Image.new("1", (3, 2), 1), "PNG")).tolist() == [[[255] * 3] * 3] * 2
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert images.decode(saved(real, "TIFF"))[0, :, 1].tolist() == [0, 127, 255]
    first = images.decode(
        saved(
            Image.new("RGB", (4, 4), "red"),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (4, 4), "blue")],
        )
    )
    assert first[0, 0].tolist() == [255, 0, 0]


def test_file_and_bytes_give_equal_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(data := saved(corners(), "WEBP", lossless=True))
    assert np.array_equal(images.decode(tmp_path / "a.webp"), images.decode(data))
    assert np.array_equal(images.decode(data), np.array(corners()))
    with pytest.raises(FileNotFoundError):
        images.decode(tmp_path / "missing.png")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no bytes"),
        (b"\n<!DOCTYPE html><title>404", r"web page or XML; it starts with b'\\n<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (b"\0" * 100, "not an image of a known format"),
        (saved(NOISE, "JPEG")[:600], "cut or damaged"),
        (saved(NOISE, "PNG")[:-900], "cut or damaged"),
        (saved(NOISE, "WEBP")[:300], "cut or damaged|not an image"),
        (saved(NOISE, "TIFF")[:900], "cut or damaged|not an image"),
    ],
)
def test_data_that_is_not_an_image_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        images.decode(data)


def test_image_that_claims_too_many_pixels_is_refused() -> None:
    def png(width: int, height: int) -> bytes:
        data = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)

    for size in ((10_000, 10_001), (50_000, 50_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match="pixels"):
            images.decode(png(*size))
    with pytest.raises(ValueError, match=r"64 x 64 pixels; at most 4,095"):
        images.decode(saved(NOISE, "PNG"), max_pixels=4095)


def test_damaged_images_are_decoded_or_refused() -> None:
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        complete = np.frombuffer(saved(NOISE, format), np.uint8)
        for _ in range(30):
            data = complete.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            try:
                pixels = images.decode(data.tobytes()[: rng.integers(1, len(data))])
            except ValueError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


CLIPS = [
    ("plain.mp4", {"b_frames": 0}),
    ("b.mp4", {"b_frames": 3}),
    ("few_keys.mp4", {"keyframe_interval": 250}),
    ("b.mkv", {}),
    ("b.ts", {}),
    ("b.avi", {"codec": "mpeg4"}),
    ("old.mpg", {"codec": "mpeg2video"}),
    ("no_times.h264", {}),
]


def test_codec_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the video's codec is utvideo; allowed are .*h264"):
        videos.decode(samples.clip("avi", "utvideo"), 2)


@pytest.mark.parametrize(("name", "options"), CLIPS, ids=[name for name, _ in CLIPS])
def test_frames_equal_those_of_a_full_decode(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = encode(tmp_path / name, frames=60, **options)
    all_frames = decoded(path)
    assert [number(frame) for frame in all_frames] == list(range(60))
    for count in (1, 2, 7, 60, 90):
        clip = videos.decode(path, count)
        assert clip.indices == np.linspace(0, 59, count, dtype=int).tolist()
        assert np.array_equal(clip.frames, np.stack([all_frames[place] for place in clip.indices]))
        assert (clip.total, clip.fps) == (60, 25.0)
    assert np.array_equal(videos.decode(path.read_bytes(), 7).frames, videos.decode(path, 7).frames)


def test_few_frames_are_decoded_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "long.mp4", frames=400, keyframe_interval=20)
    decoded_frames = []
    due = videos._is_at
    monkeypatch.setattr(
        videos, "_is_at", lambda frame, time: decoded_frames.append(1) or due(frame, time)
    )
    clip = videos.decode(path, 8)
    assert [number(frame) for frame in clip.frames] == clip.indices
    assert len(decoded_frames) < 100  # a full pass decodes 400
    monkeypatch.setattr(videos, "FRAMES_PER_SEEK", 10_000)
    assert np.array_equal(videos.decode(path, 8).frames, clip.frames)


def test_frame_count_of_the_header_is_ignored(tmp_path: Path) -> None:
    path = encode(tmp_path / "lies.avi", frames=30, codec="mpeg4", b_frames=0)
    data = bytearray(path.read_bytes())
    frame_counts = (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32)
    for place in frame_counts:
        assert struct.unpack_from("<I", data, place)[0] == 30
        struct.pack_into("<I", data, place, 3000)
    clip = videos.decode(bytes(data), 4)
    assert (clip.total, clip.indices) == (30, [0, 9, 19, 29])
    assert [number(frame) for frame in clip.frames] == clip.indices


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_of_the_video_is_applied(tmp_path: Path, turns: int) -> None:
    path = encode(tmp_path / "phone.mp4", frames=5)
    upright = videos.decode(path, 2).frames
    data = bytearray(path.read_bytes())
    one = 1 << 16
    # Clockwise quarter turns.
    matrices = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}
    a, b, c, d = matrices[turns]
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    assert np.array_equal(
        videos.decode(bytes(data), 2).frames, np.rot90(upright, -turns, axes=(1, 2))
    )


def test_video_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    small, large = (
        encode(tmp_path / "a.ts", frames=12),
        encode(tmp_path / "b.ts", frames=12, size=(160, 96)),
    )
    with pytest.raises(ValueError, match="changes its size from 80 x 48 to 160 x 96"):
        videos.decode(small.read_bytes() + large.read_bytes(), 8)


def test_data_that_is_not_a_video_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    complete = encode(tmp_path / "complete.mp4").read_bytes()
    moved = encode(tmp_path / "complete.mkv").read_bytes()
    playlist = (
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n"
        f"file://{tmp_path}/complete.mp4\n#EXT-X-ENDLIST\n"
    ).encode()
    for data, text in [
        (b"", "no bytes"),
        (b"<html>Not found</html>", "web page"),
        (b"not a video at all" * 20, "cut or damaged"),
        (complete[:-2000], "cut or damaged"),
        (complete[:100], "cut or damaged|no video stream|no frames"),
        (moved[:200], "cut or damaged|no video stream|no frames"),
        (playlist, "cut or damaged"),
        (f"ffconcat version 1.0\nfile {tmp_path}/complete.mp4\n".encode(), "cut or damaged"),
        ((tmp_path / "sound.mp4").read_bytes(), "no video stream, only audio"),
    ]:
        with pytest.raises(ValueError, match=text):
            videos.decode(data, 4)
    with pytest.raises(ValueError, match="at least 1"):
        videos.decode(complete, 0)
    with pytest.raises(FileNotFoundError):
        videos.decode(tmp_path / "missing.mp4", 4)


def test_videos_over_a_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", frames=20)
    monkeypatch.setattr(videos, "MAX_FRAMES", 19)
    with pytest.raises(ValueError, match="more than 19 frames"):
        videos.decode(path, 4)
    monkeypatch.undo()
    monkeypatch.setattr(videos, "MAX_BYTES", 4 * 80 * 48 * 3 - 1)
    with pytest.raises(ValueError, match="4 frames of 80 x 48 pixels"):
        videos.decode(path, 4)
    monkeypatch.undo()
    monkeypatch.setattr(videos, "MAX_DECODED", 19 * 80 * 48)
    assert videos.decode(path, 2).indices == [0, 19]  # by a jump to a keyframe
    raw = encode(tmp_path / "a.h264", frames=20)
    with pytest.raises(
        ValueError, match=r"over 72,960 pixels would have to be decoded .* more keyframes"
    ):
        videos.decode(raw, 2)
    monkeypatch.undo()
    monkeypatch.setattr(videos, "MAX_PIXELS", 80 * 48 - 1)
    with pytest.raises(ValueError, match="80 x 48 pixels; at most 3,839"):
        videos.decode(path, 4)


def test_damaged_videos_are_decoded_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, codec in (("a.mp4", "h264"), ("a.avi", "mpeg4"), ("a.mkv", "h264")):
        complete = np.frombuffer(
            encode(tmp_path / name, frames=20, codec=codec).read_bytes(), np.uint8
        )
        for _ in range(15):
            data = complete.copy()
            data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
            try:
                clip = videos.decode(data.tobytes(), 4)
            except ValueError:
                continue
            assert clip.frames.shape[0] == 4
