"""What may be told of settings and errors: addresses without their secrets, an environment without its values.

A signed URL carries its signature in the query. What is stored, logged or told goes through here; what is used does not.
"""

import re
from typing import Any

WITHHELD = "(not kept)"
"""Stands for the value of an environment variable."""

_QUERY = re.compile(r"(?i)(\bhttps?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*")
_USER = re.compile(r"(?<=://)[^/@\s'\"<>]*@")


def shown(text: str) -> str:
    """A URL, or a text with URLs in it, without what may be secret: queries of the web's, users and passwords."""
    return _USER.sub("", _QUERY.sub(r"\1", text))


def shown_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings as they may be kept, and the full names of those that lost something."""
    kept, withheld = _shown(settings, "")
    return kept, withheld


def _shown(value: Any, name: str) -> tuple[Any, list[str]]:
    if isinstance(value, dict):
        parts = {key: _shown(part, f"{name}.{key}".lstrip(".")) for key, part in value.items()}
        return {key: part for key, (part, _) in parts.items()}, [one for _, names in parts.values() for one in names]
    if isinstance(value, (list, tuple)):
        items = [_shown(part, name) for part in value]
        return [part for part, _ in items], sorted({one for _, names in items for one in names})
    if not isinstance(value, str):
        return value, []
    kept = WITHHELD if ".env_vars." in f".{name}" else shown(value)
    return kept, [name] if kept != value else []
