"""The real data beside the project: tests that need it skip where it is not."""

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """A folder of `$RAYDISSECT_SHARED/data`, or skip the test."""
    root = os.environ.get("RAYDISSECT_SHARED")
    if not root:
        pytest.skip("RAYDISSECT_SHARED is not set: it names the folder that holds data/")
    path = Path(root, "data", name)
    if not path.is_dir():
        pytest.skip(f"RAYDISSECT_SHARED has no data/{name}")
    return path
