"""How images reach the network, and how activations are handed on."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from pipeline.stages.forward import ActivationError, picture_reader, record_layers
from tests import small
from workers import models
from workers.batches import ImageError, decode_image


@pytest.fixture
def job(store, chosen):
    return small.job_of("record", store, *chosen)[1]


def with_numerics(job, **changes):
    numerics = job.study.numerics.model_copy(update=changes)
    return replace(job, study=job.study.model_copy(update={"numerics": numerics}))


@pytest.mark.parametrize("threads", [1, 3])
def test_pictures_are_the_decoded_images_in_order(job, threads):
    model, shard = job.load_model(), job.shards[1]
    pictures = picture_reader(replace(job, decode_threads=threads), model)(shard)
    images = job.store.read_table(shard.path, ["image"])["image"].to_pylist()
    size = model.preprocessing
    assert pictures.paths == [image["path"] for image in images]
    assert pictures.pixels.is_contiguous()
    for image, pixels in zip(images, pictures.pixels, strict=True):
        assert (pixels.permute(1, 2, 0).numpy() == decode_image(image["bytes"], size.height, size.width)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_of_several_broken_images_the_first_is_told(job, threads):
    class BrokenStore:
        def read_table(self, path, columns):
            rows = [{"bytes": f"broken {index}".encode(), "path": f"{index}.jpg"} for index in range(20)]
            return pa.table({"image_id": list(range(20)), "image": rows})

    read = picture_reader(replace(job, decode_threads=threads, store=BrokenStore()), job.load_model())
    with pytest.raises(ImageError, match="broken 0"):
        read(job.shards[0])


@pytest.mark.parametrize(
    ("changes", "same"),
    [({}, True), ({"memory_format": "channels_last"}, False), ({"precision": "bfloat16"}, False)],
)
def test_activations_are_contiguous_float32_whatever_the_network_runs_in(job, changes, same):
    def record(job):
        model, found = job.load_model(), {}
        pictures = picture_reader(job, model)(job.shards[0])
        with torch.inference_mode():
            record_layers(job, model, pictures, lambda layer, start, act: found.setdefault((layer, start), act.clone()))
        return found

    expected, found = record(job), record(with_numerics(job, **changes))
    assert found.keys() == expected.keys()
    for key, activation in found.items():
        assert activation.dtype == torch.float32
        assert activation.is_contiguous()
        largest = expected[key].abs().max()  # bfloat16 has 8 bits, and the error adds up over the layers
        assert (activation - expected[key]).abs().max() < 0.05 * largest
    assert all(activation.equal(expected[key]) for key, activation in found.items()) == same


def test_an_overflow_of_float16_names_the_setting(job):
    job = with_numerics(job, precision="float16")
    model = job.load_model()
    model.module.features[0].weight.fill_(6e4)  # a copy: the type is not the one it was loaded in
    pictures = picture_reader(job, model)(job.shards[0])
    with torch.inference_mode(), pytest.raises(ActivationError, match=r"cluster\.precision=float16 ends at 65504"):
        record_layers(job, model, pictures, lambda *_: None)


def test_weights_are_shared_until_they_are_others_and_modules_never(job, monkeypatch):
    """Runs in other threads put their hooks on modules of their own."""
    first, second = (job.load_model().module for _ in range(2))
    assert not set(first.modules()) & set(second.modules())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one is other
    stale = replace(job, study=job.study.model_copy(update={"weights_sha256": "0" * 64}))
    for process in ("this one", "a new one"):
        if process == "a new one":
            monkeypatch.setattr(models, "_last", {})
        with pytest.raises(ValueError, match="have changed since the run began"):
            stale.load_model()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pictures_for_a_gpu_are_pinned(job):
    pictures = picture_reader(replace(job, device="cuda"), job.load_model())(job.shards[0])
    assert pictures.pixels.is_pinned()
    assert pictures.pixels[2:4].is_pinned()
