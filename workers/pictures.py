"""Pictures for people: an image with a unit's mask outlined, and how pictures are stored."""

import io
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from workers.batches import decode_image, open_image

OUTLINE = (255, 225, 25)
"""Yellow, RGB: seen on most photographs, in either half of a color-blind reader's palette."""
SMALL = 64
"""Sides up to which pictures are kept without loss: JPEG's blocks would show."""
DIMMED = 0.4
"""Brightness left outside the mask."""


def decode_picture(data: bytes, longest: int) -> UInt8[np.ndarray, "y x rgb"]:
    """Decode an image in its own aspect ratio, its longer side at most `longest` pixels."""
    width, height = open_image(data).size
    scale = min(1.0, longest / max(width, height))
    return decode_image(data, max(1, round(height * scale)), max(1, round(width * scale)))


def dim(image: UInt8[np.ndarray, "y x rgb"]) -> UInt8[np.ndarray, "y x rgb"]:
    """The image as it looks outside a mask."""
    return (image * DIMMED).astype(np.uint8)


def outline(
    image: UInt8[np.ndarray, "y x rgb"], dimmed: UInt8[np.ndarray, "y x rgb"], mask: Bool[np.ndarray, "y x"]
) -> UInt8[np.ndarray, "y x rgb"]:
    """The image inside the mask, dimmed outside, with a line of two pixels along the mask's edge."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outer = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    picture = np.where(mask[..., None], image, dimmed)
    picture[outer & ~inner] = OUTLINE
    return picture


def to_jpeg(picture: UInt8[np.ndarray, "y x rgb"], quality: int = 88) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode(picture: UInt8[np.ndarray, "y x rgb"]) -> dict[str, Any]:
    """A picture as `struct<bytes, path>`: JPEG, or PNG where it is small."""
    picture = np.ascontiguousarray(picture)
    if max(picture.shape[:2]) > SMALL:
        return {"bytes": to_jpeg(picture, quality=92), "path": None}
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
