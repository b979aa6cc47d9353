"""k-means beside every possible partition, and beside its rounds in exact fractions."""

import itertools
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nn.clusters import ROUNDS, cluster

POINT = st.tuples(st.integers(-8, 8), st.integers(-8, 8))


def squared(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def mean(points):
    return tuple(sum(map(Fraction, axis)) / len(points) for axis in zip(*points, strict=True))


def naive_cluster(points, number):
    """The rounds in fractions; None where two choices are equally good, which rounding may decide."""
    middle = mean(points)
    distances = [squared(point, middle) for point in points]
    if len({p for p, d in zip(points, distances, strict=True) if d == min(distances)}) > 1:
        return None
    centers = [points[distances.index(min(distances))]]
    while len(centers) < number:
        distances = [min(squared(point, center) for center in centers) for point in points]
        if max(distances) == 0:
            break
        centers.append(points[distances.index(max(distances))])  # whole numbers: the first of the farthest
    assigned = None
    for _ in range(ROUNDS):
        nearest = []
        for point in points:
            distances = [squared(point, center) for center in centers]
            if distances.count(min(distances)) > 1:
                return None
            nearest.append(distances.index(min(distances)))
        if nearest == assigned:
            break
        assigned = nearest
        own = [[p for p, place in zip(points, assigned, strict=True) if place == c] for c in range(len(centers))]
        centers = [mean(members) if members else center for members, center in zip(own, centers, strict=True)]
    order = sorted(set(assigned), key=lambda place: (-assigned.count(place), assigned.index(place)))
    return [order.index(place) for place in assigned]


@settings(deadline=None, max_examples=150)
@given(st.lists(POINT, min_size=1, max_size=9), st.integers(1, 4))
def test_rounds_are_those_of_exact_fractions(points, number):
    expected = naive_cluster(points, number)
    if expected is not None:
        assert cluster(torch.tensor(points, dtype=torch.float64), number).tolist() == expected


def spread(points, partition):
    """Summed squares of distances from the means of clusters."""
    return sum(
        squared(point, mean([p for p, other in zip(points, partition, strict=True) if other == own]))
        for point, own in zip(points, partition, strict=True)
    )


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_groups_that_lie_apart_are_the_best_of_all_partitions(data):
    number = data.draw(st.integers(2, 3))
    near = st.tuples(st.integers(0, 2), st.integers(0, 2))
    groups = [data.draw(st.lists(near, min_size=1, max_size=3 - place)) for place in range(number)]
    tagged = [(x + 40 * place, y + 25 * (place == 1)) for place, group in enumerate(groups) for x, y in group]
    points = data.draw(st.permutations(tagged))
    best = min(itertools.product(range(number), repeat=len(points)), key=lambda partition: spread(points, partition))
    found = cluster(torch.tensor(points, dtype=torch.float64), number).tolist()
    assert len(set(zip(found, best, strict=True))) == len(set(found)) == number


@settings(deadline=None)
@given(st.lists(POINT, min_size=1, max_size=12), st.integers(1, 20))
def test_largest_first_and_never_more_than_points_differ(points, number):
    found = cluster(torch.tensor(points, dtype=torch.float32), number).tolist()
    sizes = [found.count(place) for place in range(max(found) + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0
    assert len(sizes) <= min(number, len(set(points)))
    for place, larger in enumerate(sizes[:-1]):
        if larger == sizes[place + 1]:
            assert found.index(place) < found.index(place + 1)
    alike = {point: {c for p, c in zip(points, found, strict=True) if p == point} for point in points}
    assert all(len(clusters) == 1 for clusters in alike.values())


def test_fewer_points_than_clusters_lie_in_one_each():
    points = torch.tensor([[1.0, 1], [5, 5], [1, 1], [9, 0], [5, 5], [1, 1]])
    assert cluster(points, 5).tolist() == [0, 1, 0, 2, 1, 0]
    assert cluster(torch.ones(4, 3), 2).tolist() == [0] * 4
    assert cluster(torch.ones(1, 3), 2).tolist() == [0]


def test_one_cluster_holds_all():
    assert cluster(torch.tensor([[0.0], [1], [100]]), 1).tolist() == [0, 0, 0]


def test_a_cluster_of_one_far_point_comes_after_a_larger_one():
    assert cluster(torch.tensor([[100.0], [0], [1], [2]]), 2).tolist() == [1, 0, 0, 0]


def test_the_same_points_fall_into_the_same_clusters():
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 16))).float()
    found = cluster(points, 7)
    torch.manual_seed(1)
    assert torch.equal(cluster(points, 7), found)
    assert torch.equal(cluster(points.double() * 4 + 1, 7), found)  # nor does it matter how long a unit is
    distances = torch.cdist(points.double(), torch.stack([points[found == c].double().mean(0) for c in range(7)]))
    assert torch.equal(distances.argmin(1), found)


def test_what_points_are_called_does_not_matter():
    """In another order they fall into the same clusters, whose sizes differ here."""
    groups = [torch.randn(size, 3, generator=torch.Generator().manual_seed(size)) for size in (9, 6, 3)]
    points = torch.cat([group + 50 * place for place, group in enumerate(groups)])
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    assert cluster(points, 3).tolist() == [0] * 9 + [1] * 6 + [2] * 3
    assert torch.equal(cluster(points[order], 3), cluster(points, 3)[order])
