"""The generated scenes: what stands where, and the concept that labels the whole image."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from pipeline.sources.drawing import furniture, objects
from pipeline.sources.drawing.canvas import Pen
from pipeline.sources.drawing.objects import cloth, pick
from pipeline.sources.drawing.palette import BRIGHT, TEXTURES, Surface


class Kind(NamedTuple):
    """Things of one kind that a scene holds some of, farther ones higher up and smaller.

    Attributes:
        draw: draws one of them.
        number: fewest and most, both included.
        ground: farthest and nearest place of its lowest point.
        height: its height there.
        aspect: its width over its height.
        tilt: largest angle to either side.
    """

    draw: Callable[[Pen], None]
    number: tuple[int, int]
    ground: tuple[float, float]
    height: tuple[float, float]
    aspect: float
    tilt: float = 0.0


def _scatter(pen: Pen, *kinds: Kind) -> None:
    """Draw things at random places, those that stand nearer over those that stand farther."""
    rng = pen.rng
    things = []
    for kind in kinds:
        for depth in rng.uniform(0, 1, rng.integers(kind.number[0], kind.number[1] + 1)):
            height = (kind.height[0] + (kind.height[1] - kind.height[0]) * depth) * rng.uniform(0.85, 1.15)
            ground = kind.ground[0] + (kind.ground[1] - kind.ground[0]) * depth
            tilt = rng.uniform(-kind.tilt, kind.tilt)
            things.append(
                (
                    ground,
                    kind.draw,
                    pen.at(rng.uniform(0.04, 0.96), ground, kind.aspect * height, height, tilt),
                )
            )
    for _, draw, at in sorted(things, key=lambda thing: thing[0]):
        draw(at)


def street(pen: Pen) -> None:
    rng = pen.rng
    curb = rng.uniform(0.58, 0.7)
    objects.sky(pen, curb)
    x = -0.1
    while x < 1:
        width, height = rng.uniform(0.24, 0.4), rng.uniform(0.35, 0.6)
        if rng.random() < 0.65:
            objects.building(pen.at(x + width / 2, curb, width, height))
        else:
            objects.house(pen.at(x + width / 2, curb, width, 0.32), pick(rng, "brick", "painted"))
        x += width + rng.uniform(0, 0.1)
    pen.box(0, curb, 1, curb + 0.07, Surface(pick(rng, "grey", "silver", "tan"), "concrete"), object="sidewalk")
    pen.box(0, curb + 0.07, 1, 1, Surface(pick(rng, "slate", "grey", "charcoal")), object="road")
    middle, shift = (curb + 1.09) / 2, rng.uniform(0, 0.2)
    for left in np.arange(-0.2, 1.1, 0.22):
        pen.box(
            left + shift,
            middle,
            left + shift + 0.11,
            middle + 0.014,
            Surface(pick(rng, "white", "white", "yellow")),
        )
    _scatter(
        pen,
        Kind(objects.tree, (0, 2), (curb + 0.02, curb + 0.06), (0.34, 0.44), 0.62),
        Kind(objects.streetlight, (0, 2), (curb + 0.03, curb + 0.06), (0.42, 0.52), 0.12),
        Kind(objects.person, (0, 2), (curb + 0.05, curb + 0.1), (0.2, 0.26), 0.34),
        Kind(objects.car, (1, 3), (curb + 0.15, 0.97), (0.14, 0.24), 2.0),
    )


def beach(pen: Pen) -> None:
    rng = pen.rng
    horizon, shore = rng.uniform(0.3, 0.45), rng.uniform(0.55, 0.68)
    objects.sky(pen, horizon + 0.01)
    if rng.random() < 0.3:
        objects.mountain(pen.at(rng.uniform(0, 1), horizon + 0.01, rng.uniform(0.4, 0.7), 0.16), False)
    sea = Surface(pick(rng, "blue", "aqua", "teal", "navy"), "water")
    pen.box(0, horizon, 1, 1, sea, object="sea")
    _scatter(
        pen,
        Kind(objects.boat, (0, 3), (horizon + 0.05, shore - 0.04), (0.14, 0.24), 0.9),
    )
    sand = Surface(pick(rng, "sand", "sand", "tan", "mist"), "sand")
    pen.ridge(shore, 0.05, 2, sand, object="sand")
    for _ in range(rng.integers(0, 3)):
        towel = pen.at(rng.uniform(0.15, 0.85), rng.uniform(shore + 0.15, 0.97), 0.24, 0.09)
        towel.polygon([(0.2, 0), (1, 0), (0.8, 1), (0, 1)], cloth(rng, 0.9), object="towel")
    _scatter(
        pen,
        Kind(objects.palm, (0, 2), (shore + 0.08, 0.96), (0.5, 0.75), 0.62, 0.12),
        Kind(objects.umbrella, (0, 2), (shore + 0.1, 0.96), (0.28, 0.38), 1.0, 0.2),
        Kind(objects.person, (0, 3), (shore + 0.08, 0.97), (0.22, 0.34), 0.34),
    )
    if rng.random() < 0.4:
        ball = pen.at(rng.uniform(0.1, 0.9), rng.uniform(0.8, 0.96), 0.1, 0.1)
        ball.oval(0, 0, 1, 1, Surface(pick(rng, *BRIGHT), "", "striped", "white"), object="ball")


def forest(pen: Pen) -> None:
    rng = pen.rng
    ground = rng.uniform(0.5, 0.65)
    objects.sky(pen, ground)
    pen.box(
        0,
        rng.uniform(0.12, 0.35),
        1,
        ground + 0.02,
        Surface("dark green", "foliage"),
        object="tree",
        part="crown",
    )
    floor = [
        ("green", "grass", "grass"),
        ("lime", "grass", "grass"),
        ("brown", "", "earth"),
        ("orange", "foliage", "earth"),
    ]
    shade, material, name = floor[int(rng.integers(len(floor)))]
    pen.ridge(ground, 0.04, 2, Surface(shade, material), object=name)
    if rng.random() < 0.5:
        x = rng.uniform(0.25, 0.75)
        way = [(0.5, ground - 0.01), (0.54, ground - 0.01), (x + 0.2, 1), (x - 0.2, 1)]
        pen.polygon(way, Surface(pick(rng, "tan", "sand", "grey")), object="path")
    _scatter(
        pen,
        Kind(objects.tree, (4, 8), (ground + 0.03, 0.96), (0.45, 0.95), 0.55),
        Kind(objects.bush, (0, 3), (ground + 0.1, 0.98), (0.1, 0.17), 1.6),
        Kind(objects.rock, (0, 2), (ground + 0.1, 0.98), (0.06, 0.11), 1.6),
        Kind(objects.flower, (0, 5), (ground + 0.15, 0.98), (0.14, 0.22), 0.6),
        Kind(objects.person, (0, 1), (ground + 0.12, 0.95), (0.26, 0.36), 0.34),
        Kind(objects.bird, (0, 2), (0.12, 0.4), (0.06, 0.1), 1.5),
    )


def desert(pen: Pen) -> None:
    rng = pen.rng
    horizon = rng.uniform(0.4, 0.58)
    objects.sky(pen, horizon + 0.12)
    for _ in range(rng.integers(0, 3)):
        width = rng.uniform(0.4, 0.8)
        objects.mountain(pen.at(rng.uniform(0, 1), horizon + 0.06, width, 0.3 * width), False)
    dunes = Surface(pick(rng, "sand", "tan", "amber", "sand"), "sand")
    for step in range(3):
        pen.ridge(horizon + 0.02 + 0.14 * step, 0.1, 2, dunes, object="sand")
    _scatter(
        pen,
        Kind(objects.rock, (0, 4), (horizon + 0.15, 0.98), (0.06, 0.14), 1.5),
        Kind(objects.cactus, (1, 4), (horizon + 0.12, 0.98), (0.26, 0.5), 0.6),
        Kind(objects.bird, (0, 2), (0.1, 0.35), (0.06, 0.1), 1.5),
        Kind(objects.person, (0, 1), (horizon + 0.2, 0.95), (0.2, 0.32), 0.34),
    )


def snow(pen: Pen) -> None:
    rng = pen.rng
    horizon = rng.uniform(0.5, 0.66)
    objects.sky(pen, horizon + 0.08)
    for _ in range(rng.integers(2, 5)):
        width = rng.uniform(0.5, 0.9)
        objects.mountain(pen.at(rng.uniform(0, 1), horizon + 0.06, width, rng.uniform(0.5, 0.75) * width), True)
    ground = [("white", "snow", "snow"), ("mist", "snow", "snow"), ("green", "grass", "grass")]
    shade, material, name = ground[int(rng.integers(len(ground)))]
    pen.ridge(horizon + 0.02, 0.05, 2, Surface(shade, material), object=name)
    _scatter(
        pen,
        Kind(objects.rock, (0, 2), (horizon + 0.15, 0.98), (0.06, 0.12), 1.5),
        Kind(partial(objects.house, material="wood"), (0, 1), (horizon + 0.1, 0.85), (0.22, 0.34), 1.2),
        Kind(objects.pine, (1, 6), (horizon + 0.06, 0.98), (0.2, 0.5), 0.55),
        Kind(objects.person, (0, 2), (horizon + 0.2, 0.96), (0.2, 0.3), 0.34),
    )


def _room(pen: Pen, wall: Surface, floor: Surface) -> float:
    edge = float(pen.rng.uniform(0.62, 0.74))
    pen.box(0, 0, 1, edge, wall, object="wall")
    pen.box(0, edge, 1, 1, floor, object="floor")
    pen.box(0, edge - 0.02, 1, edge, Surface("white", "wood"), object="wall")
    return edge


def bedroom(pen: Pen) -> None:
    rng = pen.rng
    shade = pick(rng, "peach", "sky blue", "sand", "mist", "pink", "lime", "silver")
    wall = Surface(shade, "painted")
    if rng.random() < 0.45:
        wall = Surface(shade, "wallpaper", pick(rng, "striped", "polka-dotted", "dotted", "lined"), "white", 1.2)
    floor = Surface(pick(rng, "brown", "tan", "brick red"), "wood")
    if rng.random() < 0.35:
        floor = Surface(pick(rng, "grey", "sand", "purple", "blue"), "carpet")
    edge = _room(pen, wall, floor)
    side = rng.uniform(0.12, 0.3)
    if rng.random() < 0.75:
        view = pen.at(rng.uniform(0.5, 0.75), rng.uniform(0.36, 0.44), rng.uniform(0.2, 0.3), rng.uniform(0.22, 0.3))
        objects.window(view)
        furniture.curtains(view)
    if rng.random() < 0.65:
        furniture.painting(pen.at(side, rng.uniform(0.26, 0.36), rng.uniform(0.14, 0.22), rng.uniform(0.12, 0.2)))
    if rng.random() < 0.6:
        furniture.rug(
            pen.at(rng.uniform(0.3, 0.7), rng.uniform(0.92, 0.98), rng.uniform(0.4, 0.7), rng.uniform(0.12, 0.2))
        )
    furniture.drawers(pen.at(side, edge + 0.04, 0.2, 0.22))
    if rng.random() < 0.75:
        furniture.lamp(pen.at(side, edge - 0.17, 0.13, 0.2))
    height = rng.uniform(0.36, 0.44)
    furniture.bed(pen.at(rng.uniform(0.52, 0.7), edge + rng.uniform(0.1, 0.2), rng.uniform(0.55, 0.68), height))
    _scatter(
        pen,
        Kind(objects.person, (0, 1), (0.94, 0.97), (0.4, 0.5), 0.34),
    )


def kitchen(pen: Pen) -> None:
    rng = pen.rng
    wall = Surface(
        pick(rng, "mist", "sky blue", "sand", "peach", "silver", "teal"), pick(rng, "tile", "tile", "painted")
    )
    floor = Surface(
        pick(rng, "white", "sand"), "tile", "chequered", pick(rng, "black", "grey", "brick red", "blue"), 1.4
    )
    if rng.random() < 0.4:
        floor = Surface(pick(rng, "brown", "tan"), "wood")
    edge = _room(pen, wall, floor)
    fronts = Surface(pick(rng, "white", "tan", "brown", "sky blue", "green"), pick(rng, "wood", "painted"))
    top = edge - 0.22
    if rng.random() < 0.6:
        view = pen.at(rng.uniform(0.4, 0.6), top - 0.08, rng.uniform(0.18, 0.24), rng.uniform(0.18, 0.24))
        objects.window(view)
    for x in (0.16, 0.84):
        if rng.random() < 0.7:
            furniture.cupboard(pen.at(x, rng.uniform(0.2, 0.26), 0.28, 0.2), fronts, 2)
    furniture.cupboard(pen.at(0.5, edge + 0.03, 1.0, 0.24), fronts, 5)
    stone = Surface(pick(rng, "charcoal", "grey", "tan", "white"), "granite")
    pen.box(0, top - 0.015, 1, top + 0.025, stone, object="countertop")
    places = [float(x) for x in rng.permutation((0.2, 0.5, 0.8))]
    if rng.random() < 0.85:
        furniture.stove(pen.at(places[0], edge + 0.05, 0.24, 0.3))
        furniture.pot(pen.at(places[0] + 0.03, top - 0.01, 0.11, 0.08))
    if rng.random() < 0.7:
        furniture.refrigerator(pen.at(places[1], edge + 0.05, 0.24, rng.uniform(0.52, 0.6)))
    if rng.random() < 0.7:
        furniture.table(pen.at(rng.uniform(0.3, 0.7), 0.97, rng.uniform(0.36, 0.5), 0.22))
    _scatter(
        pen,
        Kind(furniture.chair, (0, 2), (0.95, 0.98), (0.26, 0.32), 0.6),
        Kind(objects.person, (0, 1), (0.95, 0.97), (0.4, 0.5), 0.34),
    )


def underwater(pen: Pen) -> None:
    rng = pen.rng
    bottom = rng.uniform(0.74, 0.88)
    pen.box(0, 0, 1, 1, Surface(pick(rng, "blue", "aqua", "teal", "navy"), "water"), object="water")
    pen.ridge(bottom, 0.08, 2, Surface(pick(rng, "sand", "tan", "grey"), "sand"), object="sand")
    _scatter(
        pen,
        Kind(objects.rock, (0, 3), (bottom + 0.04, 0.99), (0.1, 0.22), 1.4),
        Kind(objects.seaweed, (1, 5), (bottom + 0.03, 1.0), (0.3, 0.6), 0.4),
        Kind(objects.fish, (2, 6), (0.2, 0.85), (0.1, 0.26), 1.7, 0.35),
    )
    for _ in range(rng.integers(0, 8)):
        x, y, r = rng.uniform(0, 1), rng.uniform(0, 0.7), rng.uniform(0.008, 0.02)
        pen.oval(x - r, y - r, x + r, y + r, Surface("mist"))


SCENES: dict[str, Callable[[Pen], None]] = {
    "street-s": street,
    "beach-s": beach,
    "forest-broadleaf-s": forest,
    "desert-sand-s": desert,
    "mountain_snowy-s": snow,
    "bedroom-s": bedroom,
    "kitchen-s": kitchen,
    "underwater-s": underwater,
}


def swatch(pen: Pen) -> list[str]:
    """Fill the image with one to three textures on top of one another; the textures, dominant first."""
    rng = pen.rng
    names = [str(name) for name in rng.permutation(sorted(TEXTURES))[: rng.choice(3, p=(0.45, 0.4, 0.15)) + 1]]
    shades = [str(shade) for shade in rng.permutation((*BRIGHT, "black", "brown"))[: len(names) + 1]]
    scale = rng.uniform(1.6, 2.6)
    for layer, name in enumerate(names):
        ground = Surface(
            shades[0] if layer == 0 else shades[layer + 1], "", name, shades[layer + 1], scale / (layer + 1)
        )
        corners = [(-0.01, -0.01), (1.01, -0.01), (1.01, 1.01), (-0.01, 1.01)]
        (pen.figure if layer else pen.polygon)(corners, ground)
    return names
