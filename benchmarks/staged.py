"""How much a dissection stages: what later runs start from, until `gc --staging`."""

from collections import Counter
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Figure
from benchmarks.networks import ALEXNET, Network
from pipeline.results import list_results
from pipeline.store import Store


def staged(bench: Bench, network: Network = ALEXNET) -> Iterator[Figure]:
    """Kilobytes an image, layer by layer; no matter of time, so measured once."""
    with bench.copy(bench.ingested(bench.images)) as folder:
        layers = bench.dissect_in(folder, network, "layers=auto").layers
        sizes = staged_bytes(Store(str(folder)))
    for layer in layers:
        name = f"staged an image, {network.title} {layer}, {bench.images} images"
        yield Figure(name, (sizes[layer] / bench.images / 1000,), "kB")


def staged_bytes(store: Store) -> Counter[str]:
    """Bytes below `staging/` by layer."""
    layers = {result.result_id: result.layer for result in list_results(store)}
    sizes = Counter[str]()
    for path in store.list("staging"):
        if layer := layers.get(path.split("/")[1]):
            sizes[layer] += store.size(path)
    return sizes
