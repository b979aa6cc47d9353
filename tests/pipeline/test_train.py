"""Training on a data set in the store: what is written, what is found done, what is refused."""

import hashlib

import pytest
import safetensors.torch
import torch

from pipeline.errors import InputError, SettingsError
from pipeline.ingest import DataSettings, ingest
from pipeline.store import Store, digest
from pipeline.train import train
from workers.models import ModelSpec, load
from workers.networks.mininet import VARIANTS, MiniNet


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, ingest(DataSettings(source="mini", name="mini", num_images=24, size=32), store)


def test_weights_checkpoints_and_history_are_in_the_store(dataset):
    store, manifest = dataset
    threads, seen = torch.get_num_threads(), []
    trained = train(store, manifest, epochs=2, seed=0, threads=1, on_epoch=seen.append)
    assert torch.get_num_threads() == threads
    assert tuple(seen) == trained.history
    assert hashlib.sha256(store.read(trained.path)).hexdigest() == trained.sha256
    assert [path.rpartition("/")[2] for path in trained.checkpoints] == ["epoch-01.safetensors", "epoch-02.safetensors"]
    assert store.read(trained.checkpoints[-1]) == store.read(trained.path) != store.read(trained.checkpoints[0])
    assert len(trained.classes) == 8
    assert "street-s" in trained.classes
    MiniNet(8).load_state_dict(safetensors.torch.load(store.read(trained.path)))


def test_what_was_trained_is_found_again(dataset, monkeypatch):
    store, manifest = dataset
    first = train(store, manifest, epochs=1, seed=0, threads=1)
    other = train(store, manifest, epochs=1, seed=1, threads=1)
    assert other.path != first.path
    monkeypatch.setattr("pipeline.train.train_classifier", None)
    assert train(store, manifest, epochs=1, seed=0, threads=1) == first


def test_variants_are_trained_apart_and_mininet_keeps_its_name(dataset):
    store, manifest = dataset
    settings = {"dataset_id": manifest.dataset_id, "seed": 0, "epochs": 1, "threads": 1}
    settings |= {"torch": torch.__version__, "version": 1}
    assert train(store, manifest, epochs=1, threads=1).path == f"weights/mininet-{digest(settings, 12)}.safetensors"
    for name in ("minialexnet", "minizfnet"):
        trained = train(store, manifest, name=name, epochs=1, threads=1)
        assert trained.path.startswith(f"weights/{name}-")
        assert len(trained.checkpoints) == 1
        loaded = load(ModelSpec(name, trained.path), store.read)
        assert loaded.num_classes == 8
        assert loaded.module.features[0].stride == (VARIANTS[name]["stride"],) * 2
        assert train(store, manifest, name=name, epochs=1, threads=1) == trained


def test_a_data_set_without_scenes_is_refused(dataset):
    store, manifest = dataset
    concepts = store.read_table(manifest.files["concepts"])
    objects = concepts.filter([category != "scene" for category in concepts["category"].to_pylist()])
    store.write_table("concepts-without-scenes.parquet", objects)
    without = {"dataset_id": "other", "files": manifest.files | {"concepts": "concepts-without-scenes.parquet"}}
    with pytest.raises(InputError, match="has 0 concepts of category scene"):
        train(store, manifest.model_copy(update=without), epochs=1, seed=0, threads=1)


def test_a_data_set_without_images_is_refused(dataset):
    store, manifest = dataset
    empty = manifest.model_copy(update={"dataset_id": "empty", "shards": ()})
    with pytest.raises(InputError, match="no image with a scene in split train"):
        train(store, empty, epochs=1, seed=0, threads=1)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"seed": -1}, {"threads": 0}])
def test_settings_out_of_range_are_named(dataset, settings):
    (name, value), *_ = settings.items()
    with pytest.raises(SettingsError, match=f"{name} is {value}, must be at least"):
        train(*dataset, **settings)
