"""The files people deploy from: they parse, they open nothing beyond loopback, and the wheel works by itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compose(tmp_path_factory) -> dict:
    """docker-compose.yml as Compose itself resolves it."""
    program = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("docker-compose is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    command = [program, "--profile", "*", "config", "--format", "json"]
    return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


def test_compose_opens_ports_on_loopback_only(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_compose_services_ask_for_the_token_and_drop_rights(compose):
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert [secret["source"] for secret in service["secrets"]] == ["ray_token"]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_image_runs_as_a_user():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def test_constraints_pin_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[\w.-]+", one)[0].lower() for one in wanted} - {project["name"]}
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert len(names) > 20
    assert names - pinned == set()


def test_yaml_of_conf_parses():
    files = list((ROOT / "conf").rglob("*.yaml"))
    assert len(files) > 10
    for file in files:
        yaml.safe_load(file.read_text())


def test_wheel_works_without_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    source = tmp_path / "source"
    folders = ("schemas", "workers", "pipeline", "conf")
    for name in folders:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "import pipeline, sys; sys.argv[0] = 'raydissect'; from pipeline.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def command(*arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, "-P", "-c", script, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout

    where = [sys.executable, "-P", "-c", "import pipeline; print(pipeline.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path / "site"))
    mini = ["data=mini", "data.num_images=16", "data.size=64", "data.shard_size=8", "data.batch_size=8", "store=store"]
    command("ingest", *mini)
    command("run", *mini, "model=mininet", "model.weights=random", "layers=features.11", "cluster=inline")
    command("report", "store=store", "--folder", "pages")
    assert (tmp_path / "pages" / "index.html").read_text().count("features.11") > 0
    assert (tmp_path / "pages" / "static" / "report.css").exists()
