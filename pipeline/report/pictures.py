"""The exemplars' pictures: from a table's column into files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError

SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}
"""First bytes of the formats a report shows; anything else could hold a script."""


@dataclass(frozen=True)
class Exemplar:
    """One exemplar on a page; `file` is the name of its picture."""

    rank: int
    image_id: int
    image: str
    activation: float
    file: str


def write_pictures(
    folder: Path, exemplars: pa.Table | Iterable[pa.Table | pa.RecordBatch], units: set[int]
) -> dict[int, list[Exemplar]]:
    """Write the pictures of some units, named by unit and rank.

    Args:
        folder: where the files go.
        exemplars: rows of the `exemplars` table in any order.
        units: the units whose pictures are wanted.

    Returns:
        the exemplars of each unit that has some, by rank.

    Raises:
        InputError: a picture is neither JPEG nor PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[Exemplar]] = {}
    for row in _rows(exemplars, units):
        name = f"unit-{row['unit']}-rank-{row['rank']}"
        data = (row["picture"] or {}).get("bytes") or b""
        suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), None)
        if suffix is None:
            raise InputError(
                f"picture of unit {row['unit']}, rank {row['rank']}, image {row['image']!r} in layer "
                f"{row['layer']} is {len(data)} bytes that begin {data[:8]!r}, must be JPEG or PNG: "
                "record the exemplars again"
            )
        (folder / f"{name}{suffix}").write_bytes(data)
        exemplar = Exemplar(row["rank"], row["image_id"], row["image"], row["activation"], f"{name}{suffix}")
        found.setdefault(row["unit"], []).append(exemplar)
    return {unit: sorted(found[unit], key=lambda exemplar: exemplar.rank) for unit in sorted(found)}


def _rows(exemplars: pa.Table | Iterable[pa.Table | pa.RecordBatch], units: set[int]) -> Iterator[dict[str, Any]]:
    """The rows of some units, each made a Python object only when it is its turn."""
    parts: Iterable[Any] = [exemplars] if isinstance(exemplars, pa.Table) else exemplars
    for part in parts:
        for i, unit in enumerate(part.column("unit").to_pylist()):
            if unit in units:
                yield part.slice(i, 1).to_pylist()[0]
