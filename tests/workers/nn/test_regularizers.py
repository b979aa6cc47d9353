"""Penalties and operators on pictures beside slow float64 loops, and their gradients beside differences."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workers.nn.regularizers import (
    clip_small_contributions,
    clip_small_norms,
    decay,
    gaussian_blur,
    roll,
    total_variation,
)

DIFFERENCE = 1e-5


@st.composite
def batches(draw, largest=6, smallest=1, number=1):
    """Whole numbers, so that ties are ties and no rounding hides them."""
    shape = draw(arrays.array_shapes(min_dims=4, max_dims=4, min_side=smallest, max_side=largest))
    values = arrays.arrays(np.int64, (min(shape[0], 2), min(shape[1], 3), *shape[2:]), elements=st.integers(-9, 9))
    made = [torch.from_numpy(draw(values)).double() for _ in range(number)]
    return made[0] if number == 1 else made


def numeric_gradient(function, at):
    """Central differences of a function that has a value an image."""
    gradient = torch.zeros_like(at)
    for place in np.ndindex(*at.shape):
        above, below = at.clone(), at.clone()
        above[place] += DIFFERENCE
        below[place] -= DIFFERENCE
        gradient[place] = (function(above) - function(below))[place[0]] / (2 * DIFFERENCE)
    return gradient


def mirrored(place, size):
    while not 0 <= place < size:
        place = -1 - place if place < 0 else 2 * size - 1 - place
    return place


def naive_blur(image, sigma):
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    height, width = image.shape
    blurred = np.zeros(image.shape)
    for y, x in np.ndindex(height, width):
        for down, weight_y in enumerate(weights, -reach):
            for right, weight_x in enumerate(weights, -reach):
                pixel = image[mirrored(y + down, height), mirrored(x + right, width)]
                blurred[y, x] += weight_y * weight_x * pixel
    return blurred / sum(weights) ** 2


@settings(deadline=None, max_examples=40)
@given(batches(), st.floats(0.1, 2.5))
def test_blur_is_the_convolution_with_mirrored_borders(images, sigma):
    blurred = gaussian_blur(images, sigma)
    for image, channel in np.ndindex(*images.shape[:2]):
        expected = naive_blur(images[image, channel].numpy(), sigma)
        np.testing.assert_allclose(blurred[image, channel], expected, rtol=0, atol=1e-12)


def test_blur_of_a_point_is_cut_off_after_four_deviations():
    image = torch.zeros(1, 1, 1, 21, dtype=torch.float64)
    image[..., 10] = 1
    seen = gaussian_blur(image, 1.0)[0, 0, 0]
    assert seen.nonzero().flatten().tolist() == list(range(6, 15))  # int(4.5) = 4 to either side
    assert seen[10] / seen[11] == pytest.approx(math.exp(0.5))
    reach = [int((gaussian_blur(image, sigma) != 0).sum()) // 2 for sigma in (0.1, 0.12, 0.125, 0.4, 0.9)]
    assert reach == [0, 0, 1, 2, 4]


@settings(deadline=None)
@given(batches(), st.floats(0.1, 5))
def test_blur_keeps_the_sum_of_an_image_and_what_is_constant(images, sigma):
    blurred = gaussian_blur(images, sigma)
    torch.testing.assert_close(blurred.sum((2, 3)), images.sum((2, 3)), rtol=0, atol=1e-10)
    flat = torch.full_like(images, 3.0)
    torch.testing.assert_close(gaussian_blur(flat, sigma), flat)


def test_blur_in_float32_keeps_its_type():
    images = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    assert gaussian_blur(images, 1.0).dtype == torch.float32
    torch.testing.assert_close(gaussian_blur(images, 1.0), gaussian_blur(images.double(), 1.0).float())


@settings(deadline=None, max_examples=20)
@given(batches(3), st.floats(0, 0.5))
def test_decay_is_a_step_against_the_gradient_of_half_the_square(images, rate):
    expected = images - numeric_gradient(lambda at: rate / 2 * at.square().sum((1, 2, 3)), images)
    torch.testing.assert_close(decay(images, rate), expected, rtol=0, atol=1e-8)


def is_below(value, values, percent):
    """Strictly below the percentile by linear interpolation, in exact fractions."""
    ordered = sorted(values)
    place = Fraction(percent) / 100 * (len(ordered) - 1)
    lower, upper = ordered[math.floor(place)], ordered[math.ceil(place)]
    return value < lower + (upper - lower) * (place - math.floor(place))


def naive_clip(images, amount, percent):
    """`amount` holds whole numbers, one a pixel; as they are ordered, so are their roots."""
    clipped = images.clone()
    for image, y, x in np.ndindex(*amount.shape):
        if is_below(int(amount[image, y, x]), [int(one) for one in amount[image].flatten()], percent):
            clipped[image, :, y, x] = 0
    return clipped


PERCENT = st.one_of(st.integers(0, 99).map(float), st.sampled_from([12.5, 37.5, 99.75]))


@settings(deadline=None)
@given(batches(), PERCENT)
def test_small_norms_are_those_below_the_percentile(images, percent):
    squares = images.square().sum(1)
    assert torch.equal(clip_small_norms(images, percent), naive_clip(images, squares, percent))


@settings(deadline=None)
@given(batches(8, 2), PERCENT)
def test_small_norms_are_those_below_numpys_percentile(images, percent):
    pixels = images[0, 0].numel()
    place = percent / 100 * (pixels - 1)
    assume(place == 0 or abs(place - round(place)) > 1e-9)  # else NumPy's rounding decides which side a norm is on
    norms = np.linalg.norm(images.numpy(), axis=1)
    limit = np.percentile(norms, percent, axis=(1, 2), keepdims=True)
    expected = np.where((norms < limit)[:, None], 0, images.numpy())
    np.testing.assert_array_equal(clip_small_norms(images, percent), expected)


@settings(deadline=None)
@given(batches(number=2), PERCENT)
def test_small_contributions_are_those_below_the_percentile(pair, percent):
    images, gradient = pair
    contributions = (gradient * images).sum(1).abs()
    expected = naive_clip(images, contributions, percent)
    assert torch.equal(clip_small_contributions(images, gradient, percent), expected)


def test_a_percentile_that_falls_on_a_value_keeps_it():
    """7 percent of 100 steps between 101 pixels; in floating point 7 / 100 * 100 is a little more."""
    images = torch.arange(1.0, 102, dtype=torch.float64).view(1, 1, 1, 101)
    kept = clip_small_norms(images, 7.0)
    assert kept.nonzero()[:, 3].tolist() == list(range(7, 101))


def test_of_alike_pixels_none_is_small():
    images = torch.full((1, 3, 4, 4), -2.0)
    assert torch.equal(clip_small_norms(images, 99.0), images)
    assert torch.equal(clip_small_contributions(images, images, 99.0), images)


def test_norms_and_contributions_are_of_whole_pixels():
    """One pixel is large in one channel only: all its channels stay."""
    images = torch.ones(1, 3, 2, 2)
    images[0, 1, 0, 1] = 5
    gradient = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    expected = torch.zeros_like(images)
    expected[..., 0, 1] = images[..., 0, 1]
    assert torch.equal(clip_small_norms(images, 90.0), expected)
    assert torch.equal(clip_small_contributions(images, gradient, 90.0), expected)


def naive_total_variation(image, beta):
    channels, height, width = image.shape
    total = 0.0
    for c, y, x in np.ndindex(channels, height - 1, width - 1):
        down, right = image[c, y + 1, x] - image[c, y, x], image[c, y, x + 1] - image[c, y, x]
        total += (down**2 + right**2) ** (beta / 2)
    return total


@settings(deadline=None)
@given(batches(5, 2), st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_total_variation_is_the_sum_over_pixels(images, beta):
    expected = [naive_total_variation(image, beta) for image in images.numpy()]
    np.testing.assert_allclose(total_variation(images, beta), expected, rtol=1e-12, atol=1e-100)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(2, 4), st.sampled_from([1.0, 2.0]))
def test_total_variations_gradient_is_that_of_differences(seed, height, width, beta):
    images = torch.randn(2, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(total_variation(images.requires_grad_(), beta).sum(), images)
    expected = numeric_gradient(lambda at: total_variation(at, beta), images.detach())
    steepness = 1 / min_difference(images.detach()) if beta == 1 else 1
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8 * max(1, steepness**2))


def min_difference(images):
    down, right = images.diff(dim=2)[..., :-1], images.diff(dim=3)[..., :-1, :]
    return float((down.square() + right.square()).sqrt().min())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_total_variations_gradient_is_0_where_all_is_flat(beta, kind):
    images = torch.full((1, 3, 4, 5), 0.3, dtype=kind, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(images, beta).sum(), images)
    assert torch.equal(gradient, torch.zeros_like(images))


@settings(deadline=None)
@given(batches(), st.data())
def test_roll_moves_every_pixel_down_and_right(images, data):
    offset = data.draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=2))
    offset = torch.tensor(offset[: len(images)])
    rolled, (height, width) = roll(images, offset), images.shape[2:]
    for image, y, x in np.ndindex(len(images), height, width):
        down, right = offset[image].tolist()
        assert torch.equal(rolled[image, :, (y + down) % height, (x + right) % width], images[image, :, y, x])
