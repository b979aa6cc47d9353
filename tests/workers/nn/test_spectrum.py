"""The share about a stride's Nyquist frequency against a naive DFT; first strides and depths of known networks."""

from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workers.models import ModelSpec, load
from workers.networks.mininet import MiniNet
from workers.nn.spectrum import above_nyquist_share, band, convolutions_before, first_stride, noise_share, nyquist_share

SQUARE = (3, 64, 64)

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def naive_share(picture: np.ndarray, stride: int, size: int, inside=None) -> float:
    """By the sum that defines a DFT, at `size` frequencies an axis, the picture's mean removed."""
    frequencies = (np.arange(size) + 0.5) / size - 0.5
    inside = (inside or within)(frequencies, stride)
    total = among = 0.0
    for channel in picture:
        rows, columns = (np.exp(-2j * pi * np.outer(frequencies, np.arange(side))) for side in channel.shape)
        power = np.abs(rows @ (channel - channel.mean()) @ columns.T) ** 2
        total += power.sum()
        among += power[inside[:, None] | inside[None, :]].sum()
    return among / total


def within(frequencies: np.ndarray, stride: int) -> np.ndarray:
    nyquist = 1 / (2 * stride)
    return (np.abs(frequencies) > nyquist / sqrt(2)) & (np.abs(frequencies) < nyquist * sqrt(2))


def grating(frequency: float, side: int = 96, angle: float = 0.0) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = torch.cos(2 * pi * frequency * (x * cos(angle) + y * cos(angle - pi / 2)) + 0.7)
    return wave.expand(3, side, side).double()


@quick
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.integers(8, 19), st.integers(8, 19), st.integers(1, 3))
def test_is_what_a_fine_naive_dft_says(seed, stride, height, width, channels):
    noise = np.random.default_rng(seed).normal(size=(channels, height, width))
    picture = noise.cumsum(1).cumsum(2) if seed % 2 else noise  # smooth, or white
    assert nyquist_share(torch.tensor(picture), stride) == pytest.approx(naive_share(picture, stride, 1024), abs=0.01)


@quick
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.integers(8, 19), st.integers(8, 19))
def test_above_it_lies_what_a_fine_naive_dft_says(seed, stride, height, width):
    noise = np.random.default_rng(seed).normal(size=(3, height, width))
    picture = noise.cumsum(1).cumsum(2) if seed % 2 else noise
    naive = naive_share(picture, stride, 1024, lambda frequencies, stride: np.abs(frequencies) > 1 / (2 * stride))
    assert above_nyquist_share(torch.tensor(picture), stride) == pytest.approx(naive, abs=0.01)


@pytest.mark.parametrize("stride", [2, 4])
def test_above_it_lie_fast_gratings_and_most_of_white_noise(stride):
    assert above_nyquist_share(grating(1.3 / (2 * stride)), stride) > 0.95
    assert above_nyquist_share(grating(0.7 / (2 * stride)), stride) < 0.06
    noise = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert above_nyquist_share(noise, stride) == pytest.approx(1 - 1 / stride**2, abs=0.01)


def test_of_a_few_pixels_is_what_the_integral_says():
    """A row pair +1, -1: power 4 sin^2(pi f) along x, 1 along y, once its mean, 0, is removed."""
    picture = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    low, high = band(2)
    of_x = 2 * (high - low) - (np.sin(2 * pi * high) - np.sin(2 * pi * low)) / pi  # of 1 - cos(2 pi f)
    of_y = 2 * (high - low) + (np.sin(2 * pi * high) - np.sin(2 * pi * low)) / pi  # of 1 + cos(2 pi f)
    assert nyquist_share(picture, 2) == pytest.approx(of_x + of_y - of_x * of_y)


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_a_grating_at_the_nyquist_frequency_is_nearly_all_there(stride):
    for angle in (0, pi / 2):
        assert nyquist_share(grating(1 / (2 * stride), angle=angle), stride) > 0.95


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.9])
def test_other_gratings_are_nearly_not_there(factor):
    for stride in (2, 4):
        assert nyquist_share(grating(factor / (2 * stride)), stride) < 0.06


def test_a_grating_counts_when_it_is_in_the_band_along_one_axis():
    slanted = grating(sqrt(2) / 8, angle=pi / 4)  # 1/8 along each axis
    assert nyquist_share(slanted, 4) > 0.95
    assert nyquist_share(grating(0.1 * sqrt(2), angle=pi / 4), 2) < 0.06


@pytest.mark.parametrize("stride", [2, 4])
def test_white_noise_has_the_bands_area(stride):
    noise = torch.randn(64, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert noise_share(stride) == pytest.approx(1 - (1 - 1 / (sqrt(2) * stride)) ** 2)
    assert nyquist_share(noise, stride) == pytest.approx(noise_share(stride), abs=0.01)


@quick
@given(st.integers(0, 2**31), st.floats(-9, 9), st.floats(0.01, 100), st.booleans())
def test_neither_mean_nor_scale_nor_order_of_channels_has_a_say(seed, mean, scale, flips):
    picture = torch.tensor(np.random.default_rng(seed).normal(size=(3, 11, 9)))
    changed = (picture * scale + mean).flip(0, *((1, 2) if flips else ()))
    assert nyquist_share(changed, 4) == pytest.approx(nyquist_share(picture, 4), rel=1e-9)


def test_gray_around_a_picture_whose_mean_is_0_changes_nothing():
    picture = torch.randn(3, 11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picture -= picture.mean((1, 2), keepdim=True)
    padded = nn.functional.pad(picture, (3, 17, 0, 20))
    assert nyquist_share(padded, 4) == pytest.approx(nyquist_share(picture, 4))


def test_there_is_none_of_nothing():
    noise = torch.rand(3, 11, 11)
    assert nyquist_share(noise, 1) is None
    assert above_nyquist_share(noise, 1) is None
    assert above_nyquist_share(torch.zeros(3, 11, 11), 4) is None
    assert nyquist_share(torch.zeros(3, 11, 11), 4) is None
    assert nyquist_share(torch.full((3, 11, 11), 0.1), 4) is None
    assert nyquist_share(noise[:, :3], 4) is None
    assert nyquist_share(noise[:, :4], 4) is not None
    assert nyquist_share(noise[:, :1, :1], 2) is None


def unread(path: str) -> bytes:
    raise AssertionError(path)


@pytest.mark.parametrize(
    ("name", "stride", "depths"),
    [
        ("mininet", 2, {"features.0": 1, "features.2": 1, "features.4": 2, "features.7": 3, "classifier.2": 6}),
        ("alexnet", 4, {"features.1": 1, "features.4": 2, "features.7": 3}),
        ("zfnet", 2, {"relu1": 1, "norm1": 1, "relu2": 2, "conv3": 3}),
        ("vgg11", 1, {"features.1": 1, "features.4": 2}),
        ("squeezenet1_1", 2, {"features.1": 1, "features.3.squeeze": 1, "features.3.expand1x1": 1, "features.3": 2}),
        ("resnet18", 2, {"relu": 1, "layer1.0.conv1": 2, "layer1.0": 3, "layer2.0.downsample": 6}),
        ("googlenet", 2, {"conv1": 1, "conv2": 1, "conv3": 2, "inception3a": 3}),
        ("swin_t", 4, {"features.0": 1, "features.1.0.attn": 5}),
    ],
)
def test_first_strides_and_depths_of_known_networks(name, stride, depths):
    loaded = load(ModelSpec(name), unread)
    shape = (3, loaded.preprocessing.height, loaded.preprocessing.width)
    assert first_stride(loaded.module, shape) == stride
    assert {layer: convolutions_before(loaded.module, layer, shape) for layer in depths} == depths


class Branches(nn.Module):
    """Two first convolutions, one after a 1 x 1 that does not count, joined and convolved again."""

    def __init__(self):
        super().__init__()
        self.colors = nn.Conv2d(3, 3, 1)
        self.fine, self.coarse = (
            nn.Conv2d(3, 2, 3, stride=2, padding=1),
            nn.Conv2d(3, 2, (5, 7), (2, 4), padding=(2, 3)),
        )
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        coarse = self.coarse(self.colors(x)).repeat_interleave(2, -1)
        joined = torch.zeros(len(x), 4, *coarse.shape[2:], device=x.device)
        joined[:, :2] = self.fine(x).relu_()
        joined[:, 2:] = coarse
        return self.last(joined)


def test_of_branches_the_largest_stride_and_the_longest_chain_count():
    network = Branches().eval()
    assert first_stride(network, SQUARE) == 4
    assert convolutions_before(network, "colors", SQUARE) == 0
    assert convolutions_before(network, "coarse", SQUARE) == 1
    assert convolutions_before(network, "last", SQUARE) == 2


def test_a_network_without_convolutions_has_stride_1():
    assert first_stride(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4)) == 1


def test_of_a_network_in_half_precision_they_are_the_same():
    network = MiniNet().eval().to(torch.bfloat16)
    assert first_stride(network, (3, 112, 112)) == 2
    assert convolutions_before(network, "features.4", (3, 112, 112)) == 2


def test_nothing_is_left_behind():
    network = MiniNet().eval()
    first_stride(network, (3, 112, 112))
    assert network.features[0].weight.device.type == "cpu"
    assert not network.features[0]._forward_hooks
