import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.tiny_broden import encode_image, png_file
from workers.batches import (
    MAX_PIXELS,
    ImageError,
    decode_image,
    load_image,
    open_image,
    pack_concepts,
    unpack_concepts,
)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9))))
def test_unpack_undoes_pack(masks):
    assert np.array_equal(unpack_concepts(pack_concepts(masks), *masks.shape), masks)


def test_a_mask_is_one_bit_a_pixel_row_by_row_padded_to_whole_bytes():
    masks = np.zeros((2, 3, 3), np.bool_)
    masks[0, 0, 1] = masks[0, 2, 2] = masks[1, 1, 0] = True
    assert pack_concepts(masks) == bytes([0b01000000, 0b10000000, 0b00010000, 0b00000000])


@pytest.mark.parametrize("length", [0, 3, 5])
def test_masks_of_the_wrong_length_are_refused(length):
    with pytest.raises(ValueError, match=rf"has {length} bytes, must have 4: 2 masks of 3 x 3"):
        unpack_concepts(bytes(length), 2, 3, 3)


def test_an_image_of_the_right_size_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(pixels, "PNG"), 7, 5), pixels)


@pytest.mark.parametrize(("name", "filter"), [("bilinear", 2), ("bicubic", 3)])
def test_an_image_of_another_size_is_squashed_whole(name, filter):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 5), filter))
    assert np.array_equal(decode_image(encode_image(pixels, "PNG"), 5, 4, name), expected)


def test_every_mode_becomes_8_bit_rgb():
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    alpha = np.full((2, 2, 1), 7, np.uint8)
    palette = Image.fromarray(gray).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=b"\x00\x80\xff")
    stored = {
        "L": encode_image(gray, "PNG"),
        "LA": encode_image(np.dstack([gray, alpha[..., 0]]), "PNG"),
        "RGBA": encode_image(np.concatenate([rgb, alpha], axis=2), "PNG"),
        "I;16": encode_image(gray.astype(np.uint16) * 257, "PNG"),
        "P": buffer.getvalue(),
    }
    for mode, data in stored.items():
        assert open_image(data).mode == mode
        assert np.array_equal(decode_image(data, 2, 2), rgb), mode


def test_one_bit_and_cmyk_images_become_rgb():
    bits = encode_image(np.array([[True, False]]), "PNG")
    assert decode_image(bits, 1, 2).tolist() == [[[255] * 3, [0] * 3]]
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG")
    red = decode_image(buffer.getvalue(), 8, 8)
    assert red[..., 0].min() > 240
    assert red[..., 1:].max() < 15


def test_the_exif_orientation_is_not_applied():
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    decoded = decode_image(buffer.getvalue(), 4, 8)
    assert decoded[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (9_500, 9_500)])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(width, height):
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS} pixels"):
        open_image(png_file(width, height))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_holds_even_where_pillows_warning_is_ignored():
    with pytest.raises(ImageError, match=f"is 9500 x 9500, more than {MAX_PIXELS} pixels"):
        open_image(png_file(9_500, 9_500))


def test_only_jpeg_and_png_are_opened():
    with pytest.raises(ImageError, match="is no JPEG or PNG"):
        open_image(encode_image(np.zeros((4, 4, 3), np.uint8), "GIF"))
    with pytest.raises(ImageError, match="is no PNG"):
        open_image(encode_image(np.zeros((4, 4, 3), np.uint8)), formats=("PNG",))
    with pytest.raises(ImageError, match="is no JPEG or PNG"):
        open_image(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_short_is_an_error(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode_image(pixels, kind)
    with pytest.raises(ImageError, match="cut short or broken"):
        load_image(open_image(data[: len(data) // 2]))
