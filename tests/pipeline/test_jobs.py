"""Work submitted to a cluster of several nodes: one job whoever submits it, with the exit code of the command.

The store is on S3, and credentials are in the nodes' environment only where the test does not read the store itself.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import grpc
import pytest
import yaml
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipeline.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, SettingsError
from pipeline.jobs import _ENVIRONMENT, Ended, Jobs, _Log, check_work
from pipeline.schedule import read_schedule
from tests import dissect, small
from tests.cluster import RayCluster, ray_cluster
from tests.command import interrupt, raydissect

TABLES = ("thresholds", "tally", "areas", "null_tally", "detectors", "layer_summary", "exemplars", "layers")
DATA = ["data=mini", "data.num_images=16", "data.size=64", "data.shard_size=8", "data.batch_size=8"]
MODEL = ["model=mininet", "model.weights=random", "layers=features.11"]
STORE = "s3://dissections/jobs"
STUCK = ["cluster.resources={nowhere:1}", "cluster.start_timeout=600"]
"""No node has what the workers ask for: such a job is at work until it is stopped."""

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:ssl=None is deprecated:DeprecationWarning")


def test_work_is_named_by_what_is_to_be_done():
    first = check_work(["run", *MODEL, f"store={STORE}"])
    assert check_work([*MODEL, f"store={STORE}", "-v", "cluster.workers=7"]).name == first.name
    assert check_work(["run", *MODEL, f"store={STORE}", "union=annotated"]).name == first.name  # as it is anyway
    others = [["union=all"], ["layers=features.8"], ["cluster.threads=2"], ["store=s3://other/jobs"], ["data=broden"]]
    names = {check_work(["run", *MODEL, f"store={STORE}", *more]).name for more in others}
    assert len(names - {first.name}) == len(others)
    assert check_work(["ingest", f"store={STORE}"]).name not in names | {first.name}
    assert first.words == ("run", *MODEL, f"store={STORE}", "cluster.address=auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "store=work"], "store is work, which the cluster's nodes cannot see"),
        (["run", "store=memory://work"], "memory://work, which the cluster's nodes cannot see"),
        (["run", "store=file://work"], "file://work, which the cluster's nodes cannot see"),
        (["run", f"store={STORE}", "cluster=inline"], "leave out cluster=inline"),
        (["run", f"store={STORE}", "cluster.address=auto"], "leave out cluster=inline and cluster.address"),
        (["run", f"store={STORE}", "unoin=all"], "unknown setting 'unoin'"),
        (["run", f"store={STORE}", "--settings"], "'--settings' cannot be submitted"),
        (["ingest", f"store={STORE}", "data=broden", "data.root=broden.zip"], "data.root is broden.zip"),
        (["gc", f"store={STORE}"], "'gc' cannot be submitted"),
    ],
)
def test_what_the_cluster_cannot_do_is_not_sent(words: list[str], message: str):
    with pytest.raises(SettingsError, match=message):
        check_work(words)


def _schedule(path: Path, **changes: object) -> Path:
    job = {"models": "mininet", "checkpoints": "random", "data": "mini", "layers": "features.9"}
    path.write_text(yaml.safe_dump({"store": STORE, "jobs": [job], **changes}))
    return path


def test_a_schedule_is_sent_along(tmp_path: Path):
    path = _schedule(tmp_path / "own.yaml", settings={"cluster.address": "head:6379", "quantile": 0.01})
    work = check_work(["reprocess", str(path)])
    assert work.words == ("reprocess", "schedule.yaml")
    (tmp_path / "sent.yaml").write_text(work.files["schedule.yaml"])
    sent = read_schedule(tmp_path / "sent.yaml")
    assert sent.name == "own"
    assert sent.settings == {"cluster.address": "auto", "quantile": 0.01}
    assert sent.jobs == read_schedule(path).jobs
    (tmp_path / "moved").mkdir()
    assert check_work(["reprocess", "-v", str(path.rename(tmp_path / "moved" / "own.yaml"))]).name == work.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": "work"}, "the schedule's store is work"),
        ({"jobs": [{"models": "alexnet", "data": "mini", "checkpoints": ["runs/*.pth"]}]}, "a checkpoint is runs/"),
    ],
)
def test_a_schedule_that_the_cluster_cannot_do_is_not_sent(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(SettingsError, match=message):
        check_work(["reprocess", str(_schedule(tmp_path / "own.yaml", **changes))])


def test_own_weights_go_into_the_store_and_are_the_same_study(tmp_path: Path):
    weights = small.write_weights(tmp_path / "own.safetensors", {})
    run = ["model=mininet", "layers=features.11", f"store={tmp_path / 'store'}", "quantile=0.1", "tail_quantile=0.2"]
    by_path = check_work(["run", *run, f"model.weights={weights}"])
    (sent,) = [word for word in by_path.words if word.startswith("model.weights=")]
    assert sent.startswith("model.weights=store:weights/")
    assert check_work(["run", *run, sent]).name == by_path.name
    weights.rename(tmp_path / "moved.safetensors")
    outcome = dissect.ingest_and_run(tmp_path / "store", *DATA, *run[:2], *run[3:], sent)
    again = dissect.run_only(
        tmp_path / "store", *DATA, *run[:2], *run[3:], f"model.weights={tmp_path}/moved.safetensors"
    )
    assert again.study_id == outcome.study_id
    assert again.computed == []


def test_a_missing_weights_file_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"gone\.pth"):
        check_work(["run", *MODEL, f"store={tmp_path}", f"model.weights={tmp_path}/gone.pth"])


def test_a_log_that_comes_again_is_handed_on_once():
    lines: list[str] = []
    log = _Log(lines.append)
    for piece in ("one\ntw", "o\nthr"):
        log.add(piece)
    log.rewind()
    for piece in ("on", "e\ntwo\nthree", "\nfour"):
        log.add(piece)
    log.close()
    assert lines == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("http://127.0.0.1:1", FAILED, "nobody answers at http://127.0.0.1:1"),
        ("ray://127.0.0.1:10001", BAD_INPUT, "must be the URL of the cluster's dashboard"),
    ],
)
def test_an_address_where_no_cluster_is(address: str, code: int, message: str):
    start = time.monotonic()
    ended = raydissect("submit", "--address", address, "--", "run", f"store={STORE}")
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert time.monotonic() - start < 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes, an S3 store, and the nodes' environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="dissections")
        with ray_cluster(nodes=2) as running:
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(running.token))
            yield running
        S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def ingested(cluster: RayCluster) -> None:
    ended = raydissect("submit", "--address", cluster.dashboard, "--wait", "--", "ingest", *DATA, f"store={STORE}")
    assert ended.code == DONE, ended.err
    assert "images: 16 in 2 shards" in ended.out


def _submit(cluster: RayCluster, *words: str, options: tuple[str, ...] = ("--wait",)):
    return raydissect("submit", "--address", cluster.dashboard, *options, "--", *words)


def _job_id(out: str) -> str:
    return out.partition(":")[0]


def _stop(cluster: RayCluster, *words: str) -> None:
    assert "stopped" in _submit(cluster, *words, options=("--cancel",)).out


@pytest.mark.cluster
@pytest.mark.usefixtures("ingested")
def test_a_submitted_run_makes_the_tables_of_an_inline_one(cluster: RayCluster, tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    words = ["submit", "--address", cluster.dashboard, "--wait", "--", "run", "data=mini", *MODEL, f"store={STORE}"]
    ran = subprocess.run(
        [Path(sys.executable).with_name("raydissect"), *words], cwd=here, capture_output=True, text=True
    )
    assert ran.returncode == DONE, ran.stderr + ran.stdout
    assert "7 results computed, 0 found done" in ran.stdout
    assert list(here.iterdir()) == []
    local = tmp_path / "local"
    dissect.ingest_and_run(local, *DATA, *MODEL)
    small.same_tables(local, STORE, *TABLES)


@pytest.mark.cluster
@pytest.mark.usefixtures("ingested")
def test_work_under_way_is_attached_to_followed_and_stopped(cluster: RayCluster, tmp_path: Path):
    words = ["run", "data=mini", *MODEL, "layers=features.8", f"store={STORE}"]
    first = _submit(cluster, *words, *STUCK, options=())
    assert (first.code, first.err) == (DONE, "")
    job_id = _job_id(first.out)
    try:
        assert f"{job_id}: submitted" in first.out
        second = _submit(cluster, *words, options=())  # also with other workers: the work is the same
        assert f"{job_id}: at work already" in second.out
        api = Jobs(cluster.dashboard)
        assert [job.status.is_terminal() for job in api._attempts(check_work(words))] == [False]

        report = tmp_path / "status"

        def is_announced() -> bool:
            report.write_text(raydissect("status", f"store={STORE}").out)
            return "unfinished work" in report.read_text()

        follow = ["submit", "--address", cluster.dashboard, "--wait", "--", *words]
        left = interrupt(*follow, when=is_announced)
        assert left.code == INTERRUPTED
        assert f"{job_id} goes on" in left.err
        lines = report.read_text().splitlines()
        assert any(line.split()[1:] == ["record", "features.8", "0", "2"] for line in lines), lines
        assert "running" in report.read_text()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(Jobs(cluster.dashboard).follow, job_id, lambda line: None)
            _stop(cluster, *words)
            assert waiting.result(60).code == INTERRUPTED
    finally:
        _submit(cluster, *words, options=("--cancel",))
    assert "interrupted" in raydissect("status", f"store={STORE}").out
    assert "no job is at this work" in _submit(cluster, *words, options=("--cancel",)).out
    finished = _submit(cluster, *words)
    assert finished.code == DONE, finished.out
    assert _job_id(finished.out) == f"{job_id}-2"


@pytest.mark.cluster
@pytest.mark.usefixtures("ingested")
def test_a_schedule_is_done_where_it_is_submitted_to(cluster: RayCluster, tmp_path: Path):
    ended = _submit(cluster, "reprocess", str(_schedule(tmp_path / "own.yaml")))
    assert ended.code == DONE, ended.out
    assert "0 tasks found done, 1 computed, 0 failed" in ended.out


@pytest.mark.cluster
def test_of_two_submitters_at_once_one_attaches(cluster: RayCluster):
    work = check_work(["run", *MODEL, f"store={STORE}", "data=mini", "union=concept", *STUCK])
    apis = [Jobs(cluster.dashboard) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        jobs = list(pool.map(lambda api: api.submit(work), apis))
    try:
        assert {job.job_id for job in jobs} == {work.name}
        assert sorted(job.attached for job in jobs) == [False, True]
    finally:
        apis[0].cancel(work)


@pytest.mark.cluster
@pytest.mark.usefixtures("ingested")
def test_the_exit_code_of_a_failing_job_is_carried_over(cluster: RayCluster):
    run = ["run", *MODEL, "union=under_mask", f"store={STORE}"]
    failing = {
        BAD_INPUT: [*run, "data=absent"],
        FAILED: [*run, "data=mini", "cluster.resources={nowhere:1}", "cluster.start_timeout=0.1"],
    }
    api = Jobs(cluster.dashboard)
    jobs = {}
    for code, words in failing.items():
        jobs[code] = api.submit(check_work(words), installed=code == BAD_INPUT).job_id
    (job,) = api._attempts(check_work(failing[BAD_INPUT]))
    assert "working_dir" not in job.runtime_env
    log: list[str] = []
    ended = _submit(cluster, *failing[FAILED])
    assert ended.code == FAILED
    assert f"{jobs[FAILED]}: at work already" in ended.out
    assert f"{jobs[FAILED]} failed with exit code 1: see above" in ended.err
    assert "no worker" in ended.out or "nowhere" in ended.out
    assert api.follow(jobs[BAD_INPUT], log.append) == Ended(BAD_INPUT)
    assert any("absent" in line and line.startswith("raydissect: ") for line in log)


@pytest.mark.cluster
def test_only_named_variables_are_sent(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAYDISSECT_A", "sent")
    work = check_work(["run", *MODEL, f"store={STORE}", "data=absent", "layers=features.8"])
    assert "no such environment variable" in _submit(cluster, *work.words[:-1], options=("--env", "RAYDISSECT_B")).err
    api = Jobs(cluster.dashboard)
    api.submit(work, env=["RAYDISSECT_A"])
    (job,) = api._attempts(work)
    assert set(job.runtime_env["env_vars"]) == {"RAYDISSECT_A", *_ENVIRONMENT}
    assert cluster.token.read_text() not in json.dumps(job.model_dump(mode="json"))
    api.cancel(work)


PATHS = (
    "/api/version",
    "/api/jobs/",
    "/nodes?view=summary",
    "/api/cluster_status",
    "/api/v0/actors",
    "/api/packages/gcs/x",
)


@pytest.mark.cluster
@pytest.mark.parametrize(("headers", "code"), [({}, 401), ({"Authorization": "Bearer wrong"}, 403)])
@pytest.mark.parametrize("path", PATHS)
def test_the_dashboard_refuses_who_has_no_token(cluster: RayCluster, path: str, headers: dict[str, str], code: int):
    with pytest.raises(HTTPError) as raised:
        urlopen(Request(f"{cluster.dashboard}{path}", headers=headers), timeout=10)
    assert raised.value.code == code
    raised.value.close()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("token", "message"), [(None, "asks for a token"), ("wrong" * 8, "refuses the token, which is another cluster's")]
)
def test_the_jobs_api_refuses_who_has_no_token(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
):
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    start = time.monotonic()
    ended = _submit(cluster, "run", *MODEL, f"store={STORE}")
    assert (ended.code, ended.out) == (FAILED, "")
    assert message in ended.err
    assert time.monotonic() - start < 5
    assert not token or token not in ended.err


def _call(target: str, method: str, token: str | None) -> grpc.StatusCode:
    """What a server makes of an empty request."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code()  # pyright: ignore
    return grpc.StatusCode.OK


@pytest.mark.cluster
@pytest.mark.parametrize("token", [None, "wrong" * 8])
def test_the_ray_client_refuses_who_has_no_token(cluster: RayCluster, token: str | None):
    target, method = f"127.0.0.1:{cluster.client_port}", "/ray.rpc.RayletDriver/ClusterInfo"
    assert _call(target, method, token) is grpc.StatusCode.UNAUTHENTICATED
    assert _call(target, method, cluster.token.read_text()) is grpc.StatusCode.NOT_FOUND  # there is no such client yet


@pytest.mark.cluster
@pytest.mark.parametrize("token", [None, "wrong" * 8])
def test_the_control_service_refuses_who_has_no_token(cluster: RayCluster, token: str | None):
    method = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
    assert _call(cluster.address, method, token) is grpc.StatusCode.UNAUTHENTICATED
    assert _call(cluster.address, method, cluster.token.read_text()) is grpc.StatusCode.OK


@pytest.mark.cluster
@pytest.mark.usefixtures("ingested")
def test_a_driver_is_refused_who_has_no_token(cluster: RayCluster, tmp_path: Path):
    words = ["run", "data=mini", *MODEL, "quantile=0.02", f"store={STORE}", f"cluster.address={cluster.address}"]

    def drive(changes: dict[str, str]) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        environment |= {"HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "2", **changes}  # not twenty: one a second
        command = [Path(sys.executable).with_name("raydissect"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    without, wrong = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}
    with ThreadPoolExecutor() as pool:
        for ended in pool.map(drive, (without, wrong)):
            assert ended.returncode == FAILED, ended
            assert "it refuses the token" in ended.stderr
            assert "wrong" not in ended.stderr
