"""Many small runs, in which a random process is killed every few seconds, until each is done: `make soak`.

Every run has a store of its own and is started again for as long as it ends otherwise than done. What is killed is drawn
from all the run's processes: the driver, Ray's own, the workers. A seed, printed, fixes what is drawn and when, but not
what the machine is doing at that moment. At the end, all published tables must be those of an undisturbed run, byte by
byte, and no file may be altered.

    python -m tests.soak [--runs 50] [--seed N] [--every 4]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.ingest import ingest
from pipeline.mend import find_altered
from pipeline.results import list_results
from pipeline.store import Store
from tests import dissect
from tests.dissect import published

CHOSEN = (
    "data=mini", "data.num_images=96", "data.shard_size=4", "data.batch_size=4", "model=mininet",
    "model.weights=random", "layers=[features.4,features.11]", "min_images=16",
)  # fmt: skip
MOST_STARTS = 60  # of one run; the kills end after half as many, lest a slow machine never get through
PATIENCE = 180  # seconds for one start

_KINDS = ("ShardActor", "raylet", "gcs_server", "pipeline.cli", "IDLE", "Agent", "monitor", "log_monitor")


@dataclass
class Soaked:
    """How one run went."""

    seed: int
    starts: int = 0
    kills: Counter = field(default_factory=Counter)
    codes: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    same: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--every", type=float, default=4, help="seconds between kills, on average")
    chosen = parser.parse_args()
    print(f"soak: {chosen.runs} runs, seed {chosen.seed}, a kill every {chosen.every:g} s on average", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        ended = soak(Path(folder), chosen.runs, chosen.seed, chosen.every)
    kills = sum((one.kills for one in ended), Counter())
    print(
        f"soak: {sum(one.same for one in ended)} of {len(ended)} runs ended in the same bytes; {kills.total()} kills in "
        f"{sum(one.starts for one in ended)} starts ({', '.join(f'{kind} {n}' for kind, n in kills.most_common())}); "
        f"exit codes {dict(sum((one.codes for one in ended), Counter()))}; {sum(one.seconds for one in ended):.0f} s"
    )
    sys.exit(0 if all(one.same for one in ended) else 1)


def soak(folder: Path, runs: int, seed: int, every: float) -> list[Soaked]:
    """Do the runs one after another; the stores of those that went wrong are left where the line says."""
    dataset = folder / "dataset"
    ingest(dissect.settings(dataset, *CHOSEN).data, Store(str(dataset)))
    undisturbed = shutil.copytree(dataset, folder / "undisturbed")
    dissect.run_only(undisturbed, *CHOSEN)
    expected = published(undisturbed)
    ended = []
    for number in range(runs):
        store = shutil.copytree(dataset, folder / f"run-{number}")
        one = disturb(store, random.Random(f"{seed}-{number}"), number, every)
        altered = find_altered(Store(str(store)), list_results(Store(str(store))))
        one.same = published(store) == expected and not altered
        told = ", ".join(f"{kind} {n}" for kind, n in one.kills.most_common()) or "nothing"
        verdict = "same bytes" if one.same else f"OTHER BYTES, kept in {shutil.copytree(store, f'{folder}-{number}')}"
        print(
            f"run {number:3d}: {verdict}; {one.starts} starts, killed {told}; exit codes {dict(one.codes)}; "
            f"{one.seconds:.0f} s",
            flush=True,
        )
        shutil.rmtree(store)
        ended.append(one)
    return ended


def disturb(store: Path, chance: random.Random, number: int, every: float) -> Soaked:
    """Start the run until it is done, and kill one of its processes now and then."""
    one, begun = Soaked(number), time.monotonic()
    command = [sys.executable, "-m", "pipeline.cli", "run", *CHOSEN, f"store={store}", "cluster.workers=2"]
    command += ["cluster.cpus_per_worker=0.5", "cluster.start_timeout=30", "cluster.max_deaths=50"]
    while one.codes[0] == 0 and one.starts < MOST_STARTS:
        one.starts += 1
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            start_new_session=True,
        ) as driver:
            family: dict[int, psutil.Process] = {}
            next_kill, deadline = time.monotonic() + chance.expovariate(1 / every), time.monotonic() + PATIENCE
            while driver.poll() is None:
                time.sleep(0.1)
                family |= {process.pid: process for process in _living(driver.pid)}
                if time.monotonic() >= next_kill and one.starts < MOST_STARTS // 2:
                    if victims := _living(driver.pid):
                        one.kills[_kill(chance.choice(victims))] += 1
                    next_kill = time.monotonic() + chance.expovariate(1 / every)
                if time.monotonic() > deadline:
                    driver.kill()
                    one.codes["hung"] += 1
            one.codes[driver.returncode] += 1
        for process in family.values():  # what a killed driver's Ray leaves for a while
            if process.is_running():
                process.kill()
    one.seconds = time.monotonic() - begun
    return one


def _living(driver: int) -> list[psutil.Process]:
    try:
        mother = psutil.Process(driver)
        return [p for p in [mother, *mother.children(recursive=True)] if p.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> str:
    """Kill it; what it was."""
    try:
        words = " ".join(process.cmdline())
        process.kill()
    except psutil.NoSuchProcess:
        return "gone already"
    return next((kind for kind in _KINDS if kind in words), "another")


if __name__ == "__main__":
    main()
