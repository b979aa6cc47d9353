"""Colors as the network takes them, beside the preprocessing itself, and back to pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workers.models import Preprocessing
from workers.networks import caffenet, mininet
from workers.nn.input_space import FITS, InputSpace

PREPROCESSINGS = {
    "imagenet": Preprocessing(4, 5, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mininet": Preprocessing(4, 5, mininet.MEAN, mininet.STD),
    "caffe": Preprocessing(4, 5, caffenet.MEAN, (1.0, 1.0, 1.0), channel_order="bgr", scale=1.0),
    "black is the mean": Preprocessing(4, 5, (0.0, 0.0, 0.0), (1.0, 0.5, 2.0)),
}
PIXELS = arrays.arrays(np.uint8, st.tuples(st.just(2), st.just(3), st.integers(1, 5), st.integers(1, 5)))

every_network = pytest.mark.parametrize("name", PREPROCESSINGS)


def space_of(name):
    size = PREPROCESSINGS[name]
    return InputSpace(size.mean, size.std, size.scale, size.channel_order == "bgr")


@every_network
@settings(deadline=None, max_examples=40)
@given(PIXELS)
def test_colors_are_taken_as_the_preprocessing_takes_pixels(name, pixels):
    images = torch.from_numpy(pixels)
    expected = PREPROCESSINGS[name].normalize(images)
    space = space_of(name)
    atol = 1e-6 * 255 * space.pixel
    torch.testing.assert_close(space.from_rgb(images.float() / 255), expected, rtol=1e-6, atol=atol)
    torch.testing.assert_close(space.to_rgb(expected), images.float() / 255, rtol=0, atol=1e-6)


@every_network
def test_black_and_white_are_where_the_preprocessing_puts_them(name):
    ends = torch.zeros(2, 3, 1, 1)
    ends[1] = 255
    black, white = PREPROCESSINGS[name].normalize(ends)
    found = space_of(name).bounds(ends)
    torch.testing.assert_close(found[0], black)
    torch.testing.assert_close(found[1], white)


@every_network
def test_a_pixel_is_as_long_as_between_two_values(name):
    steps = PREPROCESSINGS[name].normalize(torch.tensor([100.0, 101.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).diff(dim=0)
    assert space_of(name).pixel == pytest.approx(steps.double().mean().item(), rel=1e-4)


@every_network
@settings(deadline=None, max_examples=40)
@given(PIXELS)
def test_what_is_in_range_is_drawn_as_it_is(name, pixels):
    drawn, contrast = space_of(name).draw(PREPROCESSINGS[name].normalize(torch.from_numpy(pixels)))
    np.testing.assert_array_equal(drawn, pixels.transpose(0, 2, 3, 1))
    torch.testing.assert_close(contrast, torch.ones(2), rtol=0, atol=1e-6)


def test_black_and_white_themselves_are_drawn_with_full_contrast():
    space = space_of("imagenet")
    like = torch.zeros(1, 3, 4, 4)
    for end, value in zip(space.bounds(like), (0, 255), strict=True):
        drawn, contrast = space.draw(end.expand_as(like))
        assert drawn.unique().tolist() == [value]
        assert contrast.tolist() == [1]


def test_drawing_rounds_to_the_nearest_pixel():
    space = space_of("caffe")
    black, _ = space.bounds(torch.zeros(1, dtype=torch.float64))
    drawn, _ = space.draw((black + torch.tensor([0.6, 1.4, 1.6])[:, None, None])[None].double())
    assert drawn.flatten().tolist() == [2, 1, 1]  # blue, green, red


def naive_contrast(image, black, white):
    """The largest factor, at most 1, with which `FITS` of the values at least lie within the range."""
    reaches = []
    for channel, values in enumerate(image):
        for value in values.flatten():
            end = black[channel] if value < 0 else white[channel]
            outside = value != 0 and end != 0
            reaches.append(end / value if outside else np.inf)
    fitting = [min(1.0, one) for one in reaches]
    good = [one for one in fitting if sum(reach >= one for reach in reaches) >= FITS * len(reaches)]
    return max(good)


@every_network
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.2, 6), st.integers(1, 9), st.integers(1, 9))
def test_what_leaves_the_range_is_drawn_nearer_to_the_mean_until_most_of_it_fits(name, seed, size, height, width):
    space = space_of(name)
    noise = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    images = noise * size * 60 * space.pixel
    drawn, contrast = space.draw(images)
    black, white = (end.flatten().numpy() for end in space.bounds(images))
    expected = [naive_contrast(image, black, white) for image in images.numpy()]
    np.testing.assert_allclose(contrast, expected, rtol=1e-12)
    rgb = space.to_rgb(images * contrast[:, None, None, None]).clamp(0, 1) * 255
    assert (drawn.movedim(-1, 1) - rgb).abs().max() <= 0.5 + 1e-9


def test_a_few_points_do_not_make_the_rest_gray():
    images = torch.zeros(1, 3, 20, 20)  # 1200 values, of which 6 may leave the range
    images.view(-1)[:6] = 1000
    assert space_of("imagenet").draw(images)[1].item() == 1
    images.view(-1)[6] = 1000
    assert space_of("imagenet").draw(images)[1].item() < 0.01


def test_the_mean_color_is_0_however_faint_the_contrast():
    space = space_of("imagenet")
    images = torch.full((1, 3, 8, 8), 500.0)
    images[..., 0] = 0
    drawn, _ = space.draw(images)
    mean = [round(255 * one) for one in space.mean]
    assert drawn[0, :, 0].unique(dim=0).tolist() == [mean]
    assert drawn[0, :, 1:].amax().item() == 255


def test_where_black_is_the_mean_what_is_darker_is_black():
    space = space_of("black is the mean")
    images = torch.full((1, 3, 3, 3), -7.0)
    images[..., 1, 1] = 0.25 / torch.tensor(space.std)
    drawn, contrast = space.draw(images)
    assert contrast.item() == 1
    assert drawn[0, 1, 1].tolist() == [64, 64, 64]
    assert drawn.sum().item() == 3 * 64


def test_images_are_drawn_each_by_itself():
    space = space_of("caffe")
    images = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([10, 100, 1000.0]).view(
        3, 1, 1, 1
    )
    together = space.draw(images)
    for place in range(3):
        drawn, contrast = space.draw(images[place : place + 1])
        assert torch.equal(drawn[0], together[0][place])
        assert contrast[0] == together[1][place]


def test_the_order_of_channels_is_the_networks():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    rgb, bgr = InputSpace((0.0,) * 3, (1.0,) * 3), InputSpace((0.0,) * 3, (1.0,) * 3, bgr=True)
    assert rgb.from_rgb(red).flatten().tolist() == [1, 0, 0]
    assert bgr.from_rgb(red).flatten().tolist() == [0, 0, 1]
    assert replace(rgb, scale=1.0).from_rgb(red).flatten().tolist() == [255, 0, 0]
    assert bgr.draw(bgr.from_rgb(red))[0].flatten().tolist() == [255, 0, 0]
