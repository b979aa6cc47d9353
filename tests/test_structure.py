"""One name for one thing: a stage, its conf file and its test share it; docs name every table."""

import re
from pathlib import Path

from pipeline.stages import GROUPS, STAGES
from schemas import TABLES

ROOT = Path(__file__).parents[1]


def test_every_stage_has_its_conf_file_and_its_test():
    assert {path.stem for path in (ROOT / "conf" / "stage").glob("*.yaml")} == set(STAGES)
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "pipeline" / "stages").glob("test_*.py")}
    assert set(STAGES) <= tests
    assert all((ROOT / "pipeline" / "stages" / f"{name}.py").exists() for name in STAGES)


def test_conf_files_document_exactly_the_settings_of_their_stage():
    for name, stage in STAGES.items():
        text = (ROOT / "conf" / "stage" / f"{name}.yaml").read_text()
        documented = set(re.findall(r"^# (\w+) {2,}", text, re.MULTILINE))
        inner = {"units"} if name == "record" else set()  # made by the thresholds stage, not by people
        assert documented == set(stage.model_fields) - inner, name


def test_stages_come_after_what_they_read():
    names = list(STAGES)
    for stage in STAGES.values():
        assert all(names.index(read) < names.index(stage.name) for read in stage.inputs)
    assert all(set(group) <= set(names) for group in GROUPS.values())


def test_readme_names_every_table():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in TABLES if f"`{name}`" not in readme] == []


def test_only_the_actor_the_executor_and_jobs_import_ray():
    importing = {
        str(path.relative_to(ROOT))
        for folder in ("schemas", "workers", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import ray\b|from ray\b)", path.read_text(), re.MULTILINE)
    }
    assert importing == {"workers/actor.py", "pipeline/ray_executor.py", "pipeline/jobs.py"}
