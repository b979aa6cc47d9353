"""How memory grows with the number of images: `python -m benchmarks.memory STORE THREADS` is one dissection."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.data import ROOT, write_specks
from benchmarks.figure import Bar, Figure, interleave, ratios
from benchmarks.networks import MININET

FEW, MANY = 200, 20_000


def memory(bench: Bench, few: int = FEW, many: int = MANY) -> Iterator[Figure]:
    """Peak memory of a process that dissects many small images / few; a process of its own each time."""
    stores = [bench.ingested(number, write_specks(bench.folder / f"specks-{number}", number)) for number in (few, many)]
    peaks = interleave(bench.rounds, *[lambda store=store: _peak_of(bench, store) for store in stores])
    for number, peak in zip((few, many), peaks, strict=True):
        yield Figure(f"peak memory, MiniNet, {number} images of 32 px", peak, "MB")
    yield Figure(f"peak memory, {many} images / {few}", ratios(peaks[1], peaks[0]), bar=Bar(1.1))


def _peak_of(bench: Bench, ingested: Path) -> float:
    """Megabytes that a process of its own has at most while it dissects."""
    with bench.copy(ingested) as store:
        command = [sys.executable, "-m", "benchmarks.memory", str(store), str(bench.threads)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main(store: str, threads: str) -> None:
    folder = Path(store)
    Bench(folder.parent, threads=int(threads)).dissect_in(folder, MININET)
    print(json.dumps(_peak_bytes() / 1e6))


def _peak_bytes() -> int:
    """Most this process had in memory.

    Linux says so in a file: `getrusage` there counts what the process that started this one ever had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
