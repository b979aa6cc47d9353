"""Pictures: what is inside the mask stays, what is outside is dimmed, the edge is drawn."""

import io

import numpy as np
from PIL import Image

from workers.pictures import DIMMED, OUTLINE, decode_picture, dim, outline, to_jpeg


def test_outline():
    image = np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:7, 2:7] = True
    picture = outline(image, dim(image), mask)
    assert (picture[4, 4] == 200).all()
    assert (picture[0, 0] == int(200 * DIMMED)).all()
    for y, x in ((2, 4), (1, 4), (6, 4), (4, 2), (4, 7)):
        assert tuple(picture[y, x]) == OUTLINE


def test_a_mask_of_everything_or_nothing_has_no_edge():
    image = np.full((4, 5, 3), 90, np.uint8)
    assert (outline(image, dim(image), np.ones((4, 5), bool)) == image).all()
    assert (outline(image, dim(image), np.zeros((4, 5), bool)) == dim(image)).all()


def test_decode_keeps_the_aspect_and_never_enlarges():
    def encoded(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        return buffer.getvalue()

    assert decode_picture(encoded(400, 100), 200).shape == (50, 200, 3)
    assert decode_picture(encoded(40, 30), 200).shape == (30, 40, 3)
    assert decode_picture(encoded(1000, 1), 100).shape == (1, 100, 3)


def test_jpeg():
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    data = to_jpeg(picture)
    assert data == to_jpeg(picture)
    assert Image.open(io.BytesIO(data)).size == (20, 16)
