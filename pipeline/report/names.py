"""Names of files for names of layers."""

import hashlib
import re
from collections.abc import Collection, Sequence


def page_names(layers: Sequence[str], others: Collection[str] = (), longest: int = 80) -> list[str]:
    """File names for layers: the name itself where any file system can hold it, else told apart by a hash.

    Args:
        layers: their names.
        others: file names that are taken.
        longest: characters that are kept of a name.
    """
    names: list[str] = []
    taken = {name.casefold() for name in others}
    for layer in layers:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", layer).strip(".")[:longest]
        if name != layer or not name or name.casefold() in taken:
            name = f"{name}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"
        if name.casefold() in taken:
            name = f"{name}-{len(names)}"
        taken.add(name.casefold())
        names.append(name)
    return names
