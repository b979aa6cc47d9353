"""The oracle against values worked out on paper, and against slower readings of the same definitions."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import (
    COUNTS,
    Annotated,
    Geometry,
    add,
    best_ious,
    detectors,
    excess,
    ious,
    jackknife,
    label_areas,
    layer_summary,
    mask,
    p_values,
    tally,
    threshold,
)

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def cells(*rows) -> np.ndarray:
    return np.array(rows, np.float32)


# ---------------------------------------------------------------------------------------------- thresholds


def test_threshold_is_the_k_plus_first_largest():
    value, num_above = threshold(np.arange(200, dtype=np.float32), 0.005)
    assert (value, num_above) == (198, 1)
    assert value.dtype == np.float32


def test_threshold_reads_the_quantile_as_a_decimal():
    assert 0.29 * 100 < 29  # in floats, which would take the 29th largest for the 30th
    assert threshold(np.arange(100, dtype=np.float32), 0.29) == (70, 29)


def test_threshold_among_equal_cells_has_none_of_them_above():
    assert threshold(cells([3, 1, 1, 1, 0, 0, 0, 0]), 0.25) == (1, 1)
    assert threshold(np.zeros(1000, np.float32), 0.005) == (0, 0)


def test_threshold_refuses_nan_and_no_cells():
    with pytest.raises(ValueError, match="NaN"):
        threshold(cells([0, np.nan]), 0.005)
    with pytest.raises(ValueError, match="0 cells"):
        threshold(cells([]), 0.005)


@quick
@given(
    st.lists(st.integers(-3, 3) | st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    st.sampled_from([0.005, 0.01, 0.1, 0.3, 0.5, 0.99]),
)
def test_threshold_leaves_at_most_k_above_and_more_than_k_at_or_above(values, quantile):
    value, num_above = threshold(np.array(values, np.float32), quantile)
    k = int(Fraction(str(quantile)) * len(values))
    assert num_above == sum(v > value for v in values) <= k < sum(v >= value for v in values)


# --------------------------------------------------------------------------------------------------- masks


def test_upsample_first_by_hand():
    # two cells over four pixels: positions -1/4 -> 0, 1/4, 3/4, 5/4 -> 1, hence 0, 1, 3, 4
    activation = cells([0, 4], [0, 4])
    np.testing.assert_array_equal(excess(activation, 0, (4, 4)), [[0, 1, 3, 4]] * 4)
    np.testing.assert_array_equal(mask(activation, 1, (4, 4)), [[0, 0, 1, 1]] * 4)  # 1 is not above 1
    np.testing.assert_array_equal(mask(activation, 0.5, (4, 4)), [[0, 1, 1, 1]] * 4)
    np.testing.assert_array_equal(mask(activation, 4, (4, 4)), np.zeros((4, 4)))


def test_upsample_first_of_one_cell_by_hand():
    # 4 * (1, 3/4, 1/4, 0) by (1, 3/4, 1/4, 0): the corners of the 3 x 3 block are 1 and 1/4
    expected = [[4, 3, 1, 0], [3, 2.25, 0.75, 0], [1, 0.75, 0.25, 0], [0, 0, 0, 0]]
    activation = cells([4, 0], [0, 0])
    np.testing.assert_array_equal(excess(activation, 0, (4, 4)), expected)
    np.testing.assert_array_equal(mask(activation, 0.75, (4, 4)), np.array(expected) > 0.75)


def test_threshold_first_by_hand():
    activation = cells([0, 4], [0, 4])
    np.testing.assert_array_equal(mask(activation, 0.5, (4, 4), "threshold_first"), [[0, 0, 1, 1]] * 4)
    # three pixels over two cells: the middle one is 1/2, which is not above 1/2
    np.testing.assert_array_equal(mask(cells([0, 4]), 0.5, (1, 3), "threshold_first"), [[0, 0, 1]])
    # a cell equal to T is not above it
    np.testing.assert_array_equal(mask(cells([4, 5]), 4, (1, 4), "threshold_first"), [[0, 0, 1, 1]])


def test_receptive_field_by_hand():
    # input pixels 1/2, 5/2, 9/2, 13/2 are cells 1/8, 5/8, 9/8 -> 1, 13/8 -> 1
    geometry = Geometry(8, 8, offset_y=0, offset_x=0, stride_y=4, stride_x=4)
    activation = cells([0, 8], [0, 8])
    np.testing.assert_array_equal(excess(activation, 0, (4, 4), "receptive_field", geometry), [[1, 5, 8, 8]] * 4)
    receptive_field = mask(activation, 4, (4, 4), upsampling="receptive_field", geometry=geometry)
    np.testing.assert_array_equal(receptive_field, [[0, 1, 1, 1]] * 4)
    np.testing.assert_array_equal(mask(activation, 4, (4, 4)), [[0, 0, 1, 1]] * 4)


def test_receptive_field_tells_rows_from_columns():
    geometry = Geometry(8, 4, offset_y=0, offset_x=0.5, stride_y=4, stride_x=2)
    tall = excess(cells([0, 0], [8, 8]), 0, (4, 2), "receptive_field", geometry)
    np.testing.assert_array_equal(tall, [[1, 1], [5, 5], [8, 8], [8, 8]])
    wide = excess(cells([0, 8], [0, 8]), 0, (4, 2), "receptive_field", geometry)
    np.testing.assert_array_equal(wide, [[0, 8]] * 4)  # input pixels 1/2, 5/2 are cells 0, 1


def test_a_receptive_field_that_tiles_the_input_is_a_resize():
    geometry = (8, 8, 1.5, 1.5, 4, 4)
    activation = cells([0, 3], [2, 7])
    np.testing.assert_array_equal(
        excess(activation, 1, (8, 8), "receptive_field", geometry), excess(activation, 1, (8, 8))
    )


def test_mask_at_the_map_s_own_size_is_the_thresholded_map():
    activation = cells([0, 1, 2], [3, 4, 5])
    for order in ("upsample_first", "threshold_first"):
        np.testing.assert_array_equal(mask(activation, 2, (2, 3), order), activation > 2)


def test_a_tie_that_floats_miss_is_decided_in_fractions():
    # pixel 4 of 10 over two cells stands at cell 2/5: 3/5 * -2 + 2/5 * 3 = 0
    activation = cells([-2, 3])
    assert excess(activation, 0, (1, 10))[0, 4] > 0
    for exact in (False, True):
        assert mask(activation, 0, (1, 10), exact=exact).tolist() == [[False] * 5 + [True] * 5]


def test_mask_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="mask_order is 'both'"):
        mask(cells([0]), 0, (1, 1), "both")
    with pytest.raises(ValueError, match="receptive_field"):
        mask(cells([0]), 0, (1, 1), upsampling="receptive_field")


THRESHOLD = np.float32(0.7)
near_threshold = [np.nextafter(THRESHOLD, np.float32(side), dtype=np.float32) for side in (-9, 9)]
cell = st.sampled_from([THRESHOLD, THRESHOLD, *near_threshold, 2 * THRESHOLD, 0, 1]) | st.floats(-4, 4, width=32)
side = st.integers(1, 4)


@st.composite
def maps(draw):
    h, w = draw(side), draw(side)
    values = draw(st.lists(cell, min_size=h * w, max_size=h * w))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    place = st.sampled_from([-2, 0, 0.5, 1.5, 0.1])
    stride = st.sampled_from([1, 2, 4, 2.3])
    geometry = Geometry(*draw(st.tuples(st.integers(1, 16), st.integers(1, 16), place, place, stride, stride)))
    upsampling = draw(st.sampled_from(["resize", "receptive_field"]))
    return np.array(values, np.float32).reshape(h, w), size, upsampling, geometry


@quick
@given(maps(), st.sampled_from(["upsample_first", "threshold_first"]))
def test_fast_mask_is_the_exact_mask(drawn, order):
    activation, size, upsampling, geometry = drawn
    fast = mask(activation, THRESHOLD, size, order, upsampling, geometry)
    exact = mask(activation, THRESHOLD, size, order, upsampling, geometry, exact=True)
    np.testing.assert_array_equal(fast, exact)
    assert fast.shape == size


@quick
@given(maps())
def test_no_pixel_of_a_plateau_at_the_threshold_is_above_it(drawn):
    activation, size, upsampling, geometry = drawn
    plateau = np.minimum(activation, THRESHOLD)
    for order in ("upsample_first", "threshold_first"):
        assert not mask(plateau, THRESHOLD, size, order, upsampling, geometry).any()
    # cells at or above it: a pixel is above as soon as one of its cells is
    floor = np.maximum(activation, THRESHOLD)
    above = mask(floor, THRESHOLD, size, "upsample_first", upsampling, geometry)
    touched = excess((floor > THRESHOLD).astype(np.float32), 0, size, upsampling, geometry) > 0
    np.testing.assert_array_equal(above, touched)


@quick
@given(maps())
def test_excess_is_the_bilinear_interpolation_of_torch(drawn):
    activation, size, _, _ = drawn
    image = torch.from_numpy(activation.astype(np.float64))[None, None]
    expected = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(excess(activation, 0, size), expected.numpy(), rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------- counts

CATEGORY = {1: "object", 2: "object", 5: "color", 7: "scene"}


@pytest.fixture
def three_images():
    """Two units (the second dead), three images; T = 1 and 0.

    Image 0 (4 x 4): mask = the two columns at the right. Concept 1: the top row and, in a second plane, the
    upper half of the last column; concept 2: the lower left quarter; scene 7.
    Image 1 (2 x 2): mask = the upper left pixel. Color 5: the lower right pixel.
    Image 2 (4 x 4): mask = the two rows at the bottom. Concept 2: the top row. A scene of 0.
    """
    activations = np.zeros((3, 2, 2, 2), np.float32)
    activations[0, 0] = [[0, 4], [0, 4]]
    activations[1, 0] = [[4, 0], [0, 0]]
    activations[2, 0] = [[0, 0], [4, 4]]
    objects = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]])
    again = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    top = np.array([[2, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    annotated = [
        Annotated("train", 4, 4, [objects, again], [7]),
        Annotated("val", 2, 2, [np.array([[0, 0], [0, 5]])]),
        Annotated("train", 4, 4, [top, np.zeros((4, 4), int)], [0]),
    ]
    return activations, [1, 0], annotated


def test_tally_by_hand(three_images):
    counts = tally(*three_images, CATEGORY)
    assert counts == {
        "intersection": {(0, 1, "train"): 3, (0, 7, "train"): 8},
        "mask_pixels_concept": {
            (0, 1, "train"): 8,
            (0, 2, "train"): 16,
            (0, 7, "train"): 8,
            (0, 5, "val"): 1,
        },
        "mask_pixels_annotated": {
            (0, "object", "train"): 16,
            (0, "scene", "train"): 8,
            (0, "color", "val"): 1,
        },
        "mask_pixels_under_mask": {(0, "object", "train"): 8, (0, "scene", "train"): 8},
        "mask_pixels": {(0, "train"): 16, (0, "val"): 1},
    }


def test_label_areas_by_hand(three_images):
    _, _, annotated = three_images
    assert label_areas(annotated) == {
        (1, "train"): (5, 1),  # once where two planes have it
        (2, "train"): (8, 2),
        (5, "val"): (1, 1),
        (7, "train"): (16, 1),  # the whole image
    }


def test_tally_of_masks_that_meet_another_image_by_hand(three_images):
    counts = tally(*three_images, CATEGORY, pairing=[1, 2, 0])
    # image 0's mask, 2 x 2: the right column, with color 5 in it. Image 1's, 4 x 4: the upper left quarter
    # (1 is not above 1), half the top row. Image 2's: the lower half, all of concept 2.
    assert counts["intersection"] == {(0, 5, "val"): 1, (0, 2, "train"): 2 + 4, (0, 7, "train"): 8}
    assert counts["mask_pixels"] == {(0, "val"): 2, (0, "train"): 4 + 8}
    assert counts["mask_pixels_under_mask"] == {
        (0, "color", "val"): 2,
        (0, "object", "train"): 12,
        (0, "scene", "train"): 8,
    }


@pytest.mark.parametrize(
    ("union", "concept_1", "concept_2", "concept_5"),
    [
        ("annotated", 16 + 5 - 3, 16 + 8, 1 + 1),
        ("all", 17 + 5 - 3, 17 + 8, 17 + 1),
        ("under_mask", 8 + 5 - 3, 8 + 8, 0 + 1),
        ("concept", 8 + 5 - 3, 16 + 8, 1 + 1),
    ],
)
def test_the_four_unions_by_hand(three_images, union, concept_1, concept_2, concept_5):
    activations, thresholds, annotated = three_images
    counts = tally(activations, thresholds, annotated, CATEGORY)
    result = ious(counts, label_areas(annotated), CATEGORY, 2, union)
    assert result[0, 1] == (3, concept_1, 3 / concept_1)
    assert result[0, 2] == (0, concept_2, 0.0)
    assert result[0, 5] == (0, concept_5, 0.0)
    assert result[1, 1] == (0, 5, 0.0)  # the dead unit: only the label is left


def test_ious_of_some_splits_only(three_images):
    activations, thresholds, annotated = three_images
    counts = tally(activations, thresholds, annotated, CATEGORY)
    areas = label_areas(annotated)
    assert ious(counts, areas, CATEGORY, 2, "all", ["train"])[0, 1] == (3, 18, 3 / 18)
    assert ious(counts, areas, CATEGORY, 2, "all", ["val"])[0, 1] == (0, 1, 0.0)
    with pytest.raises(ValueError, match="union is 'some'"):
        ious(counts, areas, CATEGORY, 2, "some")


def test_an_absent_concept_has_iou_0(three_images):
    activations, thresholds, annotated = three_images
    counts = tally(activations, thresholds, annotated, CATEGORY)
    result = ious(counts, label_areas(annotated), {**CATEGORY, 9: "material"}, 2)
    assert result[0, 9] == result[1, 9] == (0, 0, 0.0)


def test_a_dead_unit_has_no_mask(three_images):
    activations, thresholds, annotated = three_images
    counts = tally(activations, thresholds, annotated, CATEGORY)
    assert all(key[0] == 0 for name in COUNTS for key in counts[name])


def test_a_label_annotates_its_own_category_in_whatever_plane_or_cell_it_stands():
    colors_among_objects = Annotated("train", 1, 2, [np.array([[5, 0]])], [1])
    counts = tally(np.ones((1, 1, 1, 1), np.float32), [0], [colors_among_objects], CATEGORY)
    assert counts["mask_pixels_annotated"] == {(0, "color", "train"): 2, (0, "object", "train"): 2}
    # once more as a label of the whole image, which counts it no second time
    both = Annotated("train", 1, 2, [np.array([[5, 0]])], [5, 5])
    assert label_areas([both]) == {(5, "train"): (2, 1)}


def test_a_plane_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"a plane is \(2, 3\), must be \(3, 2\)"):
        Annotated("train", 3, 2, [np.zeros((2, 3), int)])


@st.composite
def data_sets(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_images, num_units = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    activations = generator.integers(-2, 4, (num_images, num_units, 2, 3)).astype(np.float32)
    annotated = []
    for _ in range(num_images):
        size = tuple(generator.integers(1, 6, 2).tolist())
        planes = [generator.choice([0, 0, 1, 2, 5], size) for _ in range(generator.integers(3))]
        scenes = generator.choice([0, 5, 7], generator.integers(3)).tolist()
        annotated.append(Annotated(str(generator.choice(["train", "val"])), *size, planes, scenes))
    pairing = generator.permutation(num_images).tolist()
    return activations, generator.integers(0, 3, num_units).tolist(), annotated, pairing


@quick
@given(data_sets())
def test_tally_is_what_counting_pixel_by_pixel_gives(data_set):
    activations, thresholds, annotated, pairing = data_set
    counts = tally(activations, thresholds, annotated, CATEGORY, pairing=pairing)
    expected = {name: {} for name in COUNTS}

    def count(name, *key):
        expected[name][key] = expected[name].get(key, 0) + 1

    for unit, value in enumerate(thresholds):
        for image, partner in enumerate(pairing):
            labels, split = annotated[partner], annotated[partner].split
            size = (labels.height, labels.width)
            unit_mask = mask(activations[image, unit], value, size, exact=True)
            at = {
                (y, x): ({plane[y, x] for plane in labels.planes} | set(labels.image_concepts)) - {0}
                for y in range(size[0])
                for x in range(size[1])
            }
            held = set().union(*at.values())
            under = set().union(*(concepts for pixel, concepts in at.items() if unit_mask[pixel]))
            for pixel, concepts in at.items():
                if not unit_mask[pixel]:
                    continue
                count("mask_pixels", unit, split)
                for concept in concepts:
                    count("intersection", unit, concept, split)
                for concept in held:
                    count("mask_pixels_concept", unit, concept, split)
                for name in {CATEGORY[concept] for concept in held}:
                    count("mask_pixels_annotated", unit, name, split)
                for name in {CATEGORY[concept] for concept in under}:
                    count("mask_pixels_under_mask", unit, name, split)
    assert counts == expected


@quick
@given(data_sets(), st.integers(0, 99), st.sampled_from(["upsample_first", "threshold_first"]))
def test_shards_in_any_order_add_up_to_the_whole(data_set, seed, order):
    activations, thresholds, annotated, _ = data_set
    images = list(range(len(annotated)))
    random.Random(seed).shuffle(images)
    shards = [images[::2], images[1::2]]
    parts = [tally(activations[s], thresholds, [annotated[i] for i in s], CATEGORY, order) for s in shards]
    assert add(parts) == tally(activations, thresholds, annotated, CATEGORY, order)


@quick
@given(data_sets())
def test_the_unions_are_ordered_and_no_iou_exceeds_1(data_set):
    activations, thresholds, annotated, _ = data_set
    counts, areas = tally(activations, thresholds, annotated, CATEGORY), label_areas(annotated)
    of = {
        union: ious(counts, areas, CATEGORY, len(thresholds), union)
        for union in ("concept", "annotated", "all", "under_mask")
    }
    for key, (_, union, _) in of["annotated"].items():
        assert of["concept"][key][1] <= union <= of["all"][key][1]
        assert of["under_mask"][key][1] <= union
    assert all(0 <= value <= 1 for result in of.values() for _, _, value in result.values())


# ----------------------------------------------------------------------------------------------- detectors


def unit_ious(*rows):
    return {(unit, concept): (i, u, i / u if u else 0.0) for unit, concept, i, u in rows}


def test_detectors_by_hand():
    rows = detectors(
        unit_ious(
            *[(0, 1, 1, 10), (0, 2, 2, 20), (0, 5, 1, 10), (0, 7, 1, 25)],  # a tie; .04 is not above .04
            *[(1, 1, 1, 20), (1, 2, 1, 10), (1, 5, 3, 10), (1, 7, 0, 0)],
            *[(2, 1, 1, 5), (2, 2, 0, 5), (2, 5, 1, 26), (2, 7, 0, 9)],
        ),
        CATEGORY,
    )
    best = {key: (row.concept, row.is_detector, row.is_best_overall) for key, row in rows.items()}
    assert best == {
        (0, "object"): (1, True, True),
        (0, "color"): (5, True, False),
        (0, "scene"): (7, False, False),
        (1, "object"): (2, True, False),
        (1, "color"): (5, True, True),
        (1, "scene"): (7, False, False),
        (2, "object"): (1, True, True),
        (2, "color"): (5, False, False),
        (2, "scene"): (7, False, False),
    }
    assert rows[1, "color"][3:6] == (3, 10, 0.3)
    assert layer_summary(rows) == {
        "object": (2, 1, 3, 2),  # units 0 and 2 detect concept 1; within the category, unit 1 concept 2
        "color": (1, 1, 2, 1),
        "scene": (0, 0, 0, 0),
    }


def test_a_unit_without_any_iou_is_no_detector_and_its_best_is_the_lowest_concept():
    rows = detectors(unit_ious((0, 7, 0, 3), (0, 2, 0, 0), (0, 1, 0, 9)), CATEGORY)
    assert [(row.concept, row.is_detector, row.is_best_overall) for row in rows.values()] == [
        (1, False, True),
        (7, False, False),
    ]


# --------------------------------------------------------------------------------------------- uncertainty


def test_jackknife_by_hand():
    # theta 2/3; without shard 0: 1/1, without shard 1: 1/2; variance 1/2 * 2/16 = 1/16
    low, high = jackknife([1, 1], [2, 1], [1, 1])
    assert low == pytest.approx(2 / 3 - 1.959963984540054 / 4, abs=1e-12)
    assert high == 1.0  # clipped
    # theta 4/6; without one shard: 2/4, 3/4, 3/4; variance 2/3 * (4 + 1 + 1)/144 = 1/36
    low, high = jackknife([2, 1, 1], [2, 2, 2], [2, 1, 1])
    assert low == pytest.approx(2 / 3 - 1.959963984540054 / 6, abs=1e-12)
    assert high == pytest.approx(2 / 3 + 1.959963984540054 / 6, abs=1e-12)
    assert jackknife([0, 0, 0], [4, 0, 1], [0, 0, 0]) == (0.0, 0.0)


def test_jackknife_of_equal_shards_has_no_width():
    low, high = jackknife([3] * 5, [10] * 5, [7] * 5)
    assert low == high == 3 / 14


def test_jackknife_of_one_shard_is_refused():
    with pytest.raises(ValueError, match="1 shard"):
        jackknife([1], [2], [3])


def test_p_values_by_hand():
    null = best_ious(unit_ious((0, 1, 1, 10), (0, 2, 0, 3), (1, 1, 1, 5), (2, 1, 3, 10), (2, 5, 1, 10)))
    assert null == [0.1, 0.2, 0.3]
    assert p_values([0.2, 0.4, 0.0], null) == [3 / 4, 1 / 4, 1.0]
