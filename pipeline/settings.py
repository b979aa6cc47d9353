"""What a user can set: frozen pydantic models that refuse what they do not know."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.precision import MemoryFormat, Precision

OnProgress = Callable[[str, int, int], None]
"""Called with what is being worked on, how much of it is done, and how much there is."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or nothing where nothing is near."""
    near = get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Single values by their full names; an empty mapping has none."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


NUMERICS = ("threads", "device", "precision", "memory_format")
"""Settings of the cluster that can move the last bit of a forward pass; all others may change from run to run."""


class Cluster(Settings):
    """Where shards are worked on (`cluster=ray` or `cluster=inline`)."""

    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None  # of a running Ray cluster; None starts a local one on loopback
    workers: int | None = Field(None, ge=1)  # None: one for every `cpus_per_worker` the cluster has
    threads: int = Field(1, ge=1)  # torch threads a worker; part of the numerics, so set in every executor
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"  # of the forward pass; part of the numerics
    memory_format: MemoryFormat = "contiguous"  # likewise; channels_last is often faster
    decode_threads: int | None = Field(None, ge=1)  # a worker; None: the cores that it leaves idle, at most 8
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    resources: dict[str, float] = {}  # custom Ray resources a worker asks for
    window: int = Field(2, ge=1)  # shards in flight a worker: one computed, the rest read or written; 1: no overlap
    max_deaths: int = Field(3, ge=1)  # a shard that outlives this many workers is quarantined
    shard_timeout: float = Field(1800, gt=0)  # seconds after which a shard counts as hung
    start_timeout: float = Field(120, gt=0)  # seconds without any worker after which the run fails
    ship_code: bool = True  # to the cluster at `address`: workers run this process's version of raydissect
    runtime_env: dict[str, Any] = {}
