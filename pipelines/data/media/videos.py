"""Frames of videos. Only known containers are opened: FFmpeg takes other files for playlists.

Sizes are checked before memory is used, and headers that count frames are not trusted.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from pipelines.data.media.content import Content, Pixels, check_is_media, first_bytes
from pipelines.data.memory_limit import bounded

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v,"
    "ivf"
)
# FFmpeg has hundreds, most of which nobody has maintained for years.
_CODECS = (
    "h264 hevc av1 vp8 vp9 mpeg4 mpeg1video mpeg2video h263 flv1 theora mjpeg msmpeg4v2 msmpeg4v3"
    " wmv1 wmv2 wmv3 vc1 prores dnxhd ffv1 rawvideo gif png"
)
CODECS = set(_CODECS.split())
DECODERS = ",".join(sorted(CODECS | {"flv", "libdav1d", "msmpeg4"}))  # with their other names
MAX_FRAMES = 1_000_000  # nine hours at 30 frames a second
MAX_PIXELS = 36_000_000  # of one frame: 8K
MAX_DECODED = 1 << 39  # pixels decoded to find the frames: two hours of 1080p without a keyframe
MAX_BYTES = 4 << 30  # of all frames of one clip
MAX_LISTING_MEMORY = 1 << 30  # bytes; a few bytes of a file can claim a billion packets
MAX_DECODING_MEMORY = MAX_BYTES + (2 << 30)  # bytes
# Containers that seek by decoding times, which differ from display times if there are B-frames.
SEEK_BY_DECODING_TIME = ("mpegts", "mpeg", "flv")
FRAMES_PER_SEEK = 8  # frames that could be decoded in the time of one seek


@dataclass(frozen=True)
class Clip:
    """Some frames of a video."""

    frames: Pixels  # (T, H, W, 3)
    indices: list[int]  # of these frames in the video
    total: int  # frames of the video
    fps: float  # of the video


def decode(data: Content, frames: int) -> Clip:
    """Decode `frames` frames, spread evenly from the first to the last; short videos repeat some.

    The packets are listed first, without decoding. Their times tell how many frames there are,
    whatever the header says, and their keyframes what each frame costs. One pass then decodes what
    is needed: it seeks to the keyframe before a frame if that means less decoding, and skips frames
    that are neither selected nor needed for others. If times are missing or wrong, frames are
    counted by decoding all of them.
    """
    if frames < 1:
        raise ValueError(f"not a valid number of frames: {frames}; expected at least 1")
    check_is_media(data)
    try:
        with bounded(MAX_LISTING_MEMORY):
            packets = _list_packets(data)
        limits, total = _DecodeLimits(), len(packets.times)
        indices = _spread(total, frames)
        with bounded(MAX_DECODING_MEMORY):
            for skip in (True, False) if packets.reliable else ():
                try:
                    selected = _frames_by_time(data, packets, indices, skip, limits)
                    return Clip(_stack(selected, indices), indices, total, packets.fps)
                except _UnreliableTimes:  # some containers seek badly, some packets are no frames
                    continue
            return _decode_by_count(data, packets.fps, frames, limits)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"the video is cut or damaged: {error.strerror}; {first_bytes(data)}"
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"the video takes over {MAX_DECODING_MEMORY >> 30} GiB to decode"
        ) from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # damaged containers can also fail outside FFmpeg
        raise ValueError(f"the video is cut or damaged: {error}; {first_bytes(data)}") from error


class _UnreliableTimes(Exception):
    """The times of a video do not identify its frames."""


@dataclass(frozen=True)
class _Packets:
    """The packets of a video that are displayed, by display time."""

    times: list[int]
    keyframes: list[int]  # indices in `times`: where decoding can start
    seek_times: list[int]  # the time to seek to for each keyframe
    reliable: bool  # every packet has a time of its own
    fps: float


def _list_packets(data: Content) -> _Packets:
    packets: list[tuple[int | None, int | None, bool]] = []
    with _open(data) as container:
        stream = _video_stream(container)
        rate = stream.average_rate or stream.guessed_rate
        # The headers of other containers only estimate the number of frames.
        claimed = stream.frames if "mp4" in container.format.name else 0
        time_base = stream.time_base
        by_decoding_time = container.format.name in SEEK_BY_DECODING_TIME
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                claimed -= packet.is_discard
                continue
            if packet.is_corrupt:
                raise ValueError(f"the video is cut or damaged at packet {len(packets) + 1}")
            packets.append((packet.pts, packet.dts, packet.is_keyframe))
            if len(packets) > MAX_FRAMES:
                raise ValueError(
                    f"the video has more than {MAX_FRAMES:,} frames; cut it into parts"
                )
    if not packets:
        raise ValueError("the video has no frames")
    if claimed > len(packets):
        raise ValueError(f"the video is cut: it has {len(packets):,} of {claimed:,} frames")
    timed = sorted((pts, dts, key) for pts, dts, key in packets if pts is not None)
    times = [pts for pts, _, _ in timed]
    keyframes = [index for index, (_, _, key) in enumerate(timed) if key]
    seek_times = [
        dts if by_decoding_time and dts is not None else pts for pts, dts, key in timed if key
    ]
    reliable = len(set(times)) == len(packets) and keyframes[:1] == [0]
    if not rate and reliable and time_base and times[-1] > times[0]:
        rate = (len(times) - 1) / ((times[-1] - times[0]) * time_base)
    return _Packets(times, keyframes, seek_times, reliable, float(rate or 0))


def _frames_by_time(
    data: Content, packets: _Packets, indices: list[int], skip: bool, limits: _DecodeLimits
) -> Iterator[av.VideoFrame]:
    """The frames with these indices. With `skip`, frames between them are left out if possible."""
    times = {packets.times[index] for index in indices} if skip else None
    with _open(data) as container:
        stream = _video_stream(container)
        frames = _decode_frames(container, stream, limits, times)
        position = 0  # index of the next frame
        for index in dict.fromkeys(indices):
            key = bisect_right(packets.keyframes, index) - 1
            if skip and packets.keyframes[key] > position + FRAMES_PER_SEEK:
                container.seek(packets.seek_times[key], stream=stream)
                frames = _decode_frames(container, stream, limits, times)
            try:
                yield next(frame for frame in frames if _is_at(frame, packets.times[index]))
            except (StopIteration, av.error.FFmpegError) as error:
                raise _UnreliableTimes from error
            position = index + 1


def _is_at(frame: av.VideoFrame, time: int) -> bool:
    """Whether a frame is displayed at a time. Raises if that time has passed without a frame."""
    if frame.pts is None or frame.pts > time or frame.is_corrupt:
        raise _UnreliableTimes
    return bool(frame.pts == time)


def _decode_by_count(data: Content, fps: float, count: int, limits: _DecodeLimits) -> Clip:
    with _open(data) as container:
        total = sum(1 for _ in _decode_frames(container, _video_stream(container), limits))
    if not total:
        raise ValueError("the video has no frames that can be decoded")
    indices = _spread(total, count)
    with _open(data) as container:
        frames = enumerate(_decode_frames(container, _video_stream(container), limits))
        selected = (frame for index, frame in frames if index in indices)
        return Clip(_stack(selected, indices), indices, total, fps)


def _decode_frames(
    container: Any, stream: Any, limits: _DecodeLimits, times: set[int] | None = None
) -> Iterator[av.VideoFrame]:
    """The frames from here on; with `times`, other frames only if later ones refer to them."""
    for packet in container.demux(stream):
        if times is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
        yield from map(limits.check, packet.decode())


class _DecodeLimits:
    """Counts decoded pixels: a small file can contain days of work. All frames have one size."""

    pixels = 0
    size: tuple[int, int] | None = None

    def check(self, frame: av.VideoFrame) -> av.VideoFrame:
        self.pixels += frame.width * frame.height
        if self.pixels > MAX_DECODED:
            raise ValueError(
                f"over {MAX_DECODED:,} pixels would have to be decoded to reach the frames;"
                " cut the video into parts, or give it more keyframes"
            )
        self.size = self.size or (frame.width, frame.height)
        if self.size != (frame.width, frame.height):
            raise ValueError(
                f"the video changes its size from {self.size[0]} x {self.size[1]} to"
                f" {frame.width} x {frame.height}"
            )
        return frame


def _spread(total: int, count: int) -> list[int]:
    """`count` indices of `total` frames, evenly from the first to the last."""
    indices: list[int] = np.linspace(0, total - 1, count).astype(int).tolist()
    return indices


def _stack(frames: Iterable[av.VideoFrame], indices: list[int]) -> Pixels:
    """One frame for each index, from the frames with these indices, each of which comes once."""
    clip: Pixels | None = None
    for index, frame in zip(dict.fromkeys(indices), frames, strict=True):
        if 3 * frame.width * frame.height * len(indices) > MAX_BYTES:
            raise ValueError(
                f"{len(indices)} frames of {frame.width} x {frame.height} pixels take over"
                f" {MAX_BYTES >> 30} GiB; use fewer (--frames) or scale the video down"
            )
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        if clip is None:
            clip = np.empty((len(indices), *pixels.shape), np.uint8)
        clip[np.equal(indices, index)] = pixels
    assert clip is not None
    return clip


def _open(data: Content) -> Any:
    source = io.BytesIO(data) if isinstance(data, bytes) else str(data.absolute())
    options = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "file",
        "codec_whitelist": DECODERS,
    }
    return av.open(source, options=options, buffer_size=1 << 20)


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        types = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ValueError(f"the file has no video stream, only {types}")
    codec = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        name = "unknown" if codec is None else codec.codec.canonical_name
        raise ValueError(f"the video's codec is {name}; allowed are {', '.join(sorted(CODECS))}")
    if codec.width * codec.height > MAX_PIXELS:
        raise ValueError(
            f"the video has frames of {codec.width} x {codec.height} pixels; at most"
            f" {MAX_PIXELS:,} pixels"
        )
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # also if later packets claim more
    codec.thread_count = 1  # clips are decoded in parallel on all CPUs
    return stream
