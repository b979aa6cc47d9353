import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import oracle
from workers.methods.order_statistics import DIGITS, Selection, from_keys, ordered_keys

ANY = st.floats(width=32, allow_nan=False)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FEW = st.sampled_from(np.float32([-1, -0.0, 0.0, 1e-45, -1e-45, 1.1754942e-38, 1, 1.0000001]).tolist())


def select(ranks, portions):
    """Run all passes; `portions` are (unit, cells) in the order in which they arrive."""
    selection = Selection(torch.tensor(ranks))
    for _ in DIGITS:
        for unit, cells in portions:
            selection.count(torch.full((len(cells),), unit), torch.from_numpy(cells))
        selection.narrow()
    return selection.result()


@given(st.lists(ANY, min_size=1, max_size=60))
def test_keys_are_in_the_order_of_floats(values):
    cells = torch.tensor(values, dtype=torch.float32)
    keys = ordered_keys(cells)
    assert keys.min() >= 0
    assert keys.max() < 1 << 32
    below = cells[:, None] < cells[None]
    assert (below == (keys[:, None] < keys[None])).all()
    assert from_keys(keys).equal(cells + 0.0)


@settings(deadline=None)
@given(st.data(), st.sampled_from([FINITE, FEW, ANY]), st.randoms(use_true_random=False))
def test_selects_what_sorting_would(data, values, random):
    units = [data.draw(arrays(np.float32, st.integers(1, 30), elements=values)) for _ in range(3)]
    ranks = [data.draw(st.integers(0, len(cells) - 1)) for cells in units]
    portions = []
    for unit, cells in enumerate(units):
        cut = data.draw(st.integers(0, len(cells)))
        portions += [(unit, cells[:cut]), (unit, cells[cut:])]
    random.shuffle(portions)
    found, above = select(ranks, portions)
    for unit, cells in enumerate(units):
        expected = np.sort(cells)[::-1][ranks[unit]]
        assert found[unit].item() == expected
        assert above[unit].item() == (cells > expected).sum()


@given(arrays(np.float32, st.integers(1, 400), elements=FINITE), st.integers(1, 999))
@settings(deadline=None, max_examples=50)
def test_threshold_is_the_oracles(cells, thousandths):
    quantile = thousandths / 1000
    rank = thousandths * len(cells) // 1000
    found, above = select([rank], [(0, cells)])
    assert (found.item(), above.item()) == oracle.threshold(cells, quantile)


def test_minus_zero_is_zero():
    found, above = select([1], [(0, np.array([-0.0, 0.0, -1.0], np.float32))])
    assert (found.item(), above.item()) == (0.0, 0)
    assert not torch.signbit(found).any()


def test_more_cells_than_int32_counts_of_one_value():
    """Counters are int64: the same cells counted again and again pass 2^31."""
    selection = Selection(torch.tensor([2**31 + 5]))
    for _ in DIGITS:
        selection.count(torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 2.0]))
        selection._counts *= 2**31
        selection.narrow()
    found, above = selection.result()
    assert (found.item(), above.item()) == (1.0, 2**31)


def test_leaves_the_ranks_alone():
    rank = torch.tensor([1])
    selection = Selection(rank)
    selection.count(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    selection.narrow()
    assert rank.tolist() == [1]


def test_refuses_too_few_cells_and_too_few_passes():
    selection = Selection(torch.tensor([0, 2]))
    selection.count(torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"units \[1\] have too few cells"):
        selection.narrow()
    with pytest.raises(ValueError, match="passes over the cells are needed"):
        Selection(torch.tensor([0])).result()
