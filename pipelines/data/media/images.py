"""Images to pixels. Only known formats are decoded, and sizes are checked before memory is used."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.data.media.content import Content, Pixels, check_is_media, first_bytes
from pipelines.data.memory_limit import bounded

MAX_PIXELS = 100_000_000
MAX_MEMORY = 4 << 30  # bytes for decoding: so many pixels in all the forms they go through
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def decode(data: Content, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image to (H, W, 3), upright.

    Transparency becomes white, 16 bits become 8, and an animation becomes its first frame.
    """
    check_is_media(data)
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with bounded(MAX_MEMORY), warnings.catch_warnings():
            # Pillow warns about metadata, and about sizes, which are checked here.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(
                        f"it has {width} x {height} pixels; at most {max_pixels:,} are decoded"
                    )
                image.load()
                return _pixels(image)
    except UnidentifiedImageError:
        raise ValueError(
            f"it is not an image of a known format ({', '.join(FORMATS)}); {first_bytes(data)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has too many pixels: {error}") from error
    except MemoryError as error:
        raise ValueError(f"it takes over {MAX_MEMORY >> 30} GiB to decode") from error
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly anything on made-up bytes
        raise ValueError(f"the image is cut or damaged: {error}") from error


def _pixels(image: Image.Image) -> Pixels:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged metadata does not make the pixels wrong
        pass
    if image.mode.startswith("I;16"):
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):  # the file does not say whether the scale is 1, 255 or 65535
        values = np.array(image, dtype=np.float32)
        top = np.nanmax(values, initial=0.0)
        values *= 255.0 if image.mode == "F" and top <= 1 else 1.0 if top <= 255 else 1 / 256
        gray = np.nan_to_num(values, copy=False).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
