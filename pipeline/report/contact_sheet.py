"""A layer's pictures as one JPEG: a grid of small ones under the numbers of their units."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from workers.batches import load_image, open_image, to_rgb

TILE = 96
LABEL = 16
GAP = 8
TITLE = 32
ASPECT = 1.5
MAX_TILES = 4096
"""Above this many pictures a unit keeps its first ones only, so that the sheet fits in memory."""

PAPER, INK, FAINT, EMPTY = "#ffffff", "#1c2127", "#5d6670", "#eceff1"


class ContactSheet:
    """A grid with one cell a unit: its number, and beneath it its pictures in one block, or in several side by side.

    Args:
        title: written above the grid.
        units: the numbers of the units, in the order of the grid.
        pictures: how many a unit has at most in a block.
        columns: of a block; without it all pictures are side by side.
        blocks: how many.
        tile: side of a picture, in pixels.
    """

    def __init__(
        self,
        title: str,
        units: Sequence[int],
        pictures: int,
        columns: int | None = None,
        blocks: int = 1,
        tile: int = TILE,
    ) -> None:
        room = MAX_TILES * TILE**2 // tile**2
        self._tile = tile
        self._shown = max(1, min(pictures, room // max(len(units) * blocks, 1)))
        self._across = min(columns or self._shown, self._shown)
        self._block = self._across * tile + (GAP if blocks > 1 else 0)
        self._cell = (blocks * self._block + GAP, LABEL + math.ceil(self._shown / self._across) * tile + GAP)
        columns = math.ceil(math.sqrt(len(units) * ASPECT * self._cell[1] / self._cell[0]))
        self._columns = max(columns, 1)
        self._places = {unit: place for place, unit in enumerate(units)}
        self._font, small = ImageFont.load_default(14), ImageFont.load_default(11)
        title = " ".join(title.split())
        rows = math.ceil(len(units) / self._columns)
        width = max(self._columns * self._cell[0], min(round(self._font.getlength(title)) + GAP, 1200))
        self._canvas = Image.new("RGB", (width + GAP, TITLE + rows * self._cell[1] + GAP), PAPER)
        self._draw = ImageDraw.Draw(self._canvas)
        self._draw.text((GAP, GAP), title, INK, self._font)
        for unit in units:
            self._draw.text(self._corner(unit), str(unit), FAINT, small)

    def paste(self, unit: int, place: int, data: bytes, block: int = 0) -> None:
        """Put a picture, JPEG or PNG, into the cell of a unit.

        Raises:
            ImageError: it is cut short, broken or too large; the message says which.
        """
        image = to_rgb(load_image(open_image(data)))
        if place < self._shown:
            size = (self._tile - 2, self._tile - 2)
            method = Image.Resampling.NEAREST if 3 * max(image.size) <= self._tile else Image.Resampling.LANCZOS
            self._canvas.paste(ImageOps.pad(image, size, method, EMPTY), self._tile_at(unit, place, block))

    def write(self, unit: int, place: int, words: str) -> None:
        """Put words where a picture would be."""
        if place < self._shown:
            left, top = self._tile_at(unit, place)
            side = self._tile
            self._draw.rectangle((left, top, left + side - 3, top + side - 3), EMPTY)
            self._draw.text((left + side / 2, top + side / 2), words, FAINT, self._font, anchor="mm")

    def save(self, path: Path) -> None:
        """Write the sheet as JPEG."""
        self._canvas.save(path, "JPEG", quality=88)

    def _corner(self, unit: int) -> tuple[int, int]:
        row, column = divmod(self._places[unit], self._columns)
        return GAP + column * self._cell[0], TITLE + row * self._cell[1]

    def _tile_at(self, unit: int, place: int, block: int = 0) -> tuple[int, int]:
        left, top = self._corner(unit)
        row, column = divmod(place, self._across)
        return left + block * self._block + column * self._tile, top + LABEL + row * self._tile
