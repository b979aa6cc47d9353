"""The things in the generated scenes: drawn part by part, each in a frame of its own."""

import numpy as np

from pipeline.sources.drawing.canvas import Pen
from pipeline.sources.drawing.palette import BRIGHT, Surface

PATTERNS = ("striped", "polka-dotted", "chequered", "zigzagged", "crosshatched", "grid", "dotted", "lined")


def pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def cloth(rng: np.random.Generator, patterned: float = 0.6, scale: float = 1.0) -> Surface:
    """Fabric in a bright shade, with a texture in another one in a share `patterned` of cases."""
    ground, figure = (str(shade) for shade in rng.permutation(BRIGHT)[:2])
    if rng.random() < patterned:
        return Surface(ground, "fabric", pick(rng, *PATTERNS), figure, scale)
    return Surface(ground, "fabric")


def sky(pen: Pen, bottom: float) -> None:
    rng = pen.rng
    shade = pick(rng, "sky blue", "sky blue", "sky blue", "blue", "mist", "silver", "amber", "navy")
    pen.box(0, 0, 1, bottom, Surface(shade), object="sky")
    if rng.random() < 0.35:
        x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.2), rng.uniform(0.05, 0.08)
        pen.oval(x - r, y - r, x + r, y + r, Surface(pick(rng, "yellow", "orange", "white")), object="sun")
    for _ in range(rng.integers(0, 4)):
        x, y, w = rng.uniform(0, 1), rng.uniform(0.04, max(0.06, bottom - 0.15)), rng.uniform(0.1, 0.2)
        puff = Surface(pick(rng, "white", "mist"))
        for dx, dy in ((-0.5, 0.02), (0, 0), (0.5, 0.015)):
            half = w * rng.uniform(0.35, 0.5)
            pen.blob(
                x + dx * w - half,
                y + dy - half / 3,
                x + dx * w + half,
                y + dy + half / 3,
                puff,
                object="sky",
                part="cloud",
            )


def house(pen: Pen, material: str) -> None:
    rng = pen.rng
    shades = {
        "brick": ("brick red", "tan"),
        "wood": ("brown", "tan"),
        "painted": ("white", "peach", "yellow", "sky blue"),
    }
    roof = Surface(pick(rng, "brick red", "slate", "dark brown", "charcoal"), "tile")
    if rng.random() < 0.6:
        pen.box(0.68, 0.02, 0.8, 0.4, Surface("brick red", "brick"), object="house", part="chimney")
    pen.box(0.06, 0.4, 0.94, 1, Surface(pick(rng, *shades[material]), material), object="house", part="wall")
    pen.polygon([(-0.03, 0.43), (0.22, 0.1), (0.78, 0.1), (1.03, 0.43)], roof, object="house", part="roof")
    door = Surface(pick(rng, "brown", "red", "green", "navy", "white"), "wood")
    pen.box(0.42, 0.62, 0.58, 1, door, part="door")
    pen.oval(0.54, 0.79, 0.57, 0.83, Surface("yellow", "metal"), detail="knob")
    for left in (0.14, 0.68):
        _window(pen, left, 0.54, left + 0.18, 0.78)


def _window(pen: Pen, left: float, top: float, right: float, bottom: float, **labels: str) -> None:
    """A window of four panes; a part unless `labels` makes it an object."""
    pen.box(left, top, right, bottom, Surface("white", "wood"), **(labels or {"part": "windowpane"}))
    glass = Surface(pick(pen.rng, "sky blue", "aqua", "navy", "yellow"), "glass")
    width, height = right - left, bottom - top
    for u in (0.08, 0.54):
        for v in (0.08, 0.54):
            x, y = left + u * width, top + v * height
            pen.box(x, y, x + 0.38 * width, y + 0.38 * height, glass, detail="pane")


def window(pen: Pen) -> None:
    _window(pen, 0, 0, 1, 1, object="windowpane")


def building(pen: Pen) -> None:
    rng = pen.rng
    front = [
        ("brick red", "brick"),
        ("tan", "brick"),
        ("grey", "concrete"),
        ("slate", "concrete"),
        ("peach", "painted"),
    ]
    shade, material = front[int(rng.integers(len(front)))]
    pen.box(0, 0, 1, 1, Surface(shade, material), object="building")
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(3, 6))
    glass = Surface(pick(rng, "sky blue", "navy", "aqua", "yellow"), "glass")
    for row in range(rows):
        for column in range(columns):
            left, top = (column + 0.22) / columns, 0.05 + 0.75 * row / rows
            pen.box(left, top, left + 0.56 / columns, top + 0.48 / rows, glass, part="windowpane")
    pen.box(0.4, 0.85, 0.6, 1, Surface(pick(rng, "brown", "red", "green"), "wood"), part="door")


def car(pen: Pen) -> None:
    rng = pen.rng
    coat = Surface(pick(rng, "red", "blue", "yellow", "white", "silver", "green", "black", "orange"), "metal")
    cabin = [(0.2, 0.5), (0.32, 0.08), (0.7, 0.08), (0.86, 0.5)]
    pen.polygon(cabin, coat, object="car", part="roof")
    glass = Surface(pick(rng, "sky blue", "navy", "mist"), "glass")
    pen.polygon([(0.27, 0.46), (0.36, 0.16), (0.5, 0.16), (0.5, 0.46)], glass, part="windowpane")
    pen.polygon([(0.54, 0.46), (0.54, 0.16), (0.67, 0.16), (0.79, 0.46)], glass, part="windowpane")
    body = [(0.02, 0.55), (0.18, 0.46), (0.86, 0.46), (0.98, 0.56), (1, 0.82), (0, 0.82)]
    pen.polygon(body, coat, object="car", part="body")
    pen.box(0.5, 0.53, 0.58, 0.58, Surface("silver", "metal"), detail="handle")
    pen.oval(0.93, 0.56, 1, 0.67, Surface("yellow", "glass"), part="headlight")
    for x in (0.24, 0.78):
        pen.oval(x - 0.11, 0.62, x + 0.11, 1, Surface("black", "rubber"), object="car", part="wheel")
        pen.oval(x - 0.05, 0.73, x + 0.05, 0.89, Surface("silver", "metal"))


def person(pen: Pen) -> None:
    rng = pen.rng
    skin = Surface(pick(rng, "peach", "tan", "ebony", "peach"), "skin")
    shirt, trousers = cloth(rng, 0.5, 0.5), Surface(pick(rng, "navy", "charcoal", "grey", "brown"), "fabric")
    spread = rng.uniform(0.02, 0.14)
    for side in (-1, 1):
        hip, foot = 0.5 + side * 0.12, 0.5 + side * (0.12 + spread)
        pen.polygon(
            [(hip - 0.12, 0.58), (hip + 0.12, 0.58), (foot + 0.1, 1), (foot - 0.1, 1)],
            trousers, object="person", part="leg",
        )  # fmt: skip
        hand, reach = 0.5 + side * (0.34 + spread), rng.uniform(0.4, 0.62)
        shoulder = 0.5 + side * 0.24
        pen.polygon(
            [(shoulder - 0.08, 0.27), (shoulder + 0.08, 0.27), (hand + 0.08, reach), (hand - 0.08, reach)],
            skin, object="person", part="arm",
        )  # fmt: skip
    pen.polygon([(0.22, 0.25), (0.78, 0.25), (0.72, 0.62), (0.28, 0.62)], shirt, object="person", part="torso")
    pen.oval(0.28, 0, 0.72, 0.25, skin, object="person", part="head")
    hair = Surface(pick(rng, "black", "dark brown", "yellow", "brick red"), "hair")
    pen.polygon([(0.26, 0.12), (0.3, 0.02), (0.5, -0.03), (0.7, 0.02), (0.74, 0.12), (0.5, 0.07)], hair, detail="hair")
    for x in (0.4, 0.56):
        pen.oval(x, 0.11, x + 0.06, 0.15, Surface("black"), detail="eye")


def tree(pen: Pen) -> None:
    rng = pen.rng
    bark = Surface(pick(rng, "brown", "dark brown", "tan"), "wood")
    pen.polygon([(0.43, 0.4), (0.57, 0.4), (0.62, 1), (0.38, 1)], bark, object="tree", part="trunk")
    leaves = Surface(pick(rng, "green", "green", "dark green", "lime", "orange"), "foliage")
    for left, top, right, bottom in ((0, 0.2, 0.6, 0.62), (0.4, 0.2, 1, 0.62), (0.18, 0, 0.82, 0.5)):
        pen.blob(left, top, right, bottom, leaves, object="tree", part="crown")


def pine(pen: Pen) -> None:
    pen.box(0.44, 0.8, 0.56, 1, Surface("dark brown", "wood"), object="tree", part="trunk")
    needles = Surface(pick(pen.rng, "dark green", "dark green", "green", "teal"), "foliage")
    for top, half in ((0.42, 0.5), (0.2, 0.38), (0.0, 0.26)):
        pen.polygon(
            [(0.5, top), (0.5 + half, top + 0.45), (0.5 - half, top + 0.45)],
            needles,
            object="tree",
            part="crown",
        )


def palm(pen: Pen) -> None:
    trunk = [(0.46, 0.2), (0.53, 0.2), (0.5, 0.6), (0.44, 1), (0.34, 1), (0.43, 0.6)]
    pen.polygon(trunk, Surface("tan", "wood"), object="palm", part="trunk")
    leaf = Surface(pick(pen.rng, "green", "dark green", "lime"), "foliage")
    for x, y in ((0.0, 0.28), (0.04, 0.08), (0.3, 0.0), (0.7, 0.0), (0.97, 0.08), (1.0, 0.3)):
        bend = (0.5 + x) / 2, (0.2 + y) / 2 - 0.1
        pen.polygon(
            [(0.5, 0.25), (bend[0], bend[1]), (x, y), (bend[0], bend[1] + 0.1)],
            leaf,
            object="palm",
            part="crown",
        )


def bush(pen: Pen) -> None:
    pen.blob(0, 0, 1, 1.2, Surface(pick(pen.rng, "green", "dark green", "lime"), "foliage"), object="bush")


def flower(pen: Pen) -> None:
    rng = pen.rng
    pen.box(0.46, 0.3, 0.54, 1, Surface("green"), object="flower", part="stem")
    petals = Surface(pick(rng, "red", "pink", "purple", "yellow", "white"))
    for turn in np.arange(6) * np.pi / 3 + rng.uniform(0, 1):
        x, y = 0.5 + 0.3 * np.cos(turn), 0.3 + 0.18 * np.sin(turn)
        pen.oval(x - 0.2, y - 0.12, x + 0.2, y + 0.12, petals, object="flower", part="petal")
    pen.oval(0.36, 0.22, 0.64, 0.38, Surface(pick(rng, "yellow", "orange", "brown")), object="flower")


def cactus(pen: Pen) -> None:
    flesh = Surface(pick(pen.rng, "green", "dark green", "teal"), "", "lined", "lime", 0.4)
    pen.oval(0.38, 0, 0.62, 0.3, flesh, object="cactus", part="body")
    pen.box(0.38, 0.13, 0.62, 1, flesh, object="cactus", part="body")
    for elbow, top in ((0.12, 0.3), (0.88, 0.18)):
        pen.box(min(elbow, 0.5), 0.55, max(elbow, 0.5), 0.67, flesh, object="cactus", part="arm")
        pen.box(elbow - 0.1, top, elbow + 0.1, 0.67, flesh, object="cactus", part="arm")


def rock(pen: Pen) -> None:
    pen.blob(0, 0, 1, 1.1, Surface(pick(pen.rng, "grey", "slate", "brown", "tan"), "rock"), object="rock")


def mountain(pen: Pen, snow: bool) -> None:
    rng = pen.rng
    peak, notch = rng.uniform(0.35, 0.65), rng.uniform(-0.05, 0.05)
    stone = Surface(pick(rng, "slate", "grey", "brown", "tan"), "rock")
    pen.polygon([(0, 1), (peak, 0), (1, 1)], stone, object="mountain")
    if snow:
        left, right = peak * 0.68, peak + (1 - peak) * 0.32
        cap = [
            (left, 0.32),
            (peak, 0),
            (right, 0.32),
            ((peak + right) / 2, 0.24 + notch),
            (peak, 0.36),
            ((left + peak) / 2, 0.24),
        ]
        pen.polygon(cap, Surface("white", "snow"), part="top")


def bird(pen: Pen) -> None:
    feathers = Surface(pick(pen.rng, "black", "white", "brown", "grey"))
    pen.oval(0.25, 0.45, 0.75, 0.75, feathers, object="bird", part="body")
    pen.oval(0.66, 0.32, 0.86, 0.58, feathers, object="bird", part="head")
    pen.polygon([(0.35, 0.55), (0.6, 0.55), (0.3, 0.0)], feathers, object="bird", part="wing")
    pen.polygon([(0.28, 0.55), (0.28, 0.65), (0.0, 0.5)], feathers, object="bird", part="tail")


def fish(pen: Pen) -> None:
    rng = pen.rng
    shade, stripe = (str(name) for name in rng.permutation(("orange", "yellow", "red", "white", "purple", "pink"))[:2])
    scales = Surface(shade, "", pick(rng, "striped", "lined", "polka-dotted"), stripe, 0.7)
    plain = Surface(shade) if rng.random() < 0.5 else scales
    pen.polygon([(0.25, 0.5), (0, 0.15), (0.06, 0.5), (0, 0.85)], Surface(stripe), object="fish", part="tail")
    pen.polygon([(0.4, 0.25), (0.7, 0.25), (0.45, 0.0)], Surface(stripe), object="fish", part="fin")
    pen.oval(0.18, 0.14, 1, 0.86, plain, object="fish", part="body")
    pen.polygon([(0.5, 0.55), (0.62, 0.6), (0.42, 0.8)], Surface(stripe), part="fin")
    pen.oval(0.82, 0.32, 0.92, 0.5, Surface("white"), detail="eye")
    pen.oval(0.85, 0.37, 0.91, 0.47, Surface("black"), detail="eye")


def seaweed(pen: Pen) -> None:
    leaf = Surface(pick(pen.rng, "green", "dark green", "teal", "lime"))
    for x, phase in ((0.15, 0.0), (0.5, 2.0), (0.85, 4.0)):
        rows = np.linspace(1, pen.rng.uniform(0, 0.3), 10)
        sway = [(x + 0.1 * float(np.sin(7 * row + phase)), float(row)) for row in rows]
        pen.polygon(
            [*((u - 0.07, v) for u, v in sway), *((u + 0.07, v) for u, v in reversed(sway))],
            leaf,
            object="plant",
        )


def boat(pen: Pen) -> None:
    rng = pen.rng
    pen.box(0.48, 0, 0.52, 0.75, Surface("brown", "wood"), object="boat", part="mast")
    sail = cloth(rng, 0.5, 0.7) if rng.random() < 0.6 else Surface("white", "fabric")
    pen.polygon([(0.55, 0.05), (0.55, 0.66), (0.95, 0.66)], sail, object="boat", part="sail")
    pen.polygon([(0.45, 0.15), (0.45, 0.66), (0.12, 0.66)], sail, object="boat", part="sail")
    hull = Surface(pick(rng, "brown", "red", "white", "navy"), "wood")
    pen.polygon([(0, 0.74), (1, 0.74), (0.82, 1), (0.18, 1)], hull, object="boat", part="hull")


def umbrella(pen: Pen) -> None:
    pen.box(0.485, 0.3, 0.515, 1, Surface("silver", "metal"), object="umbrella", part="handle")
    arc = [(0.5 - 0.5 * float(np.cos(t)), 0.42 - 0.42 * float(np.sin(t))) for t in np.linspace(0, np.pi, 16)]
    pen.polygon(arc, cloth(pen.rng, 0.8), object="umbrella", part="canopy")


def streetlight(pen: Pen) -> None:
    steel = Surface(pick(pen.rng, "charcoal", "slate"), "metal")
    pen.box(0.42, 0.05, 0.58, 1, steel, object="streetlight")
    pen.box(0.42, 0.05, 1, 0.1, steel, object="streetlight")
    pen.oval(0.7, 0.07, 1.05, 0.17, Surface(pick(pen.rng, "yellow", "white"), "glass"), part="shade")
