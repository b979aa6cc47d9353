"""The bare forward pass: read the images, decode them, run the network to the last wanted layer, keep nothing.

Overlapped as raydissect overlaps its own: a thread reads a shard ahead of the one that computes, and decodes it with
as many threads as a worker does. float32 in contiguous memory, without TF32, as is raydissect's default.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.networks import Network
from pipeline.datasets import load_manifest
from pipeline.stage import read_anywhere
from pipeline.store import Store
from pipeline.subject import decode_threads
from workers.activations import forward
from workers.batches import decode_image
from workers.models import ModelSpec, load
from workers.precision import rounding


@dataclass(frozen=True)
class Passed:
    """A bare forward pass: its seconds, and those of its two threads, which overlap."""

    seconds: float
    decode_seconds: float
    forward_seconds: float


class BareForward:
    """The images of a data set through a network, which is loaded on construction.

    Attributes:
        load_seconds: what loading took.
    """

    def __init__(self, bench: Bench, ingested: Path, network: Network, last_layer: str) -> None:
        self._store = Store(str(ingested))
        self._manifest = load_manifest(self._store, "bench")
        self._threads, self._device, self._layer = bench.threads, bench.device, last_layer
        self._decode_threads = decode_threads(bench.settings(ingested, network).cluster, bench.device)
        start = perf_counter()
        self._model = load(ModelSpec(network.name, network.weights), read_anywhere(self._store))
        self.load_seconds = perf_counter() - start
        self._model.module.to(self._device)

    @torch.inference_mode()
    def run(self) -> Passed:
        """One pass over all images."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            start, computing = perf_counter(), 0.0
            decoding: list[float] = []
            for pixels in self._read_ahead(decoding):
                begun = perf_counter()
                with rounding("float32"):
                    for batch in pixels.split(self._manifest.batch_size):
                        images = self._model.preprocessing.normalize(batch.to(self._device, non_blocking=True))
                        forward(self._model.module, images, [self._layer], lambda layer, activation: None)
                if self._device == "cuda":
                    torch.cuda.synchronize()
                computing += perf_counter() - begun
            return Passed(perf_counter() - start, sum(decoding), computing)
        finally:
            torch.set_num_threads(before)

    def _read_ahead(self, seconds: list[float]) -> Iterator[UInt8[Tensor, "image rgb y x"]]:
        paths = [shard.path for shard in self._manifest.shards]
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(self._decode_threads, "decoder") as pool:
            upcoming = reader.submit(self._read, paths[0], pool, seconds)
            for path in paths[1:]:
                pixels = upcoming.result()
                upcoming = reader.submit(self._read, path, pool, seconds)
                yield pixels
            yield upcoming.result()

    def _read(self, path: str, pool: ThreadPoolExecutor, seconds: list[float]) -> UInt8[Tensor, "image rgb y x"]:
        start, size = perf_counter(), self._model.preprocessing
        images = self._store.read_table(path, ["image"])["image"].to_pylist()
        on_gpu = self._device == "cuda"
        pixels = torch.empty((len(images), 3, size.height, size.width), dtype=torch.uint8, pin_memory=on_gpu)
        planes = pixels.numpy()  # the same memory

        def decode(index: int) -> None:
            image = decode_image(images[index]["bytes"], size.height, size.width, size.interpolation)
            planes[index] = image.transpose(2, 0, 1)

        for _ in pool.map(decode, range(len(images))) if self._decode_threads > 1 else map(decode, range(len(images))):
            pass
        seconds.append(perf_counter() - start)
        return pixels
