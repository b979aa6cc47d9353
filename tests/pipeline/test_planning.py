"""Planning against a model: whatever happens to checkpoints, data, results and records, a task runs if and only if
some of its results for what there is now are neither there nor retired."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import fsspec
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import reprocess as module
from pipeline import tasks
from pipeline.compose import compose_settings
from pipeline.records import RETIRED
from pipeline.reprocess import DONE, Planner, Stop, reprocess
from pipeline.schedule import Schedule
from pipeline.store import Store, digest
from pipeline.study import Numerics, Study

STAGES = ("thresholds", "tally")
CHECKPOINTS, DATA, QUANTILES = ("a", "b"), ("x", "y"), (0.1, 0.2)

ops = st.one_of(
    st.tuples(st.just("checkpoint"), st.sampled_from(CHECKPOINTS), st.integers(0, 2)),
    st.tuples(st.just("data"), st.sampled_from(DATA), st.integers(0, 2)),
    st.tuples(st.just("lose"), st.integers(0, 50)),
    st.tuples(st.just("retire"), st.integers(0, 50)),
    st.tuples(st.just("forget"), st.integers(0, 50)),
    st.tuples(st.just("away"), st.sampled_from(CHECKPOINTS)),
    st.tuples(st.just("stop"), st.integers(1, 3)),
    st.tuples(st.just("reprocess")),
)


class World:
    """A store in memory, in which a run leaves bare manifests and the traces that a real one leaves."""

    def __init__(self) -> None:
        self.store, self.models = Store("memory://planning/store"), Store("memory://planning/ck")
        self.budget: int | None = None
        self.stop = Stop()
        self.ran: list[str] = []
        job = {
            "models": "mininet",
            "checkpoints": f"{self.models.url}/*.pth",
            "data": list(DATA),
            "stages": list(STAGES),
            "layers": "l",
        }
        jobs = [{**job, "settings": {"quantile": q, "tail_quantile": 0.5}} for q in QUANTILES]
        self.schedule = Schedule.model_validate({"name": "n", "store": self.store.url, "jobs": jobs})
        for name in DATA:
            self.ingest(name, 0)

    def ingest(self, name: str, labels: int) -> None:
        self.store.write_json(f"by-name/{name}", f"{name}{labels}")

    def study(self, task) -> Study:
        dataset = self.store.read_json(f"by-name/{task.data}")
        weights = self.models.read(task.checkpoint.rpartition("/")[2])
        numerics = Numerics(torch="", machine="", device="cpu", cpu_capability="", threads=1, batch_size=1, tf32=False)
        return Study(
            model="mininet", weights="", weights_sha256=digest(weights.decode()), preprocessing={}, dataset_id=dataset,
            images_id=dataset, dataset=task.data, num_images=1, numerics=numerics,
        )  # fmt: skip

    def paths(self, task) -> tuple[str, ...]:
        quantile = task.settings.stages_by_name()["thresholds"].model_dump()["quantile"]
        return tuple(f"results/{self.study(task).study_id}/{stage}/l/{quantile}.json" for stage in STAGES)

    def whole(self, task) -> bool:
        there = [*self.store.list("results"), *(path.removeprefix(f"{RETIRED}/") for path in self.store.list(RETIRED))]
        return set(self.paths(task)) <= set(there)

    def tasks(self):
        return module.expand(self.schedule).tasks

    def make(self, task) -> None:
        """What a run leaves: a study, a copy of the weights, manifests."""
        study, data = self.study(task), self.models.read(task.checkpoint.rpartition("/")[2])
        self.store.create(f"results/{study.study_id}/study.json", study.model_dump_json().encode())
        self.store.create(f"weights/{module.hashlib.sha256(data).hexdigest()[:16]}.pth", data)
        for path in self.paths(task):
            self.store.create(path, b"{}")

    def reprocess(self) -> None:
        """Run it, or some of it; what runs must be exactly what is not done."""
        due = [task for task in self.tasks() if not self.whole(task)]
        steps = Planner(self.store).steps(self.tasks())
        assert [step.task.task_id for step in steps if step.run] == [task.task_id for task in due]
        self.ran = []
        try:
            outcome = reprocess(self.schedule, self.stop, lambda plan: None, lambda name, line: None)
        except KeyboardInterrupt:
            return
        assert self.ran == [task.task_id for task in due]
        assert (len(outcome.computed), len(outcome.failed)) == (len(due), 0)
        assert all(self.whole(task) for task in self.tasks())
        assert {step.reason for step in Planner(self.store).steps(self.tasks())} <= {DONE, module.RETIRED}

    def apply(self, name: str, *what) -> None:
        if name == "checkpoint":
            self.models.write(f"{what[0]}.pth", str(what[1]).encode())
        elif name == "data":
            self.ingest(*what)
        elif name == "away":
            self.models.remove(f"{what[0]}.pth")
        elif name in ("lose", "retire", "forget"):
            folder = "reprocess/tasks" if name == "forget" else "results"
            paths = [path for path in self.store.list(folder) if not path.endswith("study.json")]
            for path in paths[what[0] % len(paths) :][:1] if paths else ():
                if name == "retire":
                    self.store.write(f"{RETIRED}/{path}", b"{}")
                self.store.remove(path)
        else:
            self.stop, self.budget = Stop(), what[0] if name == "stop" else None
            self.reprocess()


@contextmanager
def begin() -> Iterator[World]:
    """A world in which nothing is loaded and nothing computed."""
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/planning", recursive=True)
    world = World()

    class Child:
        code, error = 0, ""

        def __init__(self, name, words, on_line, ended) -> None:
            (task,) = [task for task in world.tasks() if list(task.words) == words[1:]]
            if world.budget is not None and len(world.ran) >= world.budget:
                world.stop.asked = True
                return
            world.make(task)
            world.ran.append(task.task_id)
            ended.put(self)

        def interrupt(self) -> None: ...

        def wait(self, deadline) -> None: ...

    def look(planner, task):
        return world.study(task).study_id, world.paths(task), world.whole(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "compose_settings", lambda words: composed(tuple(words)))
        patch.setattr(Planner, "look", look)
        patch.setattr(Planner, "_dataset_id", lambda planner, name: world.store.read_json(f"by-name/{name}"))
        patch.setattr(module, "Child", Child)
        patch.setattr(module, "POLL", 0.001)
        yield world


composed = cache(lambda words: compose_settings(list(words)))


@example([("checkpoint", "b", 0), ("stop", 1)])  # b was begun, and what it would do is done by a, of the same bytes
@given(st.lists(ops, min_size=4, max_size=14))
@hypothesis_settings(max_examples=40, deadline=None)
def test_what_is_not_done_runs_and_nothing_else(history):
    with begin() as world:
        for name, *what in [("checkpoint", "a", 0), *history, ("reprocess",), ("reprocess",)]:
            world.apply(name, *what)
        assert world.ran == []
