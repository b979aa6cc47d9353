"""Our own code as a folder, for a cluster to work with the same version of it as this machine."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

PACKAGES = ("schemas", "workers", "pipeline", "conf")


@contextmanager
def code_folder() -> Iterator[Path]:
    """A temporary folder with copies of our packages, from wherever they were imported: a checkout or a wheel.

    Copies of the same code have the same contents, so that Ray, which names a package by these, sends it once.
    """
    with tempfile.TemporaryDirectory(prefix="raydissect-code-") as name:
        folder = Path(name)
        for package in PACKAGES:
            source = Path(str(import_module(package).__file__)).parent
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        yield folder
