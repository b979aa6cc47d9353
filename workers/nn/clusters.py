"""k-means without chance: the same points fall into the same clusters wherever they are clustered."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ROUNDS = 50


def cluster(points: Float[Tensor, "point axis"], number: int) -> Int64[Tensor, " point"]:
    """Assign points to clusters by Lloyd's rounds; cluster 0 is the largest, ties by the first point.

    The first center is the point nearest to the mean, each next one the point farthest from all centers so far.

    Args:
        points: what to cluster.
        number: clusters wanted; at most as many are found as points differ.
    """
    points = points.double()
    first = (points - points.mean(0)).norm(dim=1).argmin()
    centers = points[first][None]
    for _ in range(1, number):
        distance = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        if distance.max() == 0:
            break
        centers = torch.cat([centers, points[distance.argmax()][None]])
    assigned = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        distance = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.argmin(1)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        members = [points[assigned == place] for place in range(len(centers))]
        centers = torch.stack([own.mean(0) if len(own) else old for own, old in zip(members, centers, strict=True)])
    sizes = assigned.bincount(minlength=len(centers))
    firsts = [int((assigned == place).int().argmax()) for place in range(len(centers))]
    order = sorted((place for place in range(len(centers)) if sizes[place]), key=lambda p: (-int(sizes[p]), firsts[p]))
    renamed = torch.empty(len(centers), dtype=torch.int64)
    renamed[order] = torch.arange(len(order))
    return renamed[assigned]
