"""Jobs on a Ray cluster: the same command, run there by Ray's jobs API, under an id that its work gives it.

A job is named `raydissect-<hash of what is to be done>`, and a later attempt at the same work `...-2`, `...-3`: Ray
does not support that the id of a deleted job is used again. So whoever submits work that is under way attaches to
it, and of two who submit at once, one does and the other attaches. What was done stays done: an attempt runs only
what is missing.

The token is read as Ray reads it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), and goes nowhere but into
the header of requests.
"""

import asyncio
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from aiohttp import ClientError
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus

from pipeline.compose import RunSettings, compose_settings
from pipeline.errors import DONE, FAILED, INTERRUPTED, JobsError, SettingsError
from pipeline.schedule import read_schedule
from pipeline.shipping import code_folder
from pipeline.store import Store, digest
from pipeline.subject import keep_weights, resolve_device
from workers.weights import is_file

FLAGS = ("-v", "--verbose")
REPROCESS = "reprocess"

_SCHEDULE = "schedule.yaml"

_FILES = ("file", "local")
_OF_ONE_MACHINE = (*_FILES, "memory")
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "RAY_JOB_STOP_SIGNAL": "SIGINT",  # as Ctrl-C: the run's record says that it was interrupted
    "RAY_JOB_STOP_WAIT_TIME_S": "20",
}
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
_ANSWER_SECONDS = 10
_SILENT_SECONDS = 30  # of a log, after which the cluster is asked whether it is still there
_STOP_SECONDS = 60
_MOST_TRIES = 5
_HINT = "set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token"


@dataclass(frozen=True)
class Work:
    """A command that is checked and fit to be sent: it names nothing that only this machine has.

    Attributes:
        words: of the command line, without `raydissect`.
        store: where what it does can be watched.
        identity: what is to be done, whoever does it and on how many workers.
        files: sent along, into the folder that the command runs in.
    """

    words: tuple[str, ...]
    store: str
    identity: Any = field(repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return f"raydissect-{digest(self.identity)}"


@dataclass(frozen=True)
class Submitted:
    """A job at work, and whether it was already."""

    job_id: str
    attached: bool


@dataclass(frozen=True)
class Ended:
    """How a job ended: the exit code to end with, and what Ray says where the command itself could not."""

    code: int
    message: str = ""


def check_work(words: Sequence[str]) -> Work:
    """Check a command as it would be checked where it runs. Own weights are copied into the store.

    Args:
        words: `run` or `ingest` with their settings, `reprocess` with a schedule; without a command, of `run`.

    Raises:
        SettingsError: it is another command, or a setting is wrong or names something that the cluster cannot see.
    """
    command, rest = (words[0], list(words[1:])) if words and "=" not in words[0] else ("run", list(words))
    if command not in (*_COMMANDS, REPROCESS):
        known = " or ".join((*_COMMANDS, REPROCESS))
        raise SettingsError(f"{command!r} cannot be submitted, only {known} can: submit -- run model=...")
    flags, rest = [word for word in rest if word in FLAGS], [word for word in rest if word not in FLAGS]
    if options := [word for word in rest if word.startswith("-")]:
        raise SettingsError(f"{options[0]!r} cannot be submitted with {command}, of its options only {FLAGS[0]} can")
    if command == REPROCESS:
        return _check_reprocess(flags, rest)
    settings = compose_settings(rest)
    _check_visible("store", settings.store)
    sent, identity = _COMMANDS[command](settings, rest)
    return Work((command, *flags, *sent), settings.store, [command, settings.store, *identity])


def _check_reprocess(flags: list[str], words: list[str]) -> Work:
    """The schedule goes along as a file; its runs work on the cluster they are on."""
    if len(words) != 1:
        raise SettingsError(f"{REPROCESS} takes one schedule, not {len(words)}: submit -- {REPROCESS} SCHEDULE.yaml")
    schedule = read_schedule(Path(words[0])).model_dump(mode="json")
    _check_visible("the schedule's store", schedule["store"])
    for entry in (schedule, *schedule["jobs"]):
        entry["settings"].pop("cluster.address", None)
        for checkpoint in entry.get("checkpoints", ()):
            if (is_file(checkpoint) or set("/*?[") & set(checkpoint)) and not checkpoint.startswith("store:"):
                _check_visible("a checkpoint", checkpoint)
    schedule["settings"]["cluster.address"] = "auto"
    files = {_SCHEDULE: json.dumps(schedule, indent=1)}
    return Work((REPROCESS, *flags, _SCHEDULE), schedule["store"], [REPROCESS, schedule], files)


def _check_run(settings: RunSettings, overrides: list[str]) -> tuple[list[str], list[Any]]:
    cluster = settings.cluster
    if cluster.executor != "ray" or cluster.address:
        raise SettingsError(
            "a job works on the cluster it is submitted to: leave out cluster=inline and cluster.address"
        )
    cluster = cluster.model_copy(update={"address": "auto"})
    settings = settings.model_copy(update={"cluster": cluster})
    numerics = [resolve_device(cluster), cluster.threads, cluster.precision, cluster.memory_format]
    weights = settings.model.weights
    if is_file(weights) and not weights.startswith("store:") and not _is_plain_url(weights):
        weights = keep_weights(settings.model, Store(settings.store)).weights
        overrides = [word for word in overrides if word.lstrip("+").partition("=")[0] != "model.weights"]
        overrides.append(f"model.weights={weights}")
    model = settings.model.model_copy(update={"weights": weights}).model_dump(mode="json")
    stages = {name: stage.model_dump(mode="json") for name, stage in settings.stages_by_name().items()}
    identity = [model, settings.data.dataset_name, settings.stages, settings.layers, stages, numerics]
    return [*overrides, "cluster.address=auto"], identity


def _check_ingest(settings: RunSettings, overrides: list[str]) -> tuple[list[str], list[Any]]:
    if settings.data.root is not None:
        _check_visible("data.root", settings.data.root)
    return overrides, [settings.data.model_dump(mode="json", exclude={"threads"})]


_COMMANDS = {"run": _check_run, "ingest": _check_ingest}


def _check_visible(name: str, place: str) -> None:
    protocol, is_url, path = place.rpartition("://")
    if (is_url and protocol not in _OF_ONE_MACHINE) or (protocol in ("", *_FILES) and path.startswith("/")):
        return
    raise SettingsError(
        f"{name} is {place}, which the cluster's nodes cannot see: give a URL (s3://bucket/prefix), "
        "or the absolute path of a disk that all of them share"
    )


def _is_plain_url(weights: str) -> bool:
    """Whether nodes can read it by themselves, and everyone may: a query may hold a signature."""
    protocol, is_url, _ = weights.partition("://")
    return bool(is_url) and protocol not in _OF_ONE_MACHINE and "?" not in weights


class Jobs:
    """The jobs of a cluster, reached by its dashboard's URL.

    Raises:
        JobsError: by every method that gets no answer, or is refused; the message says why.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        headers = _authorization()
        _check_answers(self.address, headers)
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        with _unset("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"), self._errors():  # Ray prefers these to what it is given
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, work: Work, *, installed: bool = False, env: Sequence[str] = ()) -> Submitted:
        """Start the work, or find it started.

        Args:
            work: what to do.
            installed: with the code that the cluster has, instead of a copy of this machine's.
            env: names of environment variables to send along; who can see the dashboard sees their values.
        """
        if missing := [name for name in env if name not in os.environ]:
            raise SettingsError(f"--env {missing[0]}: there is no such environment variable here")
        attempts = self._attempts(work)
        if attempts and not attempts[-1].status.is_terminal():
            return Submitted(_id(attempts[-1]), attached=True)
        for old in attempts[:-1]:  # the last one's id tells the number of the next
            with suppress(RuntimeError):  # another submitter was faster
                self._client.delete_job(_id(old))
        number = _number(work, _id(attempts[-1])) + 1 if attempts else 1
        job_id = work.name if number == 1 else f"{work.name}-{number}"
        runtime_env: dict[str, Any] = {"env_vars": _ENVIRONMENT | {name: os.environ[name] for name in env}}
        with ExitStack() as stack:
            stack.enter_context(self._errors())
            if not installed or work.files:
                folder = TemporaryDirectory(prefix="raydissect-job-") if installed else code_folder()
                runtime_env["working_dir"] = str(stack.enter_context(folder))
                for name, text in work.files.items():
                    Path(runtime_env["working_dir"], name).write_text(text)
            entrypoint = shlex.join(["python", "-m", "pipeline.cli", *work.words])
            try:
                self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
            except RuntimeError:
                if job_id not in map(_id, self._attempts(work)):
                    raise
                return Submitted(job_id, attached=True)
        return Submitted(job_id, attached=False)

    def cancel(self, work: Work) -> str | None:
        """Stop the job that does this work; its id, or None where none is at it."""
        attempts = self._attempts(work)
        if not attempts or attempts[-1].status.is_terminal():
            return None
        job_id = _id(attempts[-1])
        with self._errors():
            self._client.stop_job(job_id)
            deadline = time.monotonic() + _STOP_SECONDS
            while not self._client.get_job_info(job_id).status.is_terminal():
                if time.monotonic() > deadline:
                    raise JobsError(f"{job_id} was asked to stop, and has not: ask again, or look at {self.address}")
                time.sleep(0.2)
        return job_id

    def follow(self, job_id: str, on_line: Callable[[str], None]) -> Ended:
        """Hand on the lines of a job's log from its beginning, until it ends."""
        log, tries = _Log(on_line), 0
        while True:
            try:
                asyncio.run(self._tail(job_id, log))
                details = self._client.get_job_info(job_id)
            except (RuntimeError, OSError, ClientError) as error:
                tries += 1
                if tries == _MOST_TRIES:
                    raise JobsError(f"lost sight of {job_id} at {self.address}, which may go on: {error}") from error
            else:
                if details.status.is_terminal():
                    log.close()
                    return _ended(details)
            time.sleep(1)

    async def _tail(self, job_id: str, log: "_Log") -> None:
        """Read a job's log until it ends; while it is silent, make sure that the cluster is there."""
        log.rewind()
        pieces = self._client.tail_job_logs(job_id)
        with suppress(StopAsyncIteration):
            while True:
                piece = asyncio.ensure_future(anext(pieces))
                while not (await asyncio.wait([piece], timeout=_SILENT_SECONDS))[0]:
                    await asyncio.to_thread(self._client.get_job_info, job_id)
                log.add(piece.result())

    def _attempts(self, work: Work) -> list[JobDetails]:
        """Jobs that do or did this work, the last one last."""
        with self._errors():
            found = [job for job in self._client.list_jobs() if _number(work, job.submission_id or "")]
        return sorted(found, key=lambda job: _number(work, _id(job)))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise JobsError(f"{self.address} refuses the token: {str(error).splitlines()[0]}") from error
        except (RuntimeError, OSError) as error:
            if isinstance(error, JobsError):
                raise
            raise JobsError(f"the jobs API at {self.address} failed: {error}") from error


class _Log:
    """Hands on whole lines of a text that comes in pieces, once each, also where it comes again from its beginning."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._rest, self._seen, self._skip = on_line, "", 0, 0

    def rewind(self) -> None:
        """The text begins anew."""
        self._skip = self._seen

    def add(self, piece: str) -> None:
        fresh = piece[self._skip :]
        self._skip -= len(piece) - len(fresh)
        self._seen += len(fresh)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self._on_line(line)

    def close(self) -> None:
        if self._rest:
            self._on_line(self._rest)


def _id(job: JobDetails) -> str:
    return job.submission_id or ""


def _number(work: Work, job_id: str) -> int:
    """Which attempt at some work a job is, from 1; 0 if at none."""
    found = re.fullmatch(rf"{work.name}(?:-(\d+))?", job_id)
    return int(found[1] or 1) if found else 0


def _ended(job: JobDetails) -> Ended:
    if job.status == JobStatus.SUCCEEDED:
        return Ended(DONE)
    if job.status == JobStatus.STOPPED:
        return Ended(INTERRUPTED, "it was stopped")
    code = job.driver_exit_code or 0
    if code > 0:  # the log says why
        return Ended(code)
    return Ended(FAILED, job.message or "it was killed")


def _authorization() -> dict[str, str]:
    """The header with the token, where there is one and authentication is not disabled."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    token, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    default = Path.home() / ".ray" / "auth_token"
    if not token and (path or default.exists()):
        try:
            token = Path(path or default).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise JobsError(f"the token cannot be read from {path or default}: {error}; {_HINT}") from error
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _check_answers(address: str, headers: Mapping[str, str]) -> None:
    """Notice in a moment that nobody listens, that it is not Ray, or that the token is not wanted."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"--address is {address}, must be the URL of the cluster's dashboard: http://HOST:8265")
    try:
        with urlopen(Request(f"{address}/api/version", headers=dict(headers)), timeout=_ANSWER_SECONDS) as answer:
            is_ray = "ray_version" in json.loads(answer.read())
    except HTTPError as error:
        if error.code == 401:
            raise JobsError(f"{address} asks for a token, and none was found here: {_HINT}") from error
        if error.code == 403:
            raise JobsError(f"{address} refuses the token, which is another cluster's: {_HINT}") from error
        raise JobsError(f"{address} answers with HTTP status {error.code}: is it a Ray dashboard?") from error
    except URLError as error:
        raise JobsError(f"nobody answers at {address}: {error.reason}; is the cluster running?") from error
    except (OSError, ValueError) as error:
        raise JobsError(f"{address} gives no sensible answer, is it a Ray dashboard? {error}") from error
    if not is_ray:
        raise JobsError(f"{address} is no Ray dashboard")


@contextmanager
def _unset(*names: str) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
