"""Boxes, batches, and pictures of patterns."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.stage import Layer
from pipeline.stages.patterns import Box, LayerPatterns, Request, box_of, in_batches, share_out
from pipeline.study import Numerics
from workers.models import LoadedModel, Preprocessing
from workers.nn.receptive_field import ReceptiveField

FIELD = ReceptiveField(stride_y=4.0, stride_x=2.0, offset_y=3.0, offset_x=-1.0, field_y=7, field_x=3)
NUMERICS = Numerics(
    torch=torch.__version__, machine="x", device="cpu", cpu_capability="x", threads=1, batch_size=1, tf32=False
)
requests = st.lists(
    st.builds(Request, image_id=st.integers(0, 6), unit=st.integers(0, 9), y=st.just(0), x=st.just(0), rank=st.integers(0, 3)),
    min_size=1, max_size=40, unique_by=lambda one: (one.unit, one.rank),
)  # fmt: skip


def test_a_box_is_what_the_cell_sees():
    assert box_of(FIELD, 2, 3, 50, 50) == Box(8, 4, 15, 7, False)


def test_a_box_ends_with_the_image():
    assert box_of(FIELD, 0, 0, 50, 50) == Box(0, 0, 7, 1, True)
    assert box_of(FIELD, 2, 3, 12, 50) == Box(8, 4, 12, 7, True)
    assert box_of(FIELD, 0, 1, 5, 2) == Box(0, 0, 5, 2, True)


def test_without_a_field_it_is_the_image():
    assert box_of(None, 3, 4, 20, 30) == Box(0, 0, 20, 30, False)


@given(requests, st.integers(1, 5))
def test_batches_hold_every_request_once_and_an_image_in_one(asked, batch):
    batches = in_batches(asked, batch)
    assert sorted((one.unit, one.rank) for part in batches for one in part) == sorted((r.unit, r.rank) for r in asked)
    ids = [{one.image_id for one in part} for part in batches]
    assert all(len(part) == batch for part in ids[:-1])
    assert 1 <= len(ids[-1]) <= batch
    assert sum(map(len, ids)) == len(set.union(*ids))


@given(requests, st.integers(1, 5))
def test_batches_do_not_hang_on_the_order_of_requests(asked, batch):
    assert in_batches(asked, batch) == in_batches(asked[::-1], batch)


def test_images_with_many_requests_share_a_batch():
    asked = [Request(0, 0, 0, 0), *(Request(1, unit, 0, 0) for unit in range(1, 4)), Request(2, 4, 0, 0)]
    asked += [Request(3, unit, 0, 0) for unit in range(5, 8)]
    assert [{one.image_id for one in part} for part in in_batches(asked, 2)] == [{1, 3}, {0, 2}]


@given(requests, st.integers(0, 6))
def test_places_that_no_image_needs_take_over_from_those_with_the_most(asked, spare):
    images = {one.image_id for one in asked}
    places = share_out(asked, len(images) + spare)
    assert len(places) == len(images) + spare
    assert {image_id for image_id, _ in places} == images
    assert all(one.image_id == image_id for image_id, own in places for one in own)
    shared = [(one.unit, one.rank) for _, own in places for one in own]
    assert sorted(shared) == sorted((one.unit, one.rank) for one in asked)
    most = max(sum(one.image_id == image for one in asked) for image in images)
    rounds = max(len(own) for _, own in places)
    assert rounds <= most
    if spare and most > 1 and sum(sum(o.image_id == i for o in asked) == most for i in images) <= spare:
        assert rounds < most


@pytest.fixture
def convolution() -> torch.nn.Sequential:
    """Unit 0 is red at the cell, unit 1 blue to the right of it."""
    layer = torch.nn.Conv2d(3, 2, 3, padding=1, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[0, 0, 1, 1] = 1.0
    layer.weight.data[1, 2, 1, 2] = 1.0
    return torch.nn.Sequential(layer).requires_grad_(False)


def patterns_of(module, order="rgb", **more):
    preprocessing = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), channel_order=order)
    model = LoadedModel(module, preprocessing, 2, "", "")
    layer = Layer("0", 2, 8, 8, ReceptiveField(1.0, 1.0, 0.0, 0.0, 3, 3))
    given = {"rule": "deconvnet", "keep": "cell", "extend": False, "batch": 3, **more}
    return LayerPatterns(model, layer, NUMERICS, "cpu", **given)


def test_patterns_by_hand(convolution):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, 4, 5], image[2, 4, 6] = 255, 51
    made = patterns_of(convolution)
    asked = [Request(7, 0, 4, 5), Request(7, 1, 4, 5), Request(7, 1, 0, 0)]
    first, second, third = (pattern for _, pattern in made.project({7: image}, asked))
    assert (first.activation, second.activation, third.activation) == (1.0, pytest.approx(0.2), 0.0)
    assert first.box == second.box == Box(3, 4, 6, 7, False)
    assert third.box == Box(0, 0, 2, 2, True)
    assert first.value.nonzero().tolist() == [[0, 1, 1]]
    assert second.value.nonzero().tolist() == [[2, 1, 2]]
    assert second.value.max() == pytest.approx(0.2)
    assert not third.value.any()
    assert torch.equal(first.crop, image[:, 3:6, 4:7])
    assert [one.outside for one in (first, second, third)] == [0, 0, 0]


def test_a_map_is_the_whole_image(convolution):
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    ((_, pattern),) = patterns_of(convolution, keep="map").project({0: image}, [Request(0, 1, 4, 5)])
    assert pattern.box == Box(0, 0, 8, 8, False)
    assert torch.equal(pattern.value[2], torch.cat([torch.zeros(8, 1), torch.ones(8, 7)], 1))


def test_what_lies_outside_the_box_is_counted(convolution):
    """A field that was measured too small."""
    made = patterns_of(convolution)
    made._layer = Layer("0", 2, 8, 8, ReceptiveField(1.0, 1.0, 0.0, 0.0, 1, 1))
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    found = [pattern.outside for _, pattern in made.project({0: image}, [Request(0, 0, 4, 5), Request(0, 1, 4, 5)])]
    assert found == [0, 1]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pictures_are_gray_where_nothing_is_and_colored_where_it_drives(convolution, order):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0 if order == "rgb" else 2, 4, 5] = 255  # what the network's first channel sees
    made = patterns_of(convolution, order)
    ((_, pattern),) = made.project({0: image}, [Request(0, 0, 4, 5)])
    drawn = made.draw(pattern)
    pixels, crop = (np.array(Image.open(io.BytesIO(drawn[name]["bytes"]))) for name in ("pattern", "crop"))
    color = [255, 128, 128] if order == "rgb" else [128, 128, 255]
    assert pixels[1, 1].tolist() == color
    assert (np.delete(pixels.reshape(9, 3), 4, axis=0) == 128).all()
    assert np.array_equal(crop, image[:, 3:6, 4:7].movedim(0, -1).numpy())
