import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import oracle
from workers.methods import dissection
from workers.methods.dissection import (
    Alignment,
    Annotation,
    Counts,
    MaskPixels,
    binarize,
    derangement,
    gaps,
    interpolation,
    intersections,
    largest,
    mask_pixels,
    rank_of_threshold,
)

PLATEAUS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.0 + 2.0**-23, 2.0])
WIDE = st.floats(-(2.0**100), 2.0**100, width=32)
EXTREME = st.sampled_from(np.float32([-3.4e38, -1, -1e-30, -1e-45, 0, 1e-45, 1e-38, 1, 1e20, 3.4e38]).tolist())
CELLS = st.one_of(PLATEAUS, WIDE, EXTREME)


@st.composite
def maps(draw):
    """A map, a threshold that is often one of its cells, and a label map's size, larger or smaller."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    cells = draw(st.sampled_from([PLATEAUS, WIDE, EXTREME, CELLS]))
    activation = draw(arrays(np.float32, shape, elements=cells))
    threshold = draw(st.one_of(st.sampled_from(activation.ravel().tolist()), cells))
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return activation, np.float32(threshold), size


@st.composite
def alignments(draw):
    """Whole strides and half offsets, as they are measured, or any floats."""
    if draw(st.booleans()):
        return Alignment(draw(st.integers(1, 40)), draw(st.integers(-20, 20)) / 2, float(draw(st.integers(1, 16))))
    return Alignment(
        draw(st.integers(1, 40)), draw(st.integers(-9000, 9000)) / 1000, draw(st.integers(100, 9000)) / 1000
    )


def mask_of(activation, threshold, size, order, alignment=None):
    maps, levels = torch.from_numpy(activation)[None], torch.tensor([threshold])
    return binarize(maps, levels, size, order, alignment)[0].numpy()


@pytest.mark.parametrize("order", ["upsample_first", "threshold_first"])
@settings(deadline=None, max_examples=100)
@given(drawn=maps())
@example(drawn=(np.array([[1e30, -1e30, 1.0]], np.float32), np.float32(0), (1, 7)))
@example(drawn=(np.array([[1e30, -1e30], [1.0, 0.0]], np.float32), np.float32(0), (1, 1)))
@example(drawn=(np.array([[-1e30, 1e30], [-1.0, 0.0]], np.float32), np.float32(0), (3, 3)))
@example(drawn=(np.array([[1.0, 2.0], [2.0, 1.0]], np.float32), np.float32(1.5), (7, 9)))
@example(drawn=(np.array([[1e-45, -1e-45], [3e38, -3e38]], np.float32), np.float32(0), (5, 8)))
def test_resized_masks_are_the_definition(order, drawn):
    activation, threshold, size = drawn
    expected = oracle.mask(activation, float(threshold), size, order, exact=True)
    np.testing.assert_array_equal(mask_of(activation, threshold, size, order), expected)


@pytest.mark.parametrize("order", ["upsample_first", "threshold_first"])
@settings(deadline=None, max_examples=100)
@given(drawn=maps(), rows=alignments(), columns=alignments())
def test_aligned_masks_are_the_definition(order, drawn, rows, columns):
    activation, threshold, size = drawn
    geometry = oracle.Geometry(
        rows.input_size, columns.input_size, rows.offset, columns.offset, rows.stride, columns.stride
    )
    expected = oracle.mask(activation, float(threshold), size, order, "receptive_field", geometry, exact=True)
    np.testing.assert_array_equal(mask_of(activation, threshold, size, order, (rows, columns)), expected)


@pytest.mark.parametrize("order", ["upsample_first", "threshold_first"])
@pytest.mark.parametrize(("grid", "size"), [((13, 13), (113, 113)), ((27, 9), (56, 91)), ((56, 56), (31, 17))])
def test_masks_of_larger_maps(order, grid, size):
    generator = np.random.default_rng(0)
    activation = generator.standard_normal((3, *grid)).astype(np.float32)
    activation[1] = activation[1].clip(0).round(1)  # plateaus, many cells equal to the threshold
    thresholds = np.array([0.7, 0.5, activation[2].max()], np.float32)
    masks = binarize(torch.from_numpy(activation), torch.from_numpy(thresholds), size, order).numpy()
    for unit in range(3):
        expected = oracle.mask(activation[unit], float(thresholds[unit]), size, order)
        np.testing.assert_array_equal(masks[unit], expected)
    assert masks[0].any()
    assert not masks[2].any()


def test_a_unit_of_small_values_beside_one_of_large_values():
    small = np.array([[1e-20, -1e-20], [2e-20, 1e-20]], np.float32)
    pair = torch.from_numpy(np.stack([small, small * np.float32(1e38)]))
    masks = binarize(pair, torch.zeros(2), (6, 6))
    expected = oracle.mask(small, 0.0, (6, 6), exact=True)
    np.testing.assert_array_equal(masks[0].numpy(), expected)
    np.testing.assert_array_equal(masks[1].numpy(), expected)


def test_a_plateau_never_overshoots_its_own_height():
    """Where a float32 bilinear sum of equal cells exceeds them, the mask must stay empty."""
    values = np.float32(np.random.default_rng(1).uniform(0.1, 10, 60))
    overshoot = 0
    for value in values:
        plateau = torch.full((1, 1, 7, 7), float(value))
        resized = torch.nn.functional.interpolate(plateau, (113, 97), mode="bilinear", align_corners=False)
        overshoot += bool((resized > float(value)).any())
        assert not binarize(plateau[0], torch.tensor([value]), (113, 97)).any()
    assert overshoot, "the trap is gone: torch's own resize no longer overshoots"


@st.composite
def many_maps(draw):
    """Maps of one grid, each with its own threshold: at a cell, at the maximum, or at zero among zeros."""
    shape = draw(st.sampled_from([(1, 1), (1, 5), (4, 1), (2, 3), (5, 4), (12, 12)]))
    cells = draw(st.sampled_from([PLATEAUS, st.sampled_from([0.0, 0.0, 0.0, 1.0]), WIDE]))
    activation = draw(arrays(np.float32, (draw(st.integers(0, 5)), *shape), elements=cells))
    thresholds = [
        draw(st.sampled_from([-(2.0**101), 0.0, float(one.max()), *one.ravel().tolist()])) for one in activation
    ]
    return activation, np.array(thresholds, np.float32), draw(st.sampled_from([(1, 1), (3, 5), (9, 7), (6, 6)]))


def check_pixels(found, expected):
    """Whether pixels are those of the masks, each once, map after map."""
    of_map, pixel = found.map.tolist(), found.pixel.tolist()
    assert of_map == sorted(of_map)
    assert found.area.tolist() == [int(mask.sum()) for mask in expected]
    pairs = list(zip(of_map, pixel, strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == {(m, int(p)) for m, mask in enumerate(expected) for p in np.flatnonzero(mask)}


@pytest.mark.parametrize("order", ["upsample_first", "threshold_first"])
@pytest.mark.parametrize("candidates", [1, 40, 2**18])
@settings(deadline=None, max_examples=40)
@given(drawn=many_maps(), field=st.one_of(st.none(), st.tuples(alignments(), alignments())))
def test_pixels_of_many_maps_are_those_of_each_however_they_are_portioned(order, candidates, drawn, field):
    activation, thresholds, size = drawn
    geometry = field and oracle.Geometry(
        field[0].input_size, field[1].input_size, field[0].offset, field[1].offset, field[0].stride, field[1].stride
    )
    upsampling = "receptive_field" if field else "resize"
    expected = [
        oracle.mask(one, float(level), size, order, upsampling, geometry)
        for one, level in zip(activation, thresholds, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dissection, "CANDIDATES", candidates)
        check_pixels(
            mask_pixels(torch.from_numpy(activation), torch.from_numpy(thresholds), size, order, field), expected
        )


def test_only_pixels_beside_a_cell_above_the_threshold_are_looked_at(monkeypatch):
    """Of 8000 maps, one cell of one: what is looked at must not grow with the maps."""
    looked_at = []
    portion = dissection._pixels_of_quads

    def spy(*arguments):
        looked_at.append(len(arguments[-1]))
        return portion(*arguments)

    monkeypatch.setattr(dissection, "_pixels_of_quads", spy)
    activation = torch.zeros(8000, 6, 6)
    activation[4321, 2, 3] = 1
    found = mask_pixels(activation, torch.full((8000,), 0.5), (24, 24))
    assert sum(looked_at) == 4
    assert set(found.map.tolist()) == {4321}
    assert len(found.pixel) == oracle.mask(activation[4321].numpy(), 0.5, (24, 24)).sum() > 0


@given(st.integers(1, 30), st.integers(1, 30), st.one_of(st.none(), alignments()))
@settings(deadline=None, max_examples=60)
def test_every_pixel_lies_in_one_gap_with_its_own_weights(cells, pixels, alignment):
    axis, found = interpolation(cells, pixels, alignment), gaps(cells, pixels, alignment, torch.device("cpu"))
    seen = []
    for gap, first in enumerate(found.first.tolist()):
        below, above = found.cells[:, gap].tolist()
        inside = found.weights[:, :, gap].isnan().logical_not().all(0)
        assert inside.any()
        for slot in inside.nonzero().flatten().tolist():
            row = torch.zeros(cells, dtype=torch.float64)
            row[below] += found.weights[0, slot, gap]
            row[above] += found.weights[1, slot, gap]
            assert row.equal(axis.weights[first + slot])
            seen.append(first + slot)
    assert seen == list(range(pixels))


def test_masks_split_into_those_of_each_image():
    masks = MaskPixels(torch.tensor([4, 5, 0, 7, 7]), torch.tensor([0, 2, 2, 3, 5]))
    parts = masks.split([1, 2, 0, 1])
    assert [part.pixel.tolist() for part in parts] == [[4, 5], [0], [], [7, 7]]
    assert [part.offsets.tolist() for part in parts] == [[0, 2], [0, 0, 1], [0], [0, 2]]
    assert masks.map.tolist() == [0, 0, 2, 3, 3]


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_weights_are_whole_and_add_up(cells, pixels):
    axis = interpolation(cells, pixels)
    assert (axis.weights == axis.weights.round()).all()
    assert (axis.weights.sum(1) == axis.denominator).all()
    assert ((axis.weights > 0).sum(1) <= 2).all()


@given(st.integers(1, 9_999), st.integers(0, 10**12))
def test_rank_reads_the_quantile_as_the_decimal_it_is(numerator, cells):
    quantile = numerator / 10_000
    assert rank_of_threshold(quantile, cells) == numerator * cells // 10_000


def test_rank_where_floats_go_wrong():
    assert math.floor(0.29 * 100) == 28
    assert rank_of_threshold(0.29, 100) == 29
    assert rank_of_threshold(0.005, 200) == 1
    assert rank_of_threshold(1e-05, 100_000) == 1


def pixels_of(mask):
    """Dense masks, map y x, as the pixels in them."""
    flat = mask.flatten(1)
    ends = torch.cat([torch.tensor([0]), flat.sum(1).cumsum(0)])
    return MaskPixels(flat.nonzero()[:, 1], ends)


def random_annotation(generator, size, concepts, image_concepts=(), split=0):
    masks = torch.from_numpy(generator.random((*size, len(concepts))) < 0.3)
    return Annotation(masks, torch.tensor(concepts, dtype=torch.int64), torch.tensor(image_concepts).long(), split)


@pytest.mark.parametrize(("concepts", "image_concepts"), [((0, 2), (3,)), ((), (3,)), ((1,), ()), ((), ())])
def test_counts_of_one_image_are_the_oracles(concepts, image_concepts):
    generator = np.random.default_rng(3)
    membership = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    annotation = random_annotation(generator, (5, 7), concepts, image_concepts, split=1)
    mask = torch.from_numpy(generator.random((2, 5, 7)) < 0.2)
    counts = Counts.zeros(2, 4, 4, 2)
    units = torch.tensor([1, 3])
    counts.add(pixels_of(mask), units, annotation, membership)
    pixels = {c: annotation.masks[..., i] for i, c in enumerate(concepts)}
    pixels |= {c: torch.ones(5, 7).bool() for c in image_concepts}
    for row, unit in enumerate([1, 3]):
        area = int(mask[row].sum())
        assert counts.mask_pixels[1, unit] == area
        for concept in range(4):
            meets = int((mask[row] & pixels[concept]).sum()) if concept in pixels else 0
            assert counts.intersection[1, unit, concept] == meets
            assert counts.mask_pixels_concept[1, unit, concept] == (area if concept in pixels else 0)
        for category in range(2):
            own = [c for c in pixels if membership[c, category]]
            assert counts.mask_pixels_annotated[1, unit, category] == (area if own else 0)
            under = any((mask[row] & pixels[c]).any() for c in own)
            assert counts.mask_pixels_under_mask[1, unit, category] == (area if under else 0)
    assert counts.mask_pixels[0].sum() == 0
    assert counts.mask_pixels[:, [0, 2]].sum() == 0


def test_an_image_of_more_pixels_than_float32_can_count():
    side = 4200
    assert side**2 - 1 > 2**24
    masks = MaskPixels(torch.arange(1, side**2), torch.tensor([0, side**2 - 1]))
    annotation = Annotation(torch.ones(side, side, 1).bool(), torch.tensor([0]), torch.tensor([]).long(), 0)
    assert int(intersections(masks, annotation)) == int(masks.area) == side**2 - 1


def test_totals_beyond_int32():
    """Added up from images, as a data set's are."""
    side = 1024
    whole = MaskPixels(torch.arange(side**2), torch.tensor([0, side**2]))
    annotation = Annotation(torch.ones(side, side, 1).bool(), torch.tensor([0]), torch.tensor([1]), 0)
    counts = Counts.zeros(1, 1, 2, 1)
    for count in (counts.intersection, counts.mask_pixels, counts.mask_pixels_under_mask):
        count += 2**53 - 2  # and beyond what float64 counts
    for _ in range(3):
        counts.add(whole, torch.tensor([0]), annotation, torch.ones(2, 1).bool())
    expected = 2**53 - 2 + 3 * side**2
    assert counts.intersection.flatten().tolist() == [expected, expected]
    assert int(counts.mask_pixels) == int(counts.mask_pixels_under_mask) == expected
    assert counts.mask_pixels_concept.flatten().tolist() == [3 * side**2] * 2
    assert int(counts.mask_pixels_annotated) == 3 * side**2


@given(st.integers(2, 200), st.integers(0, 2**63 - 1))
def test_a_derangement_moves_everything_once(count, seed):
    moved = derangement(count, torch.Generator().manual_seed(seed))
    assert sorted(moved.tolist()) == list(range(count))
    assert (moved != torch.arange(count)).all()
    assert moved.equal(derangement(count, torch.Generator().manual_seed(seed)))


def test_derangements_differ_by_seed_and_need_two():
    drawn = {tuple(derangement(6, torch.Generator().manual_seed(seed)).tolist()) for seed in range(50)}
    assert len(drawn) > 20
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, torch.Generator())


def test_largest():
    values = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 6.0]])
    assert largest(values, 2).tolist() == [[3.0, 6.0], [2.0, 5.0]]
    assert largest(values, 9).tolist() == [[3.0, 6.0], [2.0, 5.0], [1.0, 4.0]]


def test_places_are_half_pixel_centers():
    axis = interpolation(2, 4)
    assert axis.places == (Fraction(0), Fraction(1, 4), Fraction(3, 4), Fraction(1))
    assert axis.weights.tolist() == [[4, 0], [3, 1], [1, 3], [0, 4]]
