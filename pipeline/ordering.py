"""The order that people expect of names with numbers in them: features.4 before features.11."""

import re


def natural(name: str) -> list[str | int]:
    """Sorts names with the numbers in them as numbers, which are every second part."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
