"""What a shard's columns hold, and how they are read: encoded images, and masks of one bit a pixel.

Images are opened as JPEG or PNG and nothing else, and never above `MAX_PIXELS`: the size is read from
the header, before a pixel is decoded.
"""

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded: Pillow's own limit, kept here so that nothing raises it."""

Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

# The filters of `warnings` are the process's, so `catch_warnings` is no use in threads.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class ImageError(ValueError):
    """Bytes that are no usable image: the message says why."""


def open_image(data: bytes, formats: tuple[str, ...] = ("JPEG", "PNG")) -> Image.Image:
    """Open an encoded image: its header is read, its pixels are not.

    Raises:
        ImageError: the bytes are in no allowed format, or the image is larger than `MAX_PIXELS`.
    """
    kinds = " or ".join(formats)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is no {kinds} ({len(data)} bytes that begin with {data[:8]!r})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"has more than {MAX_PIXELS} pixels, scale it down") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"has a broken {kinds} header: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"is {image.width} x {image.height}, more than {MAX_PIXELS} pixels, scale it down")
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Decode all pixels of an opened image.

    Raises:
        ImageError: the image is cut short or broken.
    """
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise ImageError(f"cannot be decoded, it is cut short or broken: {error}") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB; transparency is dropped, not blended.

    Pillow's own conversion of 16-bit grayscale clips at 255; here its high byte is kept, as Pillow does for
    16-bit RGB.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_image(
    data: bytes, height: int, width: int, interpolation: Interpolation = "bilinear"
) -> UInt8[np.ndarray, "y x rgb"]:
    """Decode an image to RGB, the whole of it squashed to `height` x `width` where its size differs.

    The EXIF orientation is not applied: labels align with the pixels as stored.

    Args:
        data: the encoded JPEG or PNG.
        height: rows wanted.
        width: columns wanted.
        interpolation: filter of the resize, antialiased when it shrinks.

    Raises:
        ImageError: the image cannot be decoded.
    """
    image = to_rgb(load_image(open_image(data)))
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[interpolation])
    return np.array(image)


def pack_concepts(masks: Bool[np.ndarray, "concept y x"]) -> bytes:
    """Pack masks to one bit a pixel, row-major, each mask padded to whole bytes."""
    return np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1).tobytes()


def unpack_concepts(data: bytes, num_concepts: int, height: int, width: int) -> Bool[np.ndarray, "concept y x"]:
    """Unpack the masks of one image: `concept_masks` of a shard's row.

    Args:
        data: what `pack_concepts` made.
        num_concepts: length of the row's `concept_ids`.
        height: `label_height`.
        width: `label_width`.

    Raises:
        ValueError: the data has another length than these masks take.
    """
    mask_bytes = -(-height * width // 8)
    if len(data) != num_concepts * mask_bytes:
        raise ValueError(
            f"concept_masks has {len(data)} bytes, must have {num_concepts * mask_bytes}: "
            f"{num_concepts} masks of {height} x {width} bits; the shard is broken, ingest the data set again"
        )
    packed = np.frombuffer(data, np.uint8).reshape(num_concepts, mask_bytes)
    bits = np.unpackbits(packed, axis=1, count=height * width)
    return bits.view(np.bool_).reshape(num_concepts, height, width)
