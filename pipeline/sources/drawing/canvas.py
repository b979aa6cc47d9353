"""A canvas that paints an image and its label planes with the same strokes, so that labels are exact.

A stroke is a polygon. It is painted at twice the image's side, where its pixels get paint and labels alike;
the image is the mean of every 2x2 of them, the label map one of every 4x4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, sin, tau

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.sources.drawing.palette import NUMBERS, SHADES, Noise, Surface, figure, relief

Point = tuple[float, float]  # x, y
PLANES = ("color", "object", "part", "detail", "material", "texture")


class Canvas:
    """An image in the making: linear paint and one plane of concept numbers a category.

    Args:
        size: the image's side in pixels.
        rng: draws paint, textures, noise and light.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.side, self.rng = 2 * size, rng
        center = (np.arange(self.side, dtype=np.float32) + 0.5) / self.side
        self.y, self.x = np.meshgrid(center, center, indexing="ij")
        self.paint = np.zeros((self.side, self.side, 3), np.float32)  # y x channel
        self.planes = {name: np.zeros((self.side, self.side), np.uint16) for name in PLANES}
        self.noise = Noise(rng.standard_normal((self.side, self.side), np.float32), self._smooth(9) + self._smooth(31))

    def fill(self, points: Sequence[Point], surface: Surface, labels: dict[str, str], figure_only: bool) -> None:
        """Paint a polygon and label its pixels.

        A new object hides the parts below it, a new part the details below it; paint always brings its own
        color, material and texture.
        """
        window, inside = self._rasterize(points)
        if not inside.any():
            return
        x, y = self.x[window], self.y[window]
        period = float(self.rng.uniform(0.055, 0.085)) * surface.scale
        angle = float(self.rng.uniform(-0.12, 0.12))
        drawn = figure(surface.texture, x, y, period, angle)
        if figure_only:
            inside = inside & drawn
        shades = [SHADES[surface.shade], SHADES[surface.second or surface.shade]]
        dye = np.array([rgb for _, rgb in shades], np.float32) + self.rng.uniform(-0.035, 0.035, (2, 3))
        dye *= self.rng.uniform(0.9, 1.1)
        noise = Noise(self.noise.white[window], self.noise.smooth[window])
        paint = np.where(drawn[..., None], dye[1], dye[0]) * relief(surface.material, x, y, noise)[..., None]
        self.paint[window][inside] = paint[inside]

        numbers = np.where(drawn, NUMBERS[shades[1][0]], NUMBERS[shades[0][0]]).astype(np.uint16)
        self.planes["color"][window][inside] = numbers[inside]
        for plane, concept in _labels(surface, labels).items():
            self.planes[plane][window][inside] = NUMBERS[concept] if concept else 0

    def image(self, mirrored: bool) -> NDArray[np.uint8]:
        """The finished image in changing light, with a camera's noise: y x channel."""
        rng, half = self.rng, self.side // 2
        paint = self.paint[:, ::-1] if mirrored else self.paint
        paint = paint.reshape(half, 2, half, 2, 3).mean(axis=(1, 3))
        x, y = self.x[::2, ::2], self.y[::2, ::2]
        slope = rng.uniform(-0.16, 0.16, 2)
        light = rng.uniform(0.78, 1.08) + slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
        light = light - 0.22 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        tint = rng.uniform(0.95, 1.05, 3)
        grain = rng.uniform(0.008, 0.03) * rng.standard_normal((half, half, 3))
        return (np.clip(paint * light[..., None] * tint + grain, 0, 1) * 255 + 0.5).astype(np.uint8)

    def label_map(self, plane: str, mirrored: bool) -> NDArray[np.uint16]:
        """Concept numbers of one plane at half the image's side: y x."""
        labels = self.planes[plane][:, ::-1] if mirrored else self.planes[plane]
        return labels[2::4, 2::4]

    def _rasterize(self, points: Sequence[Point]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
        pixels = np.asarray(points) * self.side
        low = np.clip(np.floor(pixels.min(axis=0)).astype(int), 0, self.side)
        high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + 1, low, self.side)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        if (high == low).any():
            return window, np.zeros(tuple(high[::-1] - low[::-1]), dtype=bool)
        stencil = Image.new("L", tuple((high - low).tolist()))
        ImageDraw.Draw(stencil).polygon([(x, y) for x, y in (pixels - low).tolist()], fill=1)
        return window, np.asarray(stencil) > 0

    def _smooth(self, knots: int) -> NDArray[np.float32]:
        coarse = Image.fromarray(self.rng.uniform(-0.7, 0.7, (knots, knots)).astype(np.float32))
        return np.asarray(coarse.resize((self.side, self.side), Image.Resampling.BICUBIC))


def _labels(surface: Surface, labels: dict[str, str]) -> dict[str, str]:
    below = {"object": ("part", "detail"), "part": ("detail",), "detail": ()}
    written = {"material": surface.material, "texture": surface.texture}
    for plane in ("object", "part", "detail"):
        if plane in labels:
            written |= dict.fromkeys(below[plane], "") | {plane: labels[plane]}
    return written


@dataclass(frozen=True)
class Pen:
    """Draws on a canvas within a frame: (0, 0) is its top left corner, (1, 1) its bottom right.

    Labels are given by name: `object`, `part` (of the object), `detail` (of the part: the second part plane).
    """

    canvas: Canvas
    frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, width, height
    mirrored: bool = False
    tilt: float = 0.0  # radians about the frame's center

    @property
    def rng(self) -> np.random.Generator:
        return self.canvas.rng

    def at(self, x: float, ground: float, width: float, height: float, tilt: float = 0.0) -> "Pen":
        """A pen for a thing whose middle is at `x`, whose lowest point is at `ground`; mirrored at random."""
        frame = (x - width / 2, ground - height, width, height)
        return replace(self, frame=frame, mirrored=bool(self.rng.random() < 0.5), tilt=tilt)

    def polygon(self, points: Sequence[Point], surface: Surface, **labels: str) -> None:
        self.canvas.fill(self._placed(points), surface, labels, figure_only=False)

    def figure(self, points: Sequence[Point], surface: Surface, **labels: str) -> None:
        """Paint the figure of the surface's texture only, over what is there."""
        self.canvas.fill(self._placed(points), surface, labels, figure_only=True)

    def _placed(self, points: Sequence[Point]) -> list[Point]:
        left, top, width, height = self.frame
        placed = []
        for u, v in points:
            across, down = ((0.5 - u) if self.mirrored else (u - 0.5)) * width, (v - 0.5) * height
            x = left + width / 2 + across * cos(self.tilt) - down * sin(self.tilt)
            y = top + height / 2 + across * sin(self.tilt) + down * cos(self.tilt)
            placed.append((x, y))
        return placed

    def box(self, left: float, top: float, right: float, bottom: float, surface: Surface, **labels: str) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], surface, **labels)

    def oval(self, left: float, top: float, right: float, bottom: float, surface: Surface, **labels: str) -> None:
        x, y, across, down = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        turn = [tau * step / 32 for step in range(32)]
        self.polygon([(x + across * cos(t), y + down * sin(t)) for t in turn], surface, **labels)

    def blob(self, left: float, top: float, right: float, bottom: float, surface: Surface, **labels: str) -> None:
        """An oval with a bumpy rim, another one every time."""
        x, y, across, down = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        bumps, phase = self.rng.uniform(0.02, 0.1, 3), self.rng.uniform(0, tau, 3)
        points = []
        for step in range(40):
            t = tau * step / 40
            radius = 1 + sum(b * sin((k + 3) * t + p) for k, (b, p) in enumerate(zip(bumps, phase, strict=True)))
            points.append((x + across * radius * cos(t), y + down * radius * sin(t)))
        self.polygon(points, surface, **labels)

    def ridge(self, top: float, rise: float, bumps: int, surface: Surface, **labels: str) -> None:
        """Everything below a wavy line at `top`, which rises and falls by `rise`."""
        height, phase = self.rng.uniform(0.3, 1.0, 2) * rise / 2, self.rng.uniform(0, tau, 2)
        steps = [step / 24 for step in range(25)]
        line = [
            (
                u,
                top - height[0] * sin(tau * bumps * u / 2 + phase[0]) - height[1] * sin(tau * bumps * u + phase[1]),
            )
            for u in steps
        ]
        self.polygon([*line, (1.02, 1.02), (-0.02, 1.02)], surface, **labels)
