"""Schedule files: what is wrong is named, tasks and globs are as documented."""

from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError, SettingsError
from pipeline.redact import shown
from pipeline.schedule import read_schedule, to_words
from pipeline.store import Store
from pipeline.tasks import checkpoint_key, expand, find_checkpoints, is_glob

JOB = {"models": "mininet", "checkpoints": "random", "data": "tiny"}


def write(folder: Path, **values: object) -> Path:
    path = folder / "nightly.yaml"
    path.write_text(yaml.safe_dump({"store": str(folder / "store"), "jobs": [JOB], **values}))
    return path


def tasks(folder: Path, **values: object):
    return expand(read_schedule(write(folder, **values)))


def test_the_shipped_example_is_a_schedule():
    schedule = read_schedule(Path(__file__).parents[2] / "conf" / "schedule" / "nightly.yaml")
    assert [task.name for task in expand(schedule).tasks] == ["mininet trained mini"]
    assert schedule.cron == "30 2 * * *"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concurency": 2}, r"nightly\.yaml: unknown setting 'concurency'; did you mean 'concurrency'"),
        ({"retention": {"keep_newst": 1}}, r"unknown setting 'retention\.keep_newst'; did you mean 'keep_newest'\?"),
        ({"retention": {"keep_newest": 0}}, r"retention\.keep_newest is 0"),
        ({"jobs": [JOB, {**JOB, "layrs": "x"}]}, r"unknown setting 'jobs\.1\.layrs'; did you mean 'layers'\?"),
        ({"jobs": [{"models": "mininet"}]}, r"jobs\.0\.data is not set"),
        ({"jobs": []}, "jobs is"),
        ({"jobs": ["mininet"]}, r"jobs\.0 is 'mininet', must be a mapping"),
        ({"jobs": {"models": "mininet"}}, "must be a list of jobs"),
        ({"store": ""}, "store is ''"),
        ({"name": "../up"}, r"name is '\.\./up'"),
        ({"lease_seconds": 0}, "lease_seconds is 0"),
        ({"cron": "0 3 * *"}, "has 4 fields, must have 5"),
        ({"cron": "0 25 * * *"}, "is no cron expression"),
        ({"cron": "0 3 1 * mon"}, "sets both a day and a weekday"),
        ({"cron": "0 3 * * 8"}, "weekday is '8', must be 0 to 7"),
        ({"timezone": "Europe/Nowhere"}, "there is no time zone 'Europe/Nowhere'"),
        ({"on_failure": {"url": "ftp://there/x"}}, "must begin with http:// or https://"),
        ({"on_failure": {"url": "file:///etc/passwd"}}, "must begin with http:// or https://"),
        ({"on_failure": {"command": "mail me"}}, r"on_failure\.command"),
        ({"settings": {"store": "elsewhere"}}, "has store, which a schedule gives as store"),
        ({"settings": {"model": {"weights": "x"}}}, r"has model\.weights, which a schedule gives as checkpoints"),
        ({"jobs": [{**JOB, "settings": {"layers": "x"}}]}, r"jobs\.0\.settings: has layers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, values, message):
    with pytest.raises(SettingsError, match=message) as raised:
        read_schedule(write(tmp_path, **values))
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("store: [", "is no YAML"),
        ("- store", "is a list, must be a mapping"),
        ("", "is a NoneType, must be a mapping"),
        ("store: a\nstore: b\njobs: []", "'store' is given twice"),
        ("store: !!python/object/apply:os.system [ls]\njobs: []", "is no YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_schedule_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_schedule(path)
    with pytest.raises(SettingsError, match=r"cannot read schedule .*: No such file"):
        read_schedule(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jobs": [{**JOB, "models": "alexnte"}]}, r"jobs\.0\.models has unknown 'alexnte'; did you mean 'alexnet'"),
        ({"jobs": [{**JOB, "stages": "disect"}]}, r"jobs\.0: stages has 'disect'.*did you mean 'dissect'"),
        ({"settings": {"cluster.worker": 2}}, r"unknown setting 'cluster\.worker'; did you mean 'cluster\.workers'"),
        ({"settings": {"quantile": 2}}, "quantile"),
    ],
)
def test_settings_of_runs_are_validated_before_anything_runs(tmp_path, values, message):
    with pytest.raises(SettingsError, match=message):
        tasks(tmp_path, **values)


def test_tasks_are_models_by_data_by_checkpoints_each_once(tmp_path):
    jobs = [
        {"models": ["mininet", "alexnet"], "checkpoints": ["random", "DEFAULT"], "data": ["a", "b"], "layers": ["x", "y"]},
        {"models": "mininet", "checkpoints": "random", "data": ["b", "c"], "layers": ["x", "y"]},
        {"models": "mininet", "data": "a"},
    ]  # fmt: skip
    names = [task.name for task in tasks(tmp_path, jobs=jobs).tasks]
    assert names == [
        "mininet random a", "mininet DEFAULT a", "mininet random b", "mininet DEFAULT b",
        "alexnet random a", "alexnet DEFAULT a", "alexnet random b", "alexnet DEFAULT b",
        "mininet random c", "mininet trained a",
    ]  # fmt: skip


def test_settings_of_the_schedule_are_those_of_every_run_and_a_jobs_go_over_them(tmp_path):
    settings = {"cluster": "inline", "quantile": 0.01, "splits": ["val", "train"], "model": {"seed": 7}}
    (first, second) = tasks(
        tmp_path, settings=settings, jobs=[JOB, {**JOB, "settings": {"quantile": 0.02, "model.num_classes": None}}]
    ).tasks
    assert first.settings.cluster.executor == "inline"
    assert first.settings.model.seed == second.settings.model.seed == 7
    quantiles = [task.settings.stages_by_name()["thresholds"].model_dump()["quantile"] for task in (first, second)]
    assert quantiles == [0.01, 0.02]
    assert first.place == second.place
    assert first.name == f"mininet random tiny {first.task_id[:6]}" != second.name
    assert first.task_id != second.task_id


def test_an_id_depends_on_what_results_depend_on_and_on_nothing_else(tmp_path):
    def task_id(**settings):
        return tasks(tmp_path, settings=settings).tasks[0].task_id

    one = task_id()
    same = [{"cluster.workers": 3}, {"cluster": "inline"}, {"cluster.window": 1}, {"quantile": 0.005}]
    other = [{"quantile": 0.01}, {"cluster.threads": 2}, {"model.seed": 1}, {"cluster.precision": "bfloat16"}]
    assert {task_id(**given) for given in same} == {one}
    assert len({one, *(task_id(**given) for given in other)}) == 1 + len(other)


def test_settings_as_words():
    given = {"a": None, "b": True, "c": [1, "x"], "d": 0.5, "e": "a=b, c"}
    assert to_words(given) == ["a=null", "b=true", "c=[1,x]", "d=0.5", "e=a=b, c"]


@pytest.mark.parametrize("kind", ["local", "memory", "store"])
def test_globs_find_weights_files_only_sorted_and_as_they_are_read(tmp_path, kind):
    store = Store(str(tmp_path / "store"))
    folder = {"local": str(tmp_path / "ck"), "memory": f"memory://{tmp_path.name}", "store": "store:weights"}[kind]
    place, prefix = (store, "weights/") if kind == "store" else (Store(folder), "")
    for name in ("b.pth", "a.safetensors", "c.pt", "notes.txt", "deep/d.pth", "e.pth.part"):
        place.write(f"{prefix}{name}", b"x")
    names = [f"{folder}/{name}" for name in ("a.safetensors", "b.pth", "c.pt")]
    assert [one.replace("memory:///", "memory://") for one in find_checkpoints(f"{folder}/*", store)] == names
    assert len(find_checkpoints(f"{folder}/**/*.pth", store)) == 2
    assert find_checkpoints(f"{folder}/[x-z]*", store) == []
    (found,) = find_checkpoints(f"{folder}/a*", store)
    before = checkpoint_key(found, store)
    assert checkpoint_key(found, store) == before
    place.write(f"{prefix}a.safetensors", b"other")
    assert checkpoint_key(found, store) != before


def test_a_glob_that_matches_nothing_is_a_remark_and_a_place_that_cannot_be_listed_a_problem(tmp_path):
    jobs = [{**JOB, "checkpoints": [f"{tmp_path}/none/*.pth", "nothing://x/*.pth", "random"]}]
    expansion = tasks(tmp_path, jobs=jobs)
    assert expansion.remarks == [f"jobs.0: {tmp_path}/none/*.pth matches no weights file"]
    assert [bool(task.problem) for task in expansion.tasks] == [True, False]
    assert "nothing://x/*.pth" in (expansion.tasks[0].problem or "")


def test_a_relative_file_is_the_same_task_from_wherever_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [{**JOB, "checkpoints": ["ck/a.pth", str(tmp_path / "ck" / "a.pth")]}]
    (task,) = tasks(tmp_path, jobs=jobs).tasks
    assert task.checkpoint == str(tmp_path / "ck" / "a.pth")
    with pytest.raises(InputError, match=r"there is no checkpoint .*a\.pth"):
        checkpoint_key(task.checkpoint, Store(str(tmp_path)))


def test_web_addresses_are_globs_only_by_a_star_and_secrets_are_not_shown():
    assert not is_glob("https://there/a.pth?sig=1")
    assert is_glob("https://there/*.pth")
    assert is_glob("s3://bucket/run-?/a.pth")
    assert shown("https://me:secret@there/a.pth?sig=1") == "https://there/a.pth"
    assert shown("s3://bucket/a.pth") == "s3://bucket/a.pth"
