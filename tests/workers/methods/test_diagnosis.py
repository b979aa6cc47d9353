"""Moments against numpy's corrcoef on all cells; groups against a search along links."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workers.methods import diagnosis
from workers.methods.diagnosis import Moments, correlations, is_aliased, link, moments, most_alike

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)

SMALL = st.floats(-4, 4, width=32).map(lambda value: round(value, 2))
ACTIVATIONS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=SMALL)
)


def cells_of(activation: np.ndarray) -> np.ndarray:
    return activation.transpose(1, 0, 2, 3).reshape(activation.shape[1], -1).astype(np.float64)  # unit cell


def numpys(activation: np.ndarray) -> np.ndarray:
    """`numpy.corrcoef` of all cells, NaN for constant units."""
    cells = cells_of(activation)
    varies = (cells != cells[:, :1]).any(1)
    expected = np.full((len(cells), len(cells)), np.nan)
    if varies.any():
        expected[np.ix_(varies, varies)] = np.corrcoef(cells[varies])
    return expected


@quick
@given(ACTIVATIONS, SMALL)
def test_correlations_are_numpys(activation, center):
    found = moments(torch.tensor(activation), torch.full((activation.shape[1],), center, dtype=torch.float64))
    np.testing.assert_allclose(correlations(found).numpy(), numpys(activation), atol=1e-9)
    cells = cells_of(activation)
    assert found.num_cells == cells.shape[1]
    assert found.num_positive.tolist() == (cells > 0).sum(1).tolist()
    assert found.smallest.tolist() == cells.min(1).tolist()
    assert found.largest.tolist() == cells.max(1).tolist()


@quick
@given(ACTIVATIONS, st.floats(0, 1))
def test_parts_add_up_to_the_whole(activation, place):
    center = torch.zeros(activation.shape[1], dtype=torch.float64)
    cut = 1 + int(place * len(activation))
    activation = np.concatenate([activation, activation[::-1]])  # two images at least
    parts = [moments(torch.tensor(part), center) for part in (activation[:cut], activation[cut:])]
    found = Moments.none(activation.shape[1]) + parts[0] + parts[1]
    whole = moments(torch.tensor(activation), center)
    torch.testing.assert_close(found.product, whole.product)
    torch.testing.assert_close(found.sum, whole.sum)
    assert found.num_cells == whole.num_cells
    assert found.num_positive.equal(whole.num_positive)


def test_a_batch_that_is_taken_in_portions_is_the_same(monkeypatch):
    activation = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    center = torch.zeros(3, dtype=torch.float64)
    whole = moments(activation, center)
    monkeypatch.setattr(diagnosis, "CELLS", 100)
    torch.testing.assert_close(moments(activation, center).product, whole.product)


def test_a_spread_of_a_millionth_of_the_mean_is_seen():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(50, 1, 6, 6))
    activation = (1000 + 0.001 * (shared + generator.normal(size=(50, 3, 6, 6)))).astype(np.float32)
    found = moments(torch.tensor(activation), torch.tensor(cells_of(activation).mean(1)))
    np.testing.assert_allclose(correlations(found).numpy(), numpys(activation), atol=1e-9)


def test_of_units_in_a_row_the_lowest_stands_for_all():
    first = np.random.default_rng(0).normal(size=(200, 1, 2, 2))
    step = np.random.default_rng(1).normal(size=(200, 3, 2, 2)) * 0.12
    chain = np.concatenate([first + step[:, :1] + step[:, 1:2], first + step[:, :1], first, -first, 0 * first], axis=1)
    found = correlations(moments(torch.tensor(chain, dtype=torch.float32), torch.zeros(5, dtype=torch.float64)))
    assert found[0, 2] < 0.99 < min(found[0, 1], found[1, 2])
    assert link(found, 0.99).tolist() == [0, 0, 0, 3, 4]  # what is opposite is no duplicate, what is constant none
    unit, value = most_alike(found)
    assert unit.tolist()[1:] == [2 if found[1, 2] > found[0, 1] else 0, 1, 0, -1]
    assert math.isnan(value[4])


@quick
@given(
    st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.sampled_from([-1, 0.5, 0.995, np.nan])))
)
def test_groups_are_what_a_search_finds(matrix):
    upper = np.triu(matrix, 1)
    correlation = upper + upper.T + np.diag(np.where(np.isnan(np.diag(matrix)), np.nan, 1.0))
    expected = []
    for unit in range(len(correlation)):
        seen, todo = {unit}, [unit]
        while todo:
            row = correlation[todo.pop()]
            near = {other for other in range(len(row)) if row[other] > 0.99} - seen
            seen |= near
            todo += near
        expected.append(min(seen))
    assert link(torch.tensor(correlation), 0.99).tolist() == expected


def test_exact_copies_are_alike_and_the_lowest_is_named():
    one = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([one, 1 - one, one, 2 * one + 1, one], dim=1)
    found = correlations(moments(copies, copies.double().mean((0, 2, 3))))
    assert link(found, 0.99).tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1, 1, 1, 1], dtype=torch.float64))
    assert found.max() <= 1


def test_a_unit_alone_is_like_none():
    unit, value = most_alike(torch.ones(1, 1, dtype=torch.float64))
    assert unit.tolist() == [-1]
    assert math.isnan(value[0])


@quick
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_dead_units_are_like_none_and_no_units_duplicates(units, seed):
    generator = torch.Generator().manual_seed(seed)
    activation = torch.rand(4, units, 2, 2, generator=generator)
    activation[:, 1] = 0
    found = correlations(moments(activation, torch.zeros(units, dtype=torch.float64)))
    assert found[1].isnan().all()
    assert most_alike(found)[0][1] == -1
    assert (most_alike(found)[0] != 1).all()
    assert link(found, -2.0)[1] == 1


def test_aliasing_is_what_patterns_have_beyond_images_and_noise():
    share, images = torch.tensor([0.5, 0.3, 0.5, torch.nan]), torch.tensor([0.2, 0.2, 0.4, 0.2])
    assert is_aliased(share, images, 0.0, 0.2).tolist() == [True, False, False, False]
    assert is_aliased(share, images, 0.25, 0.2).tolist() == [True, False, False, False]
    assert is_aliased(share, images, 0.35, 0.2).tolist() == [False] * 4
