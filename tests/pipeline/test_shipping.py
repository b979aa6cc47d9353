"""The folder of code that is sent to a cluster: complete by itself, and gone afterwards."""

import os
import subprocess
import sys

from pipeline.shipping import PACKAGES, code_folder


def test_the_code_works_by_itself():
    script = (
        "import pipeline.cli, pipeline.compose as c; print(pipeline.cli.__file__); print(c.compose_settings([]).store)"
    )
    with code_folder() as folder:
        assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGES)
        assert not list(folder.rglob("__pycache__"))
        ran = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == [str(folder / "pipeline" / "cli.py"), "raydissect-store"]
    assert not folder.exists()


def test_two_copies_are_the_same():
    def contents() -> dict[str, bytes]:
        with code_folder() as folder:
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first = contents()
    assert "pipeline/report/static/report.css" in first
    assert "conf/config.yaml" in first
    assert contents() == first
