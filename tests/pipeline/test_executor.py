"""The same shards through both executors, and what the Ray executor survives."""

import logging
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import executor as executor_module
from pipeline.errors import BAD_INPUT, FAILED, InputError, NoWorkersError, ShardsFailed
from pipeline.executor import MOST_LANES, Executor, make_executor
from pipeline.settings import Cluster
from workers.worker import Shard, ShardReport, Worker

RAY = Cluster(workers=2, shard_timeout=4, start_timeout=60)
INLINE = Cluster(executor="inline")


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[Executor]:
    with make_executor(RAY) as executor:
        yield executor


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.cluster)])
def executor(request: pytest.FixtureRequest) -> Executor:
    return make_executor(INLINE) if request.param == "inline" else request.getfixturevalue("ray_executor")


def _shards(number: int) -> list[Shard]:
    return [Shard(f"s{index}", index, rows=index + 1) for index in range(number)]


def _build(folder: Path, act: Callable[[Path, Shard], Any] | None = None, read_seconds: float = 0) -> Worker:
    """Writes one file a shard, and leaves a trace of every call of every phase."""

    def trace(shard: Shard, phase: str, start: float) -> None:
        line = f"{shard.name} {phase} {start} {time.time()} {torch.get_num_threads()} {os.getpid()}\n"
        with (folder / "trace").open("a") as file:
            file.write(line)

    def read(shard: Shard) -> Shard:
        start = time.time()
        time.sleep(read_seconds)
        trace(shard, "read", start)
        return shard

    def compute(shard: Shard) -> int:
        start = time.time()
        if act:
            act(folder, shard)
        trace(shard, "compute", start)
        return shard.rows**2

    def write(shard: Shard, square: int) -> int:
        return (folder / shard.name).write_text(f"{square}")

    return Worker(read, compute, write)


def _done(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith("s")}


def _trace(folder: Path, phase: str) -> list[list[str]]:
    lines = [line.split() for line in (folder / "trace").read_text().splitlines()]
    return [line for line in lines if line[1] == phase]


def _names(*indices: int) -> set[str]:
    return {f"s{index}" for index in indices}


def test_every_shard_is_done_once_in_order(executor: Executor, tmp_path: Path):
    seen: list[ShardReport] = []
    reports = executor.run(partial(_build, tmp_path), _shards(12), title="squares", on_report=seen.append)
    assert [report.shard for report in reports] == _shards(12)
    assert sorted(seen, key=lambda report: report.shard.index) == reports
    assert {name: int((tmp_path / name).read_text()) for name in _done(tmp_path)} == {
        f"s{index}": (index + 1) ** 2 for index in range(12)
    }
    assert sorted(line[0] for line in _trace(tmp_path, "compute")) == sorted(_names(*range(12)))
    assert [report.bytes_written for report in reports] == [len(f"{(i + 1) ** 2}") for i in range(12)]


def test_no_shards_need_no_worker(executor: Executor):
    def build() -> Worker:
        raise ValueError("built for nothing")

    assert executor.run(build, [], title="nothing") == []


def test_torch_threads_are_the_settings(executor: Executor, tmp_path: Path):
    before = torch.get_num_threads()
    executor.run(partial(_build, tmp_path), _shards(4), title="threads")
    assert {line[4] for line in _trace(tmp_path, "compute")} == {"1"}
    assert torch.get_num_threads() == before


def test_the_next_shard_is_read_while_one_is_computed(executor: Executor, tmp_path: Path):
    act = lambda folder, shard: time.sleep(0.1)  # noqa: E731
    executor.run(partial(_build, tmp_path, act, read_seconds=0.1), _shards(8), title="overlap")
    computes = [(line[5], float(line[2]), float(line[3])) for line in _trace(tmp_path, "compute")]
    reads = [(line[5], float(line[2]), float(line[3])) for line in _trace(tmp_path, "read")]
    both = [
        min(read[2], compute[2]) - max(read[1], compute[1])
        for read in reads
        for compute in computes
        if read[0] == compute[0]
    ]
    assert sum(overlap > 0.05 for overlap in both) >= 3
    for process in {compute[0] for compute in computes}:
        mine = sorted(compute[1:] for compute in computes if compute[0] == process)
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))


def _slow_writes(folder: Path) -> Worker:
    work = _build(folder, lambda folder, shard: time.sleep(0.1))

    def write(shard: Shard, square: int) -> int:
        start = time.time()
        time.sleep(0.1)
        if shard.index == 2:
            raise OSError("no space left")
        with (folder / "trace").open("a") as file:
            file.write(f"{shard.name} write {start} {time.time()}\n")
        return work.write(shard, square)

    return Worker(work.read, work.compute, write)


@pytest.mark.parametrize("window", [1, 2])
def test_one_shard_is_written_while_the_next_is_computed(tmp_path: Path, window: int):
    seen: list[str] = []
    threads: set[int] = set()

    def on_report(report: ShardReport) -> None:
        seen.append(report.shard.name)
        threads.add(threading.get_ident())

    executor = make_executor(Cluster(executor="inline", window=window))
    with pytest.raises(ShardsFailed, match=r"1 of 6 shards failed(.|\n)*s2: OSError: no space left"):
        executor.run(partial(_slow_writes, tmp_path), _shards(6), title="writes", on_report=on_report)
    assert seen == ["s0", "s1", "s3", "s4", "s5"]
    assert threads == {threading.get_ident()}
    assert _done(tmp_path) == _names(0, 1, 3, 4, 5)
    spans = {line[0]: (float(line[2]), float(line[3])) for line in _trace(tmp_path, "write")}
    computes = [(float(line[2]), float(line[3])) for line in _trace(tmp_path, "compute")]
    overlaps = [min(e, end) - max(s, start) for s, e in spans.values() for start, end in computes]
    assert (sum(overlap > 0.05 for overlap in overlaps) >= 2) == (window == 2)
    ordered = sorted(spans.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


def _beside_others(folder: Path) -> Worker:
    def act(folder: Path, shard: Shard) -> None:
        time.sleep(0.1)
        if shard.index == 2:
            raise ValueError("no shard of mine")

    return replace(_build(folder, act), alone=False)


@pytest.mark.parametrize(("cores", "together"), [(1, 1), (2, 2), (3, 3), (64, MOST_LANES)])
def test_shards_that_need_not_be_alone_are_computed_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, together: int
):
    monkeypatch.setattr(executor_module, "cores_here", lambda: cores)
    seen: list[str] = []
    with pytest.raises(ShardsFailed, match=r"1 of 12 shards failed(.|\n)*s2: ValueError: no shard of mine"):
        make_executor(INLINE).run(
            partial(_beside_others, tmp_path),
            _shards(12),
            title="lanes",
            on_report=lambda report: seen.append(report.shard.name),
        )
    assert seen == [f"s{index}" for index in range(12) if index != 2]
    assert _done(tmp_path) == set(seen)
    spans = [(float(line[2]), float(line[3])) for line in _trace(tmp_path, "compute")]
    most = max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
    assert most == together
    assert {line[4] for line in _trace(tmp_path, "compute")} == {"1"}


def _one_after_another(folder: Path, alone: bool) -> Worker:
    return replace(_build(folder, lambda folder, shard: time.sleep(0.1)), alone=alone)


@pytest.mark.parametrize(("window", "alone"), [(1, False), (2, True)])
def test_shards_are_computed_one_after_another_where_that_is_wanted(tmp_path: Path, window: int, alone: bool):
    executor = make_executor(Cluster(executor="inline", window=window))
    executor.run(partial(_one_after_another, tmp_path, alone), _shards(6), title="one")
    spans = sorted((float(line[2]), float(line[3])) for line in _trace(tmp_path, "compute"))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("window", [1, 2])
def test_an_interrupt_leaves_whole_files_only(tmp_path: Path, window: int):
    def interrupt(folder: Path, shard: Shard) -> None:
        if shard.index == 3:
            raise KeyboardInterrupt

    def build() -> Worker:
        work = _build(tmp_path, interrupt)

        def write(shard: Shard, square: int) -> int:
            time.sleep(0.1)  # shard 2 is being written when 3 is interrupted
            return work.write(shard, square)

        return Worker(work.read, work.compute, write)

    with pytest.raises(KeyboardInterrupt):
        make_executor(Cluster(executor="inline", window=window)).run(build, _shards(6), title="interrupted")
    assert _done(tmp_path) == _names(0, 1, 2)
    assert all((tmp_path / f"s{index}").read_text() == f"{(index + 1) ** 2}" for index in range(3))
    assert not [one for one in threading.enumerate() if one.name.startswith(("reader", "writer"))]


def test_an_interrupt_lets_shards_side_by_side_end_and_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor_module, "cores_here", lambda: 2)

    def interrupt(folder: Path, shard: Shard) -> None:
        if shard.index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        make_executor(INLINE).run(
            lambda: replace(_build(tmp_path, interrupt), alone=False), _shards(20), title="interrupted"
        )
    assert _names(0, 1, 2, 3) <= _done(tmp_path) < _names(*range(7))
    assert _done(tmp_path) == {line[0] for line in _trace(tmp_path, "read")}
    assert not [one for one in threading.enumerate() if one.name.startswith("lane")]


def _reject_odd(folder: Path, shard: Shard) -> None:
    if shard.index % 2:
        raise InputError(f"image {shard.index} is no JPEG")


def test_all_errors_are_told_and_the_others_are_done(executor: Executor, tmp_path: Path):
    with pytest.raises(ShardsFailed) as raised:
        executor.run(partial(_build, tmp_path, _reject_odd), _shards(6), title="odd")
    assert _done(tmp_path) == _names(0, 2, 4)
    assert str(raised.value).splitlines()[1:] == [
        f"  s{index}: InputError: image {index} is no JPEG" for index in (1, 3, 5)
    ]
    assert raised.value.exit_code == BAD_INPUT
    assert [failure.shard.index for failure in raised.value.failures] == [1, 3, 5]
    assert len(raised.value.__notes__) == 1  # one place, one traceback
    assert "in _reject_odd" in raised.value.__notes__[0]


def _fail_twice(folder: Path, shard: Shard) -> None:
    if shard.index == 0:
        raise InputError("bad row")
    if shard.index == 1:
        raise ZeroDivisionError("of what")


def test_errors_of_several_kinds_exit_with_1(executor: Executor, tmp_path: Path):
    with pytest.raises(ShardsFailed, match="2 of 3 shards failed") as raised:
        executor.run(partial(_build, tmp_path, _fail_twice), _shards(3), title="mixed")
    assert raised.value.exit_code == FAILED
    assert len(raised.value.__notes__) == 2


def test_a_build_error_is_told_once(executor: Executor):
    def build() -> Worker:
        raise InputError("weights of zfnet: no such file")

    with pytest.raises(NoWorkersError) as raised:
        executor.run(build, _shards(6), title="forward")
    message = "forward: no worker could be built: InputError: weights of zfnet: no such file"
    assert str(raised.value) == message
    assert raised.value.exit_code == BAD_INPUT
    assert "in build" in raised.value.__notes__[0]


def test_a_shard_leaves_one_log_line(executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "raydissect"):
        executor.run(partial(_build, tmp_path), _shards(3), title="squares")
    lines = sorted(record.message for record in caplog.records if record.levelno == logging.INFO)
    assert len(lines) == 3
    assert lines[0].startswith("squares: shard s0: read 0.0")


def test_inline_starts_no_ray():
    code = "import sys; from pipeline.executor import make_executor; from pipeline.settings import Cluster;"
    code += "make_executor(Cluster(executor='inline')); sys.exit('ray' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def _once(folder: Path, shard: Shard) -> bool:
    """Whether this is the first time, on any worker."""
    try:
        (folder / f"marker-{shard.name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _die_once(folder: Path, shard: Shard) -> None:
    if shard.index == 2 and _once(folder, shard):
        os.kill(os.getpid(), signal.SIGKILL)


def _die(folder: Path, shard: Shard) -> None:
    if shard.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def _hang_once(folder: Path, shard: Shard) -> None:
    if shard.index == 2 and _once(folder, shard):
        time.sleep(600)


def _fill(folder: Path, shard: Shard) -> None:
    time.sleep(60)


@pytest.mark.cluster
def test_the_shards_of_a_killed_worker_are_done_by_another(ray_executor: Executor, tmp_path: Path):
    reports = ray_executor.run(partial(_build, tmp_path, _die_once), _shards(8), title="killed")
    assert [report.shard.index for report in reports] == list(range(8))
    assert _done(tmp_path) == _names(*range(8))


@pytest.mark.cluster
def test_a_shard_that_kills_its_workers_is_quarantined(ray_executor: Executor, tmp_path: Path):
    with pytest.raises(ShardsFailed, match="1 of 8 shards failed") as raised:
        ray_executor.run(partial(_build, tmp_path, _die), _shards(8), title="killer")
    assert _done(tmp_path) == _names(0, 1, 3, 4, 5, 6, 7)
    assert "s2: Quarantined: its worker died 3 times, last:" in str(raised.value)
    assert "cluster=inline" in str(raised.value)
    assert raised.value.exit_code == FAILED


@pytest.mark.cluster
def test_a_hung_shard_is_killed_and_done_again(
    ray_executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    start = time.monotonic()
    reports = ray_executor.run(partial(_build, tmp_path, _hang_once), _shards(6), title="hung")
    assert len(reports) == 6
    assert RAY.shard_timeout < time.monotonic() - start < RAY.shard_timeout + 20
    assert "no shard done in 4 s (cluster.shard_timeout)" in caplog.text


@pytest.mark.cluster
@pytest.mark.parametrize("asked", [{"resources": {"tpu_pod": 1}}, {"gpus_per_worker": 64}])
def test_resources_the_cluster_lacks_fail_at_once(ray_executor: Executor, asked: dict, tmp_path: Path):
    ray_executor.run(partial(_build, tmp_path), _shards(1), title="warm")
    start = time.monotonic()
    with make_executor(Cluster(workers=1, **asked)) as executor, pytest.raises(NoWorkersError) as raised:
        executor.run(partial(_build, tmp_path), _shards(2), title="greedy")
    assert time.monotonic() - start < 2
    assert next(iter(asked.get("resources", {"GPU": 64}))) in str(raised.value)
    assert "the cluster's nodes have [{'CPU': 2.0" in str(raised.value)


@pytest.mark.cluster
def test_occupied_resources_fail_within_the_start_timeout(ray_executor: Executor, tmp_path: Path):
    ray_executor.run(partial(_build, tmp_path), _shards(2), title="occupied")  # by two idle actors
    impatient = make_executor(Cluster(workers=1, start_timeout=1))
    with impatient, pytest.raises(NoWorkersError, match="no worker for 1 s"):
        impatient.run(partial(_build, tmp_path), _shards(2), title="late")


@pytest.mark.cluster
def test_an_interrupt_ends_the_run_and_its_actors(ray_executor: Executor, tmp_path: Path):
    def interrupt() -> None:
        while not (tmp_path / "trace").exists():  # a shard was read
            time.sleep(0.05)
        moments.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    moments: list[float] = []
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        ray_executor.run(partial(_build, tmp_path, _fill), _shards(4), title="interrupted")
    assert time.monotonic() - moments[0] < 2
    processes = {int(line[5]) for line in _trace(tmp_path, "read")}
    deadline = time.monotonic() + 5
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, processes))


def _runs(process: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="lists open ports as Linux does")
def test_the_local_cluster_is_private(ray_executor: Executor, tmp_path: Path):
    ray_executor.run(partial(_build, tmp_path), _shards(1), title="private")
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert token.is_relative_to(tempfile.gettempdir()) or token.is_relative_to("/tmp")
    assert _ports_of_children_open_to_others() == []


def _ports_of_children_open_to_others() -> list[str]:
    """Local addresses, other than loopback, on which processes below this one listen."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for process in family:
        for handle in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(handle).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[9] in sockets]
    assert listening
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    return [address for address in listening if address.partition(":")[0] not in loopback]
