import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import oracle
from workers.methods import tail_maps
from workers.methods.tail_maps import UnitStatistics, cut_tail, first_not_finite, sample_cells, spread

CELLS = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]), st.floats(-1e6, 1e6, width=32))
BOUNDS = st.one_of(CELLS, st.sampled_from([-np.inf, np.inf]))


@st.composite
def batches(draw):
    images, units, height, width = (draw(st.integers(1, 4)) for _ in range(4))
    activation = draw(arrays(np.float32, (images, units, height, width), elements=CELLS))
    return activation, draw(arrays(np.float32, units, elements=BOUNDS))


@settings(deadline=None)
@given(batches(), st.sampled_from([1, 9, tail_maps.PORTION]))
def test_cuts_what_a_loop_would(batch, portion):
    activation, bound = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_maps, "PORTION", portion)
        cut = cut_tail(torch.from_numpy(activation), torch.from_numpy(bound))
        without = cut_tail(torch.from_numpy(activation), torch.from_numpy(bound), keep_maps=False)
    tail, statistics = cut.maps, cut.statistics
    assert without.maps.kept.shape == (len(tail.kept), 0)
    assert len(without.maps.value) == 0
    for name in ("image", "unit", "max"):
        assert getattr(without.maps, name).equal(getattr(tail, name))
    assert without.statistics.sum.equal(statistics.sum)
    assert without.cells.value.equal(cut.cells.value)
    kept = [
        (image, unit)
        for image in range(len(activation))
        for unit in range(len(bound))
        if activation[image, unit].max() > bound[unit]
    ]
    assert list(zip(tail.image.tolist(), tail.unit.tolist(), strict=True)) == kept
    maps = spread(tail.kept, tail.value)
    for row, (image, unit) in enumerate(kept):
        own = activation[image, unit]
        near = oracle.beside(own > bound[unit])
        np.testing.assert_array_equal(tail.kept[row].view(own.shape).numpy(), near)
        np.testing.assert_array_equal(maps[row].view(own.shape).numpy(), np.where(near, own, -np.inf))
        assert tail.max[row].item() == own.max()
    for unit, level in enumerate(bound):
        cells = activation[:, unit]
        above = cut.cells.value[cut.cells.unit == unit].numpy()
        np.testing.assert_array_equal(np.sort(above), np.sort(cells[cells > level]))
        assert statistics.num_above[unit].item() == (cells > level).sum()
        assert statistics.num_at[unit].item() == (cells == level).sum()
        assert (statistics.max[unit].item(), statistics.min[unit].item()) == (cells.max(), cells.min())
        assert statistics.sum[unit].item() == pytest.approx(cells.sum(dtype=np.float64), rel=1e-12, abs=1e-9)


def test_the_tail_outlives_the_activation():
    """An in-place ReLU overwrites what was handed over; a batch of one image could be a view of it."""
    for images, units in [(1, 2), (3, 1), (2, 2)]:
        activation = -torch.arange(1.0, 1 + images * units * 9).view(images, units, 3, 3)
        before = activation.clone()
        cut = cut_tail(activation, torch.full((units,), -torch.inf))
        tail, statistics = cut.maps, cut.statistics
        sample = sample_cells(activation, 9)
        activation.relu_()
        assert tail.kept.all()
        assert tail.value.view(images, units, 3, 3).equal(before)
        assert tail.max.view(images, units).equal(before.amax((2, 3)))
        assert statistics.max.equal(before.amax((0, 2, 3)))
        assert sample.equal(before.transpose(0, 1).flatten(1).T)


@settings(deadline=None)
@given(batches(), batches())
def test_statistics_add_up(first, second):
    units = min(len(first[1]), len(second[1]))
    bound = torch.from_numpy(first[1][:units])
    parts = [torch.from_numpy(batch[0][:, :units]) for batch in (first, second)]
    total = UnitStatistics.none(units)
    for part in parts:
        total += cut_tail(part, bound).statistics
    cells = [torch.cat([part[:, unit].flatten() for part in parts]) for unit in range(units)]
    assert total.num_above.tolist() == [int((c > b).sum()) for c, b in zip(cells, bound, strict=True)]
    assert total.max.tolist() == [c.max().item() for c in cells]
    assert total.min.tolist() == [c.min().item() for c in cells]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finds_one_cell_that_is_not_finite(bad):
    activation = torch.zeros(3, 4, 2, 2)
    activation[1, 2, 1, 0] = bad
    activation[2, 0, 0, 0] = bad
    assert first_not_finite(activation) == (1, 2)


@settings(deadline=None)
@given(batches(), st.sampled_from([1, 5, tail_maps.SUMMED]))
def test_sums_do_not_depend_on_what_is_widened_at_once(batch, summed):
    activation, bound = (torch.from_numpy(part) for part in batch)
    whole = cut_tail(activation, bound).statistics.sum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_maps, "SUMMED", summed)
        patch.setattr(tail_maps, "PORTION", summed)
        assert cut_tail(activation, bound).statistics.sum.equal(whole)


def test_finds_infinities_that_cancel():
    activation = torch.zeros(2, 2, 1, 2)
    activation[1, 0] = torch.tensor([torch.inf, -torch.inf])
    assert first_not_finite(activation) == (1, 0)


def test_large_values_are_finite_though_their_float32_sum_is_not():
    activation = torch.full((2, 3, 8, 8), 3.4e38)
    assert torch.isinf(activation.sum())
    assert first_not_finite(activation) is None


@pytest.mark.parametrize("grid", [(1, 1), (13, 13), (1, 300), (300, 1), (55, 55), (2, 1000)])
@pytest.mark.parametrize("most", [1, 64, 256])
def test_samples_some_cells_of_any_grid(grid, most):
    activation = torch.arange(2.0 * 3 * grid[0] * grid[1]).view(2, 3, *grid)
    sample = sample_cells(activation, most)
    per_image = len(sample) // 2
    assert per_image >= 1
    if grid[0] == grid[1]:
        assert per_image <= 2 * most
    if grid[0] * grid[1] <= most:
        assert per_image == grid[0] * grid[1]
    for unit in range(3):
        assert set(sample[:, unit].tolist()) <= set(activation[:, unit].flatten().tolist())
