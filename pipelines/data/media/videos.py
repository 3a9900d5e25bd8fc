"""Videos as some of their frames: known containers alone, since FFmpeg reads other files and addresses for a playlist.

Sizes are looked at before memory is asked for, and no header is believed that counts frames.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from pipelines.data.media.content import Content, Pixels, check, start
from pipelines.data.memory_limit import bounded

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v,ivf"
CODECS = {  # FFmpeg knows hundreds, most of which nobody has looked at for years
    *(
        "h264",
        "hevc",
        "av1",
        "vp8",
        "vp9",
        "mpeg4",
        "mpeg1video",
        "mpeg2video",
        "h263",
        "flv1",
        "theora",
        "mjpeg",
    ),
    *(
        "msmpeg4v2",
        "msmpeg4v3",
        "wmv1",
        "wmv2",
        "wmv3",
        "vc1",
        "prores",
        "dnxhd",
        "ffv1",
        "rawvideo",
        "gif",
        "png",
    ),
}
DECODERS = ",".join(
    sorted(CODECS | {"flv", "libdav1d", "msmpeg4"})
)  # those of them that have other names as well
MAX_FRAMES = 1_000_000  # nine hours at 30 frames a second
MAX_PIXELS = 36_000_000  # of one frame: 8K
MAX_DECODED = (
    1 << 39
)  # pixels of all frames that are decoded to find those: two hours of 1080p without a keyframe
MAX_BYTES = 4 << 30  # of the frames of one clip together
LISTING = (
    1 << 30
)  # bytes that the list of packets may take: a few can say that there are a thousand million
DECODING = MAX_BYTES + (2 << 30)  # and all that follows
BY_DECODING = (
    "mpegts",
    "mpeg",
    "flv",
)  # containers that seek by decoding times, which differ where there are B-frames
SEEK = 8  # frames that could be decoded in the time of one seek


@dataclass(frozen=True)
class Clip:
    """Some frames of a video."""

    frames: Pixels  # (T, H, W, 3)
    indices: list[int]  # which frames of the video they are
    total: int  # how many it has
    fps: float  # of the video


def decode(data: Content, frames: int) -> Clip:
    """`frames` frames, evenly over the video from its first to its last, upright; a short video repeats some.

    The packets are listed first, without decoding: their times say how many frames there are, whatever the header
    says, and their keyframes what each frame costs. Then one pass decodes what is needed: it jumps to the keyframe
    before a frame where that is less to decode, and leaves out frames that neither are wanted nor help to make others.
    Where times are missing or do not hold, frames are counted by decoding them.
    """
    if frames < 1:
        raise ValueError(f"{frames} frames of a video were asked for; at least 1")
    check(data)
    try:
        with bounded(LISTING):
            listed = _listed(data)
        spent = _Spent()
        with bounded(DECODING):
            for short in (True, False) if listed.reliable else ():
                try:
                    return _by_time(data, listed, frames, short, spent)
                except _Unreliable:  # some containers seek badly, and some packets are no frames
                    continue
            return _by_count(data, listed, frames, spent)
    except av.error.FFmpegError as error:
        raise ValueError(f"the video is cut or damaged: {error.strerror}; {start(data)}") from error
    except MemoryError as error:
        raise ValueError(f"the video takes over {DECODING >> 30} GiB to decode") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # a container that says nonsense can fail outside FFmpeg, too
        raise ValueError(f"the video is cut or damaged: {error}; {start(data)}") from error


class _Unreliable(Exception):
    """The times of a video do not tell its frames apart."""


@dataclass(frozen=True)
class _Listed:
    """A video's packets that show something, by time of display."""

    times: list[int]
    keys: list[int]  # places in `times` where decoding can begin
    starts: list[int]  # and the time to seek to for each
    reliable: bool  # every packet has a time, and each its own
    fps: float


def _listed(data: Content) -> _Listed:
    packets: list[tuple[int | None, int | None, bool]] = []
    with _opened(data) as container:
        stream = _stream(container)
        rate = stream.average_rate or stream.guessed_rate
        said = stream.frames if "mp4" in container.format.name else 0  # other headers guess
        base = stream.time_base
        by_decoding = container.format.name in BY_DECODING
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                said -= packet.is_discard
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
    if said > len(packets):
        raise ValueError(f"the video is cut: it lists {said:,} frames and holds {len(packets):,}")
    timed = sorted((pts, dts, key) for pts, dts, key in packets if pts is not None)
    times = [pts for pts, _, _ in timed]
    keys = [place for place, (_, _, key) in enumerate(timed) if key]
    starts = [dts if by_decoding and dts is not None else pts for pts, dts, key in timed if key]
    reliable = len(set(times)) == len(packets) and keys[:1] == [0]
    if not rate and reliable and base and times[-1] > times[0]:
        rate = (len(times) - 1) / ((times[-1] - times[0]) * base)
    return _Listed(times, keys, starts, reliable, float(rate or 0))


def _by_time(data: Content, listed: _Listed, count: int, short: bool, spent: _Spent) -> Clip:
    kept = _Kept(len(listed.times), count)
    with _opened(data) as container:
        stream = _stream(container)
        times = {listed.times[place] for place in kept.wanted} if short else None
        decoded, at = (
            _frames(container, stream, times, spent),
            0,
        )  # the next frame that comes is the one at this place
        for place in kept.wanted:
            key = bisect_right(listed.keys, place) - 1
            if short and listed.keys[key] > at + SEEK:
                container.seek(listed.starts[key], stream=stream)
                decoded = _frames(container, stream, times, spent)
            try:
                kept.add(
                    place, next(frame for frame in decoded if _due(frame, listed.times[place]))
                )
            except (StopIteration, av.error.FFmpegError) as error:
                raise _Unreliable from error
            at = place + 1
    return kept.clip(listed.fps)


def _frames(
    container: Any, stream: Any, times: set[int] | None, spent: _Spent
) -> Iterator[av.VideoFrame]:
    """The frames from here on; of those that are not wanted only the ones that others are made from."""
    for packet in container.demux(stream):
        if times is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
        yield from map(spent.on, packet.decode())


def _due(frame: av.VideoFrame, time: int) -> bool:
    """Whether this is the frame to be shown at a time; there has to be one."""
    if frame.pts is None or frame.pts > time or frame.is_corrupt:
        raise _Unreliable
    return bool(frame.pts == time)


def _by_count(data: Content, listed: _Listed, count: int, spent: _Spent) -> Clip:
    total = sum(1 for _ in _decoded(data, spent))
    if not total:
        raise ValueError("the video has no frames that can be decoded")
    kept = _Kept(total, count)
    wanted = set(kept.wanted)
    for place, frame in enumerate(_decoded(data, spent)):
        if place in wanted:
            kept.add(place, frame)
    return kept.clip(listed.fps)


def _decoded(data: Content, spent: _Spent) -> Iterator[av.VideoFrame]:
    size = None
    with _opened(data) as container:
        for frame in map(spent.on, container.decode(_stream(container))):
            size = size or (frame.width, frame.height)
            _same(size, frame)
            yield frame


class _Spent:
    """What has been decoded so far: a small file can hold days of work."""

    pixels = 0

    def on(self, frame: av.VideoFrame) -> av.VideoFrame:
        self.pixels += frame.width * frame.height
        if self.pixels > MAX_DECODED:
            raise ValueError(
                f"over {MAX_DECODED:,} pixels would have to be decoded to come to the frames that are asked for;"
                " cut the video into parts, or give it more keyframes"
            )
        return frame


class _Kept:
    """The wanted frames as they come."""

    def __init__(self, total: int, count: int) -> None:
        self.total = total
        self.indices: list[int] = np.linspace(0, total - 1, count).astype(int).tolist()
        self.wanted = sorted(set(self.indices))
        self.size: tuple[int, int] | None = None
        self.frames: Pixels | None = None

    def add(self, place: int, frame: av.VideoFrame) -> None:
        self.size = self.size or (frame.width, frame.height)
        _same(self.size, frame)
        if 3 * frame.width * frame.height * len(self.indices) > MAX_BYTES:
            raise ValueError(
                f"{len(self.indices)} frames of {frame.width} x {frame.height} pixels take over {MAX_BYTES >> 30} GiB;"
                " ask for fewer (--frames) or scale the video down"
            )
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        if self.frames is None:
            self.frames = np.empty((len(self.indices), *pixels.shape), np.uint8)
        for slot, index in enumerate(self.indices):
            if index == place:
                self.frames[slot] = pixels

    def clip(self, fps: float) -> Clip:
        assert self.frames is not None
        return Clip(self.frames, self.indices, self.total, fps)


def _same(size: tuple[int, int], frame: av.VideoFrame) -> None:
    if size != (frame.width, frame.height):
        raise ValueError(
            f"the video changes its size from {size[0]} x {size[1]} to {frame.width} x {frame.height}"
        )


def _opened(data: Content) -> Any:
    source = io.BytesIO(data) if isinstance(data, bytes) else str(data.absolute())
    options = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "file",
        "codec_whitelist": DECODERS,
    }
    return av.open(source, options=options, buffer_size=1 << 20)


def _stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
        raise ValueError(f"the file has no video stream, only {kinds}")
    codec = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        name = "one that is not known here" if codec is None else codec.codec.canonical_name
        raise ValueError(f"the video's codec is {name}; allowed are {', '.join(sorted(CODECS))}")
    if codec.width * codec.height > MAX_PIXELS:
        raise ValueError(
            f"the video has frames of {codec.width} x {codec.height} pixels; at most {MAX_PIXELS:,} pixels"
        )
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # whatever the packets say later
    codec.thread_count = 1  # as many clips are decoded at once as there are CPUs
    return stream
