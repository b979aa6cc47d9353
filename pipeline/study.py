"""A study: one network's weights x one data set x the numerics. Its id hashes these."""

import json
import platform
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from pipeline.errors import InputError
from pipeline.settings import Cluster
from pipeline.store import Store, digest
from schemas import STUDIES
from workers.precision import MemoryFormat, Precision

LAST = "last"


class Numerics(BaseModel):
    """What can move the last bit of a forward pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    machine: str  # instruction set: x86_64, aarch64
    device: str  # cpu or cuda
    cpu_capability: str
    threads: int
    batch_size: int
    tf32: bool
    precision: Precision = "float32"
    memory_format: MemoryFormat = "contiguous"

    @classmethod
    def here(cls, device: str, cluster: Cluster, batch_size: int) -> "Numerics":
        """The numerics of this process; on a cluster of mixed hardware, the run names what it met."""
        return cls(
            torch=torch.__version__,
            machine=platform.machine(),
            device=device,
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            threads=cluster.threads,
            batch_size=batch_size,
            tf32=cluster.precision == "tf32",
            precision=cluster.precision,
            memory_format=cluster.memory_format,
        )


class Study(BaseModel):
    """What is looked at. Everything measured on it gathers under its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, Any]
    dataset_id: str
    images_id: str
    dataset: str
    num_images: int
    numerics: Numerics

    @cached_property
    def forward_id(self) -> str:
        """What the forward pass depends on: no labels, so that new labels reuse it."""
        numerics = self.numerics.model_dump(exclude_defaults=True)  # fields that are newer than studies have defaults
        return digest([self.model, self.weights_sha256, self.preprocessing, self.images_id, numerics])

    @cached_property
    def study_id(self) -> str:
        return digest([self.forward_id, self.dataset_id])

    def publish(self, store: Store) -> None:
        """Write its row of the `studies` table and its description, unless they are there."""
        row = {
            **self.model_dump(exclude={"preprocessing", "numerics"}),
            "study_id": self.study_id,
            "numerics": json.dumps(self.numerics.model_dump(), sort_keys=True),
        }
        path = f"tables/studies/study_id={self.study_id}/study.parquet"
        if not store.exists(path):
            store.write_table(path, STUDIES.cast(pa.Table.from_pylist([row])))
        store.create(f"results/{self.study_id}/study.json", self.model_dump_json(indent=1).encode())


def list_studies(store: Store) -> dict[str, Study]:
    """All studies of a store, by id."""
    paths = [path for path in store.list("results") if path.endswith("/study.json")]
    return {path.split("/")[1]: Study.model_validate_json(store.read(path)) for path in paths}


def find_study(store: Store, prefix: str) -> Study:
    """The one study whose id begins with `prefix`; an empty prefix finds the only study there is.

    Args:
        store: where it lies.
        prefix: or `last`, the study of the last run.

    Raises:
        InputError: none or several begin with it; the message lists those there are.
    """
    studies = list_studies(store)
    announced = sorted(path for path in store.list("runs") if path.endswith(".json"))
    if prefix == LAST and announced:
        prefix = store.read_json(announced[-1])["study_id"]
    found = [study for study_id, study in sorted(studies.items()) if study_id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    rows = [f"  {i}  {s.model} {s.weights} on {s.dataset}" for i, s in sorted(studies.items())]
    known = "\n".join(rows) or "  none"
    number = "no study" if not found else f"{len(found)} studies"
    raise InputError(
        f"{number} in {store.url} with an id that begins with {prefix!r}: name one, or `last` for that of the last run. "
        f"There are:\n{known}"
    )
