from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from workers.methods.detection import Jackknife, best_concepts, best_of_categories, ious, p_values, unions

COUNT = st.one_of(st.integers(0, 20), st.integers(0, 2**40))


@given(st.lists(st.tuples(COUNT, COUNT, COUNT), min_size=1, max_size=20))
def test_unions_and_ious_are_the_oracles(counts):
    triples = [(i, i + a, i + g) for i, a, g in counts]
    intersection, mask, label = (torch.tensor([part]) for part in zip(*triples, strict=True))
    union = unions(intersection, mask, label[0])
    assert union[0].tolist() == [a + g - i for i, a, g in triples]
    expected = [oracle.iou(i, a + g - i) for i, a, g in triples]
    assert ious(intersection, union)[0].tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=8))
def test_best_concept_is_the_first_of_the_largest_fractions(counts):
    among = [chosen for _, _, chosen in counts]
    if not any(among):
        among[0] = True
    union = [i + more for i, more, _ in counts]
    (best,) = best_concepts(
        torch.tensor([[i for i, _, _ in counts]]), torch.tensor([union]), torch.tensor(among)
    ).tolist()
    exact = [Fraction(i, u) if u else Fraction(0) for (i, _, _), u in zip(counts, union, strict=True)]
    assert best == min((place for place in range(len(counts)) if among[place]), key=lambda p: (-exact[p], p))


def test_best_concept_where_two_quotients_round_alike():
    big = 2**40
    intersection, union = torch.tensor([[big, big + 1]]), torch.tensor([[2 * big + 1, 2 * big + 3]])
    assert Fraction(big, 2 * big + 1) < Fraction(big + 1, 2 * big + 3)
    assert ious(intersection, union)[0, 0] == ious(intersection, union)[0, 1]
    both = torch.tensor([True, True])
    assert best_concepts(intersection, union, both).tolist() == [1]
    assert best_concepts(intersection.flip(1), union.flip(1), both).tolist() == [0]


def test_best_concept_of_a_unit_without_mask_is_the_first_allowed():
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    among = torch.tensor([False, True, True])
    assert best_concepts(nothing, nothing, among).tolist() == [1, 1]
    assert best_concepts(nothing, nothing + 5, among).tolist() == [1, 1]


@settings(deadline=None)
@given(st.lists(st.tuples(COUNT, COUNT, COUNT), min_size=2, max_size=9))
def test_jackknife_is_the_oracles(shards):
    intersections = [i for i, _, _ in shards]
    areas, labels = [i + a for i, a, _ in shards], [i + g for i, _, g in shards]
    unions_ = [a + g - i for i, a, g in zip(intersections, areas, labels, strict=True)]
    jackknife = Jackknife(torch.tensor([sum(intersections)]), torch.tensor([sum(unions_)]))
    for i, u in zip(intersections, unions_, strict=True):
        jackknife.leave_out(torch.tensor([i]), torch.tensor([u]))
    low, high = jackknife.interval()
    expected = oracle.jackknife(intersections, areas, labels)
    assert (low.item(), high.item()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 0 <= low.item() <= high.item() <= 1


def test_jackknife_needs_two_shards():
    jackknife = Jackknife(torch.tensor([1]), torch.tensor([2]))
    assert jackknife.interval() is None
    jackknife.leave_out(torch.tensor([1]), torch.tensor([2]))
    assert jackknife.interval() is None


def test_jackknife_covers_the_truth():
    """Shards drawn alike: the interval holds the true IoU about 95 times of 100."""
    generator = np.random.default_rng(0)
    draws, shards = 400, 40
    inside = generator.binomial(1000, 0.3, (shards, draws))  # of 1000 pixels of the union, 30% meet
    jackknife = Jackknife(torch.from_numpy(inside.sum(0)), torch.full((draws,), 1000 * shards))
    for shard in inside:
        jackknife.leave_out(torch.from_numpy(shard), torch.full((draws,), 1000))
    low, high = jackknife.interval()
    covered = ((low <= 0.3) & (high >= 0.3)).double().mean().item()
    assert 0.91 < covered < 0.985


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=1, max_size=9),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=1, max_size=20),
)
def test_p_values_are_the_oracles(values, null):
    found = p_values(torch.tensor(values, dtype=torch.float64), torch.tensor(null, dtype=torch.float64))
    assert found.tolist() == pytest.approx(oracle.p_values(values, null), rel=1e-15)
    assert found.min() > 0


@given(st.data())
def test_the_best_of_all_is_the_best_of_the_categories(data):
    concepts = data.draw(st.integers(1, 6))
    category = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=concepts, max_size=concepts)))
    counts = st.lists(st.lists(st.integers(0, 3), min_size=concepts, max_size=concepts), min_size=2, max_size=2)
    intersection = torch.tensor(data.draw(counts))  # few values: many ties
    union = intersection + torch.tensor(data.draw(counts))
    own = [category == one for one in category.unique().flip(0)]  # in another order than the concepts
    best = torch.stack([best_concepts(intersection, union, among) for among in own], 1)
    found = best_of_categories(best, intersection.gather(1, best), union.gather(1, best))
    every = torch.ones(concepts, dtype=torch.bool)
    assert found.tolist() == best_concepts(intersection, union, every).tolist()
