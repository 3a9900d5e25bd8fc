"""Images as pixels: known formats alone, whatever a file is called, and their size before memory is asked for."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.data.media.content import Content, Pixels, check, start
from pipelines.data.memory_limit import bounded

MOST = (
    4 << 30
)  # bytes that decoding may take: 100 million pixels in all the forms that they go through
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
UPRIGHT = {  # EXIF orientation: how to turn the pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: Content, max_pixels: int = 100_000_000) -> Pixels:
    """An image as (H, W, 3): upright, transparency over white, 16 bits as 8; of an animation the first picture."""
    check(data)
    try:
        with bounded(MOST), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", module=r"PIL\."
            )  # on metadata, and on sizes, which are checked here
            with Image.open(
                io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS
            ) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ValueError(
                        f"it has {width} x {height} pixels; at most {max_pixels:,} are decoded"
                    )
                picture.load()
                return _pixels(picture)
    except UnidentifiedImageError:
        raise ValueError(
            f"it is no image of a known format ({', '.join(FORMATS)}); {start(data)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has too many pixels: {error}") from error
    except MemoryError as error:
        raise ValueError(f"it takes over {MOST >> 30} GiB to decode") from error
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly anything on bytes that were made up
        raise ValueError(f"the image is cut or damaged: {error}") from error


def _pixels(picture: Image.Image) -> Pixels:
    try:
        turn = UPRIGHT.get(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata says nothing about the pixels
        turn = None
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I;16"):
        return np.repeat((np.array(picture) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):  # no scale is written down: 0 to 1, 0 to 255 or 0 to 65535
        values = np.array(picture, dtype=np.float32)
        top = np.nanmax(values, initial=0.0)
        values *= 255.0 if picture.mode == "F" and top <= 1 else 1.0 if top <= 255 else 1 / 256
        grey = np.nan_to_num(values, copy=False).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))
