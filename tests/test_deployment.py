"""The files people deploy from: they parse, they open nothing beyond loopback, and the wheel works by itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.compose import compose_settings
from pipeline.schedule import read_schedule

ROOT = Path(__file__).parents[1]
KUBERNETES = "1.37"


BIN = Path(sys.executable).parent


def _program(name: str) -> str:
    program = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{name} is not installed (extra dev)")
    return program


@pytest.fixture(scope="module")
def compose() -> dict[str, dict]:
    """The services of docker-compose.yml, as Compose itself resolves them."""
    return read_compose()["services"]


def read_compose() -> dict:
    """docker-compose.yml, resolved, with all profiles."""
    command = [_program("docker-compose"), "--profile", "*", "config", "--format", "json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("profiles", [[], ["cpu"], ["gpu"], ["cpu", "schedule"], ["job"], ["*"]])
def test_compose_reads_every_profile(profiles: list[str]):
    asked = [word for profile in profiles for word in ("--profile", profile)]
    ran = subprocess.run([_program("docker-compose"), *asked, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_compose_opens_ports_on_loopback_only(compose):
    ports = [port for service in compose.values() for port in service.get("ports", [])]
    assert [port["target"] for port in ports] == [8265]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert not any(service.get("network_mode") == "host" or service.get("privileged") for service in compose.values())


def test_compose_services_have_few_rights(compose):
    for name, service in compose.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] == "1000:1000", name
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        assert "test" in service["healthcheck"] or service["healthcheck"] == {"disable": True}, name
        assert service.get("restart") == "unless-stopped" or service["healthcheck"] == {"disable": True}, name


def test_compose_keeps_secrets_in_files(compose):
    for name, service in compose.items():
        given = {secret["source"] for secret in service.get("secrets", [])}
        values = service.get("environment", {})
        if "RAY_AUTH_MODE" in values:
            assert values["RAY_AUTH_MODE"] == "token", name
            assert values["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token", name
            assert values["AWS_SHARED_CREDENTIALS_FILE"] == "/run/secrets/s3_credentials", name
            assert given == {"ray_token", "s3_credentials"}, name
        assert not [
            key
            for key in values
            if re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", key) and not values[key].startswith("/run/secrets/")
        ]
    asked = read_compose()["secrets"]
    assert {Path(secret["file"]).relative_to(ROOT).parts[0] for secret in asked.values()} == {"secrets"}
    assert "/secrets/" in (ROOT / ".gitignore").read_text().split()


def test_compose_has_workers_with_and_without_a_gpu(compose):
    assert compose["worker"]["deploy"]["replicas"] == 2
    assert compose["worker"]["profiles"] == ["cpu"]
    (devices,) = compose["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]
    assert compose["worker-gpu"]["profiles"] == ["gpu"]
    assert compose["worker-gpu"]["command"] == compose["worker"]["command"]


def test_images_name_no_registry(compose):
    """A name before the first slash that has a dot or a colon is a host's."""
    images = [service["image"] for service in compose.values()]
    images += [container["image"] for _, pod in _pods() for container in pod["spec"]["containers"]]
    assert set(images) == {"raydissect:0.1.0", "minio/minio:RELEASE.2025-09-07T16-13-09Z"}


def test_dockerfile_has_nothing_to_lint():
    ran = subprocess.run([_program("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_image_installs_the_pinned_versions():
    text = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"^.*pip install.*$", text, re.MULTILINE)
    assert len(installs) == 2
    assert all("PIP_CONSTRAINT=" in one for one in installs)


def test_image_runs_as_a_user():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def _kubernetes(name: str) -> dict:
    return yaml.safe_load((ROOT / "conf" / "k8s" / name).read_text())


def _pods() -> list[tuple[str, dict]]:
    """The templates of pods in conf/k8s."""
    job, cron = _kubernetes("rayjob.yaml")["spec"], _kubernetes("cronjob.yaml")["spec"]
    cluster = job["rayClusterSpec"]
    pods = {
        "submitter": job["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "cron": cron["jobTemplate"]["spec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }
    return list(pods.items())


def test_kubernetes_takes_the_cron_job():
    validation = pytest.importorskip("kubernetes_validate")
    cron = _kubernetes("cronjob.yaml")
    validation.validate(cron, KUBERNETES, strict=True)
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron["spec"]["startingDeadlineSeconds"] > 100  # below, a controller that looks every 10 s may miss it
    assert cron["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(("name", "pod"), _pods())
def test_kubernetes_takes_the_pods(name: str, pod: dict):
    validation = pytest.importorskip("kubernetes_validate")
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": pod}
    validation.validate(whole, KUBERNETES, strict=True)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in pod["spec"]["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert not [one for one in container.get("env", []) if "KEY" in one["name"] or one["name"] == "RAY_AUTH_TOKEN"]


_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: dict, **optional: dict) -> dict:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


RAY_JOB = _closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object"},
        "spec": _closed(
            {
                "entrypoint": _TEXT,
                "rayClusterSpec": _closed(
                    {
                        "rayVersion": _TEXT,
                        "authOptions": _closed({"mode": {"enum": ["token"]}, "secretName": _TEXT}),
                        "headGroupSpec": _closed(
                            {"rayStartParams": _PARAMETERS, "template": {"type": "object"}},
                            serviceType={"enum": ["ClusterIP"]},
                        ),
                        "workerGroupSpecs": {
                            "type": "array",
                            "minItems": 1,
                            "items": _closed(
                                {
                                    "groupName": _TEXT,
                                    "minReplicas": _COUNT,
                                    "maxReplicas": _COUNT,
                                    "rayStartParams": _PARAMETERS,
                                    "template": {"type": "object"},
                                },
                                replicas=_COUNT,
                            ),
                        },
                    }
                ),
            },
            shutdownAfterJobFinishes={"type": "boolean"},
            ttlSecondsAfterFinished=_COUNT,
            activeDeadlineSeconds={"type": "integer", "minimum": 1},
            backoffLimit=_COUNT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            submitterConfig=_closed({"backoffLimit": _COUNT}),
            submitterPodTemplate={"type": "object"},
        ),
    }
)
"""The fields of a RayJob that ours has, as KubeRay 1.6 defines them; what is inside the pods has its own test."""


def test_kuberay_takes_the_job():
    job = _kubernetes("rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert str(job["spec"]["rayClusterSpec"]["rayVersion"]) == pinned["ray"]
    (gpu,) = [pod for name, pod in _pods() if name == "gpu"]
    assert gpu["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_what_kubernetes_runs_are_commands_of_ours():
    words = shlex.split(_kubernetes("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:2] == ["raydissect", "run"]
    settings = compose_settings(words[2:])
    assert (settings.cluster.address, settings.store) == ("auto", "s3://raydissect/store")
    (container,) = dict(_pods())["cron"]["spec"]["containers"]
    assert container["command"][:2] == ["raydissect", "submit"]
    assert container["args"] == ["reprocess", "/etc/raydissect/schedule.yaml"]
    for name in ("nightly", "compose"):
        assert read_schedule(ROOT / "conf" / "schedule" / f"{name}.yaml").cron


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
