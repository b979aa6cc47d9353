"""What a run works on: the data set, the network with its weights, its layers, the study these make."""

import hashlib
import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.compose import ModelSettings, RunSettings
from pipeline.datasets import load_manifest
from pipeline.errors import AlteredError, SettingsError, StoreError
from pipeline.settings import Cluster, OnProgress
from pipeline.stage import Layer, read_anywhere
from pipeline.store import Store
from pipeline.study import Numerics, Study
from pipeline.train import EPOCHS, train
from schemas import Manifest
from workers.models import ModelSpec, keep, load, load_once, weights_names
from workers.networks.mininet import VARIANTS
from workers.nn.layers import expand_layers, layer_table
from workers.process import cores_here
from workers.training import Epoch
from workers.weights import is_file, serialize_weights

logger = logging.getLogger("raydissect")

TRAINING_THREADS = 2  # part of what mininet's weights depend on, so the same on every machine
WEIGHT_FILES = ("safetensors", "pth", "pt")
MOST_DECODERS = 8  # beyond, Python's lock is what images wait for


@dataclass(frozen=True)
class Subject:
    """What a run works on, found out before any shard is touched."""

    store: Store
    study: Study
    manifest: Manifest
    model: ModelSpec
    device: str
    layers: dict[str, Layer]
    decode_threads: int = 1


def prepare(settings: RunSettings, on_progress: OnProgress | None = None) -> Subject:
    """Find the data set, load the network once, measure its layers, and name the study."""
    store = Store(_whole_url(settings))
    manifest = load_manifest(store, settings.data.dataset_name)
    device = resolve_device(settings.cluster)
    spec = model_spec(settings, store, manifest, on_progress)
    loaded = load_once(spec, read_anywhere(store), store.url)
    size = loaded.preprocessing
    shape = (3, size.height, size.width)
    names = expand_layers(loaded.module, settings.layers, shape)
    rows = layer_table(loaded.module, names, shape)
    layers = {row.name: Layer(row.name, row.channels, row.height, row.width, row.receptive_field) for row in rows}
    study = Study(
        model=spec.name,
        weights=settings.model.weights.partition("?")[0].rpartition("/")[2],  # no query: it may hold a signature
        weights_sha256=loaded.weights_sha256,
        preprocessing=asdict(size),
        dataset_id=manifest.dataset_id,
        images_id=manifest.images_id,
        dataset=manifest.name,
        num_images=manifest.num_images,
        numerics=Numerics.here(device, settings.cluster, manifest.batch_size),
    )
    return Subject(store, study, manifest, spec, device, layers, decode_threads(settings.cluster, device))


def _whole_url(settings: RunSettings) -> str:
    """The store, for workers whose working folder is another: they may be on other machines, with shipped code."""
    if settings.cluster.address is None or "://" in settings.store:
        return settings.store
    return str(Path(settings.store).absolute())


def model_spec(
    settings: RunSettings, store: Store, manifest: Manifest, on_progress: OnProgress | None = None
) -> ModelSpec:
    """The network to load; own weights are copied into the store, where every worker finds them."""
    model, weights = settings.model, settings.model.weights
    if weights == "trained":
        weights = "store:" + trained_weights(model, store, manifest, on_progress)
    elif is_file(weights):
        return keep_weights(model, store)
    spec = ModelSpec(name=model.name, weights=weights, seed=model.seed, num_classes=model.num_classes)
    if settings.cluster.address is not None and weights in weights_names(spec.name):
        return _keep_published(spec, store)
    return spec


def _keep_published(spec: ModelSpec, store: Store) -> ModelSpec:
    """Copy weights that are had by name into the store: a cluster's workers may reach that and nothing else.

    Raises:
        AlteredError: the copy that is there is not what was copied.
    """
    prefix = f"weights/{spec.name.replace(':', '-')}-{spec.weights}-"
    there = [path for path in store.list("weights") if path.startswith(prefix)]
    if there:
        kept = replace(spec, copy=f"store:{there[0]}")
        loaded = load_once(kept, read_anywhere(store), store.url)
        if there[0] != f"{prefix}{loaded.weights_sha256[:16]}.safetensors":
            raise AlteredError(there[0], store.location(there[0]), "its weights are others; remove it")
        return kept
    loaded = load_once(spec, read_anywhere(store), store.url)
    path = f"{prefix}{loaded.weights_sha256[:16]}.safetensors"
    store.create(path, serialize_weights(loaded.module))
    kept = replace(spec, copy=f"store:{path}")
    keep(loaded, kept, store.url)
    return kept


def keep_weights(model: ModelSettings, store: Store) -> ModelSpec:
    """Copy a file of weights into the store, once it has proved to fit the network.

    Raises:
        SettingsError: it cannot be read, or has another sha256 than the settings say.
        ModelError: it does not fit.
    """
    weights = model.weights
    try:
        data = read_anywhere(store)(weights)
    except StoreError as error:
        raise SettingsError(f"model.weights: {error}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if model.sha256 and sha256 != model.sha256.lower():
        raise SettingsError(f"{weights} has sha256 {sha256}, model.sha256 is {model.sha256}")
    given = ModelSpec(name=model.name, weights=weights, seed=model.seed, num_classes=model.num_classes)
    loaded = load(given, lambda _: data)  # before it is in the store: what is wrong names the file as it was given
    path = f"weights/{sha256[:16]}.{weights.partition('?')[0].rpartition('.')[2]}"
    store.create(path, data)
    spec = replace(given, weights=f"store:{path}")
    keep(loaded, spec, store.url)
    return spec


def trained_weights(
    model: ModelSettings, store: Store, manifest: Manifest, on_progress: OnProgress | None = None
) -> str:
    """Where the demo's network, or a variant, lies that was trained on this data set; it is trained if it does not yet.

    Raises:
        SettingsError: another network was asked for.
    """
    if model.name not in VARIANTS:
        raise SettingsError(
            f"model.weights=trained is for mininet, not {model.name}: only {', '.join(VARIANTS)} are trained here; "
            "give a file, DEFAULT or random"
        )
    epochs = model.epochs or EPOCHS

    def report(epoch: Epoch) -> None:
        logger.info(
            "training %s: epoch %d of %d, validation accuracy %.3f",
            *(model.name, epoch.epoch, epochs, epoch.val_accuracy),
        )
        if on_progress:
            on_progress("training", epoch.epoch, epochs)

    settings = {"name": model.name, "epochs": epochs, "seed": model.seed, "threads": TRAINING_THREADS}
    return train(store, manifest, **settings, on_epoch=report).path


def resolve_device(cluster: Cluster) -> str:
    """cpu or cuda; `auto` takes the GPUs that workers ask for, or on this machine the one there is.

    Raises:
        SettingsError: the precision is one that the device does not have.
    """
    device = cluster.device
    if device == "auto":
        on_this_machine = cluster.executor == "inline" or cluster.address is None
        on_gpu = cluster.gpus_per_worker > 0 or (on_this_machine and torch.cuda.is_available())
        device = "cuda" if on_gpu else "cpu"
    if device == "cpu" and cluster.precision == "tf32":
        raise SettingsError("cluster.precision is tf32, which only GPUs have, and the device is cpu; leave it out")
    return device


def decode_threads(cluster: Cluster, device: str) -> int:
    """Threads that decode a worker's images: as many as leave the computing its own, on a GPU all."""
    if cluster.decode_threads is not None:
        return cluster.decode_threads
    cores = cores_here() if cluster.executor == "inline" else math.ceil(cluster.cpus_per_worker)
    spare = cores if device == "cuda" else cores - cluster.threads
    return min(max(spare, 1), MOST_DECODERS)
