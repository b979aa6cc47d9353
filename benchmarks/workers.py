"""How much faster two Ray workers are than one, each of one torch thread."""

from collections.abc import Iterator

from benchmarks.bench import Bench, timed_run
from benchmarks.figure import Bar, Figure, interleave, rates, ratios
from benchmarks.networks import SQUEEZENET, Network
from pipeline.executor import make_executor

SHARD_SIZE = 16  # so many shards that the last of them do not leave a worker idle for long


def workers(bench: Bench, network: Network = SQUEEZENET) -> Iterator[Figure]:
    """Images a second of the stages that run the network, on 1 worker and on 2, and their ratio.

    Starting Ray and its actors is left out: they have recorded a few images before. An actor's loading of the
    network cannot be told apart from its work, hence a network with few weights.
    """
    few = bench.ingested(min(4 * SHARD_SIZE, bench.images), shard_size=SHARD_SIZE)
    ingested = bench.ingested(bench.images, shard_size=SHARD_SIZE)

    def side(number: int) -> float:
        ray = ("cluster=ray", f"cluster.workers={number}", "cluster.threads=1", "stages=record")
        with bench.copy(few) as warm, bench.copy(ingested) as store:
            settings = bench.settings(warm, network, *ray)
            with make_executor(settings.cluster) as executor:
                timed_run(settings, executor)
                stages = timed_run(bench.settings(store, network, *ray), executor).stages
        return stages["pilot"] + stages["record"]

    one, two = interleave(bench.rounds, lambda: side(1), lambda: side(2))
    what = f"{network.title} {network.layer}, {bench.images} images"
    yield Figure(f"1 worker of 1 thread, {what}", rates(bench.images, one), "images/s")
    yield Figure(f"2 workers of 1 thread, {what}", rates(bench.images, two), "images/s")
    yield Figure("2 workers / 1 worker, images/s", ratios(one, two), bar=Bar(1.7, at_least=True, aim=1.85))
