"""What the generated scenes are painted with: concept numbers, shades, materials, textures.

Numbers up to 1197 are those of the published `label.csv`, so that a name means the same there and here; later
ones are names that it lacks. `x` and `y` are coordinates of pixel centers in the unit square, y downwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
Bits = NDArray[np.bool_]

NUMBERS = {
    "black-c": 1, "grey-c": 2, "white-c": 3, "brown-c": 4, "green-c": 5, "pink-c": 6, "purple-c": 7,
    "blue-c": 8, "yellow-c": 9, "red-c": 10, "orange-c": 11, "wall": 12, "sky": 13, "floor": 14,
    "windowpane": 15, "tree": 16, "wood": 17, "building": 18, "person": 19, "painted": 20, "head": 21,
    "leg": 22, "door": 23, "fabric": 24, "torso": 26, "table": 27, "arm": 28, "eye": 29, "glass": 30,
    "road": 31, "grass": 33, "metal": 34, "plant": 35, "chair": 37, "car": 38, "painting": 40,
    "carpet": 41, "sidewalk": 43, "wheel": 44, "cabinet": 45, "tile": 49, "lamp": 50, "hair": 51,
    "curtain": 54, "mountain": 56, "street-s": 59, "streetlight": 60, "bed": 61, "handle": 64,
    "tail": 66, "earth": 68, "headlight": 73, "drawer": 74, "water": 75, "flower": 79, "granite": 80,
    "back": 81, "shade": 82, "bedroom-s": 83, "ceramic": 84, "rock": 85, "seat": 86, "pot": 89,
    "body": 98, "knob": 99, "pillow": 101, "base": 102, "headboard": 103, "top": 108, "stove": 116,
    "wing": 117, "roof": 120, "boat": 123, "bird": 128, "house": 131, "pane": 133, "kitchen-s": 134,
    "sea": 135, "path": 146, "towel": 165, "frame": 166, "bush": 169, "oven": 179, "refrigerator": 191,
    "palm": 200, "brick": 202, "chimney": 206, "sand": 208, "countertop": 214, "wallpaper": 215,
    "snow": 224, "skin": 230, "concrete": 244, "bedclothes": 248, "umbrella": 257, "dotted": 276,
    "banded": 290, "striped": 295, "ball": 300, "mountain_snowy-s": 333, "crosshatched": 338,
    "polka-dotted": 342, "grid": 343, "zigzagged": 356, "spiralled": 359, "cloud": 366, "lined": 372,
    "chequered": 382, "rubber": 405, "trunk": 406, "forest-broadleaf-s": 429, "foliage": 437,
    "beach-s": 457, "fish": 566, "desert-sand-s": 723, "cactus": 1075, "underwater-s": 1198,
    "crown": 1199, "sun": 1200, "hull": 1201, "sail": 1202, "mast": 1203, "fin": 1204, "petal": 1205,
    "stem": 1206, "canopy": 1207, "burner": 1208,
}  # fmt: skip

SHADES = {
    "black": ("black-c", (0.10, 0.10, 0.11)),
    "charcoal": ("black-c", (0.19, 0.19, 0.20)),
    "grey": ("grey-c", (0.52, 0.52, 0.53)),
    "silver": ("grey-c", (0.68, 0.70, 0.72)),
    "slate": ("grey-c", (0.40, 0.42, 0.45)),
    "white": ("white-c", (0.93, 0.93, 0.92)),
    "mist": ("white-c", (0.84, 0.87, 0.89)),
    "brown": ("brown-c", (0.45, 0.28, 0.15)),
    "dark brown": ("brown-c", (0.32, 0.20, 0.11)),
    "tan": ("brown-c", (0.66, 0.48, 0.31)),
    "ebony": ("brown-c", (0.42, 0.27, 0.19)),
    "green": ("green-c", (0.28, 0.58, 0.22)),
    "dark green": ("green-c", (0.13, 0.37, 0.17)),
    "lime": ("green-c", (0.52, 0.72, 0.28)),
    "teal": ("green-c", (0.16, 0.52, 0.42)),
    "pink": ("pink-c", (0.94, 0.62, 0.72)),
    "peach": ("pink-c", (0.94, 0.74, 0.63)),
    "purple": ("purple-c", (0.50, 0.27, 0.62)),
    "blue": ("blue-c", (0.18, 0.38, 0.76)),
    "sky blue": ("blue-c", (0.50, 0.73, 0.93)),
    "navy": ("blue-c", (0.13, 0.20, 0.45)),
    "aqua": ("blue-c", (0.20, 0.56, 0.72)),
    "yellow": ("yellow-c", (0.96, 0.84, 0.24)),
    "sand": ("yellow-c", (0.89, 0.78, 0.52)),
    "red": ("red-c", (0.80, 0.15, 0.14)),
    "brick red": ("red-c", (0.67, 0.27, 0.20)),
    "orange": ("orange-c", (0.95, 0.54, 0.16)),
    "amber": ("orange-c", (0.93, 0.64, 0.36)),
}
"""Shade -> the color concept that it is labelled as, and its RGB in [0, 1]."""

BRIGHT = ("red", "blue", "yellow", "green", "orange", "purple", "pink", "white", "teal", "aqua")


@dataclass(frozen=True)
class Surface:
    """Paint and what it stands for.

    Attributes:
        shade: a key of `SHADES`.
        material: a key of `FINISHES`, or none.
        texture: a key of `TEXTURES`, or none; its figure is painted in `second`.
        second: the figure's shade.
        scale: the texture's period over the usual one.
    """

    shade: str
    material: str = ""
    texture: str = ""
    second: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Noise:
    """Two fields of noise over the same pixels: independent (sd 1) and smooth (about in [-1, 1])."""

    white: Plane
    smooth: Plane


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _bricks(x: Plane, y: Plane, noise: Noise) -> Plane:
    row = np.floor(y / 0.032)
    mortar = ((y / 0.032) % 1 < 0.22) | (((x / 0.07 + 0.5 * (row % 2)) % 1) < 0.1)
    return np.where(mortar, 1.28, 0.95 + 0.10 * np.sin(37.0 * np.floor(x / 0.07 + 0.5 * (row % 2)) + 11.0 * row))


def _glints(x: Plane, y: Plane, noise: Noise) -> Plane:
    return 1 + 0.22 * (((x + y) / 0.11) % 1 < 0.35)


FINISHES: dict[str, Callable[[Plane, Plane, Noise], Plane]] = {
    "brick": _bricks,
    "carpet": lambda x, y, noise: 1 + 0.09 * noise.white,
    "ceramic": lambda x, y, noise: 1 + 0.10 * (((x - y) / 0.16) % 1 < 0.25),
    "concrete": lambda x, y, noise: 1 + 0.05 * noise.white + 0.06 * noise.smooth,
    "fabric": lambda x, y, noise: 1 + 0.07 * np.sin(420 * x) * np.sin(420 * y) + 0.07 * noise.smooth,
    "foliage": lambda x, y, noise: 1 + 0.26 * np.sin(9 * noise.smooth + 70 * x) * np.sin(62 * y + 5 * noise.smooth),
    "glass": _glints,
    "granite": lambda x, y, noise: 1 + 0.16 * (noise.white > 0.9) - 0.18 * (noise.white < -0.9),
    "grass": lambda x, y, noise: 1 + 0.16 * np.sin(260 * x + 7 * noise.white) + 0.10 * noise.smooth,
    "hair": lambda x, y, noise: 1 + 0.20 * np.sin(300 * x),
    "metal": lambda x, y, noise: 1 + 0.16 * np.sin(14 * (x + 0.4 * y)),
    "painted": lambda x, y, noise: 1 + 0.03 * noise.smooth,
    "rock": lambda x, y, noise: 1 + 0.18 * noise.smooth + 0.07 * noise.white,
    "rubber": lambda x, y, noise: 1 + 0.04 * noise.white,
    "sand": lambda x, y, noise: 1 + 0.05 * noise.white + 0.06 * np.sin(90 * y + 5 * noise.smooth + 9 * x),
    "skin": lambda x, y, noise: 1 + 0.03 * noise.smooth,
    "snow": lambda x, y, noise: 1 + 0.05 * noise.smooth,
    "tile": lambda x, y, noise: np.where(((x / 0.075) % 1 < 0.12) | ((y / 0.075) % 1 < 0.12), 0.78, 1.03),
    "wallpaper": lambda x, y, noise: 1 + 0.04 * np.sin(180 * x),
    "water": lambda x, y, noise: 1 + 0.13 * np.sin(110 * y + 4 * noise.smooth + 2.5 * np.sin(21 * x)),
    "wood": lambda x, y, noise: 1 + 0.10 * np.sin(150 * y + 3 * noise.smooth + 2 * np.sin(5 * x)),
}
"""Material -> its relief: what the paint is multiplied by."""


def _dots(x: Plane, y: Plane, period: float, radius: float) -> Bits:
    row = np.floor(y / period)
    across, down = (x / period + 0.5 * (row % 2)) % 1 - 0.5, (y / period) % 1 - 0.5
    return across**2 + down**2 < radius**2


def _zigzag(x: Plane, y: Plane, period: float) -> Bits:
    return ((y + 1.2 * np.abs((x / (1.6 * period)) % 1 - 0.5) * period) / period) % 1 < 0.5


def _spiral(x: Plane, y: Plane, period: float) -> Bits:
    radius, turn = np.hypot(x - 0.5, y - 0.5), np.arctan2(y - 0.5, x - 0.5) / (2 * np.pi)
    return (radius / (1.3 * period) + turn) % 1 < 0.5


TEXTURES: dict[str, Callable[[Plane, Plane, float], Bits]] = {
    "banded": lambda x, y, p: (y / (2.4 * p)) % 1 < 0.38,
    "chequered": lambda x, y, p: (np.floor(x / (0.7 * p)) + np.floor(y / (0.7 * p))) % 2 < 1,
    "crosshatched": lambda x, y, p: (((x + y) / (0.7 * p)) % 1 < 0.28) | (((x - y) / (0.7 * p)) % 1 < 0.28),
    "dotted": lambda x, y, p: _dots(x, y, 0.62 * p, 0.3),
    "grid": lambda x, y, p: ((x / p) % 1 < 0.22) | ((y / p) % 1 < 0.22),
    "lined": lambda x, y, p: (y / (0.6 * p)) % 1 < 0.3,
    "polka-dotted": lambda x, y, p: _dots(x, y, 1.5 * p, 0.33),
    "spiralled": _spiral,
    "striped": lambda x, y, p: (x / (0.8 * p)) % 1 < 0.5,
    "zigzagged": lambda x, y, p: _zigzag(x, y, p),
}
"""Texture -> its figure, given the period."""


def relief(material: str, x: Plane, y: Plane, noise: Noise) -> Plane:
    """What a material multiplies its paint by."""
    return FINISHES[material](x, y, noise) if material else np.ones_like(x)


def figure(texture: str, x: Plane, y: Plane, period: float, angle: float) -> Bits:
    """Where a texture is painted in its second shade."""
    if not texture:
        return np.zeros(x.shape, dtype=bool)
    return TEXTURES[texture](*(_turned(x, y, angle) if texture != "spiralled" else (x, y)), period)
