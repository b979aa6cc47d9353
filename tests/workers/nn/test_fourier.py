"""Pictures from coefficients beside an explicit inverse transform; transformations beside closed forms."""

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nn.fourier import COLORS, DULL, Transformations, from_rgb, to_rgb

SIZES = [(4, 4), (5, 4), (4, 5), (3, 7), (1, 6), (6, 1)]
LARGEST = 1 - 2**-53  # that torch.rand draws in float64


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_picture(spectrum, width):
    """rgb = sigmoid(C irfft2(z / max(f, 1/size)) sqrt(y x) / 4), as sums over all frequencies."""
    _, height, half, _ = spectrum.shape
    pixels = np.zeros((3, height, width))
    for color, y, x in np.ndindex(3, height, width):
        for v, u in np.ndindex(height, half):
            frequency = math.hypot(min(v, height - v) / height, u / width)
            coefficient = complex(*spectrum[color, v, u]) / max(frequency, 1 / max(height, width))
            wave = coefficient * cmath.exp(2j * math.pi * (v * y / height + u * x / width))
            twice = 1 if u == 0 or 2 * u == width else 2  # the half that is left out is the conjugate
            pixels[color, y, x] += twice * wave.real / (height * width) * math.sqrt(height * width) / 4
    longest = max(math.sqrt(sum(row[column] ** 2 for row in COLORS)) for column in range(3))
    rgb = np.zeros_like(pixels)
    for channel, color in np.ndindex(3, 3):
        rgb[channel] += COLORS[channel][color] / longest * pixels[color]
    return 1 / (1 + np.exp(-rgb))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_picture_is_the_sum_of_its_waves(height, width):
    spectrum = random(2, 3, height, width // 2 + 1, 2) * 8 - 4
    expected = np.stack([naive_picture(one, width) for one in spectrum.numpy()])
    np.testing.assert_allclose(to_rgb(spectrum, width), expected, rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_coefficients_are_those_of_the_picture(seed, height, width):
    rgb = DULL + (1 - 2 * DULL) * random(2, 3, height, width, seed=seed)
    spectrum = from_rgb(rgb)
    assert spectrum.shape == (2, 3, height, width // 2 + 1, 2)
    torch.testing.assert_close(to_rgb(spectrum, width), rgb, rtol=0, atol=1e-12)
    torch.testing.assert_close(from_rgb(to_rgb(spectrum, width)), spectrum, rtol=0, atol=1e-11)


def test_black_and_white_are_taken_as_nearly_so():
    rgb = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    rgb[1] = 1
    found = to_rgb(from_rgb(rgb), 6)
    torch.testing.assert_close(found, rgb.clamp(DULL, 1 - DULL))


def test_no_coefficients_are_gray():
    assert torch.equal(to_rgb(torch.zeros(1, 3, 4, 3, 2), 5), torch.full((1, 3, 4, 5), 0.5))


@pytest.mark.parametrize("width", [4, 5])
def test_gradient_through_colors_waves_and_transformations(width):
    transformations = Transformations(1, (0.9, 1.1), (-10.0, 10.0))
    draws, fill = random(1, 4, seed=3), torch.full((3, 1, 1), 0.5, dtype=torch.float64)

    def picture(spectrum):
        return transformations(to_rgb(spectrum, width), draws, fill)

    assert torch.autograd.gradcheck(picture, random(1, 3, 3, width // 2 + 1, 2).requires_grad_())


def choose(jitter, shift=(0, 0), scale=0.5, angle=0.5):
    """Draws that give one image this shift."""
    steps = 2 * jitter + 1
    return torch.tensor([[*((jitter + by + 0.5) / steps for by in shift), scale, angle]], dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 8), (7, 3)])
def test_without_shift_scale_and_angle_nothing_changes(height, width):
    images = random(2, 3, height, width)
    seen = Transformations(0)(images, random(2, 4), torch.zeros(3, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(seen, images, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(2, 7), st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
def test_a_shift_moves_pixels_down_and_right_and_fills_what_is_left(height, width, shift):
    images, fill = random(1, 2, height, width), torch.tensor([5.0, -3.0], dtype=torch.float64)[:, None, None]
    expected = fill.expand_as(images).clone()
    for y, x in np.ndindex(height, width):
        to_y, to_x = y + shift[0], x + shift[1]
        if 0 <= to_y < height and 0 <= to_x < width:
            expected[:, :, to_y, to_x] = images[:, :, y, x]
    seen = Transformations(3)(images, choose(3, shift), fill)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-13)


def blob(height, width, mean, covariance):
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    offset = torch.stack([y - (height - 1) / 2 - mean[0], x - (width - 1) / 2 - mean[1]], -1)
    exponent = torch.einsum("yxi,ij,yxj->yx", offset, torch.linalg.inv(covariance), offset)
    return (-exponent / 2).exp()[None, None]


def moments(image):
    """Where an image's mass lies from its center, down and right, and how it spreads."""
    height, width = image.shape[2:]
    mass = image[0, 0] / image.sum()
    y = torch.arange(height).double()[:, None].expand(height, width) - (height - 1) / 2
    x = torch.arange(width).double()[None].expand(height, width) - (width - 1) / 2
    place = torch.stack([y, x], -1)
    mean = torch.einsum("yx,yxi->i", mass, place)
    return mean, torch.einsum("yx,yxi,yxj->ij", mass, place - mean, place - mean)


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 10.0), (1.1, 0.0), (0.9, -10.0), (1.1, 8.0)])
def test_a_blob_is_shifted_then_scaled_then_rotated_about_the_center(scale, degrees):
    covariance = torch.tensor([[9.0, 4.0], [4.0, 25.0]], dtype=torch.float64)
    image = blob(81, 101, (6.0, 12.0), covariance)
    transformations = Transformations(5, (scale,), (degrees,))
    mean, spread = moments(transformations(image, choose(5, (3, -5)), torch.zeros(1, 1, 1, dtype=torch.float64)))
    angle = math.radians(degrees)  # turns what lies to the right up, which is less far down
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    place = turn @ torch.tensor([6.0 + 3, 12.0 - 5], dtype=torch.float64) * scale
    torch.testing.assert_close(mean, place, rtol=0, atol=0.01)
    expected = turn @ covariance @ turn.T * scale**2
    torch.testing.assert_close(spread, expected, rtol=0, atol=0.3)  # interpolation blurs by 1/6 at the most


def test_positive_degrees_turn_counterclockwise_and_scales_above_1_enlarge():
    right = blob(61, 61, (0.0, 15.0), 4 * torch.eye(2, dtype=torch.float64))
    nothing = torch.zeros(1, 1, 1, dtype=torch.float64)
    (down, _), _ = moments(Transformations(0, degrees=(10.0,))(right, choose(0), nothing))
    assert down == pytest.approx(-15 * math.sin(math.radians(10)), abs=0.01)
    (_, farther), _ = moments(Transformations(0, scales=(1.2,))(right, choose(0), nothing))
    assert farther == pytest.approx(18, abs=0.01)


def test_each_image_gets_its_own():
    transformations = Transformations(2, (0.9, 1.0, 1.1), (-5.0, 0.0, 5.0))
    images, draws = random(4, 3, 8, 9), random(4, 4, seed=1)
    fill = torch.zeros(3, 1, 1, dtype=torch.float64)
    together = transformations(images, draws, fill)
    for place in range(4):
        one = slice(place, place + 1)
        assert torch.equal(transformations(images[one], draws[one], fill), together[one])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_largest_draw_takes_the_last_of_each(kind):
    """In float32 it would round to 1, which is beyond the last."""
    images = random(1, 1, 9, 9).to(kind)
    fill, largest = torch.zeros(1, 1, 1, dtype=kind), torch.full((1, 4), LARGEST, dtype=torch.float64)
    seen = Transformations(2, (1.0, 1.1), (0.0, 5.0))(images, largest, fill)
    torch.testing.assert_close(seen, Transformations(2, (1.1,), (5.0,))(images, choose(2, (2, 2)), fill))


@settings(deadline=None)
@given(st.floats(0, LARGEST), st.floats(0, LARGEST))
def test_shifts_are_at_most_the_jitter(down, right):
    images = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    images[..., 2, 2] = 1
    draws = torch.tensor([[down, right, 0, 0]], dtype=torch.float64)
    seen = Transformations(2)(images, draws, torch.zeros(1, 1, 1, dtype=torch.float64))[0, 0]
    assert divmod(int(seen.argmax()), 5) == (math.floor(down * 5), math.floor(right * 5))
    assert seen.max() > 1 - 1e-12
