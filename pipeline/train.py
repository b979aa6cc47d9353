"""Training the demo's network, `mininet`, or a variant of it, on the scenes of a data set in the store."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import InputError, SettingsError
from pipeline.store import Store, digest
from schemas.dataset import Manifest
from workers.batches import decode_image
from workers.networks.mininet import MEAN, SIZE, STD, VARIANTS, MiniNet
from workers.training import Epoch, LabelledImages, train_classifier

EPOCHS = 24
VERSION = 1  # raised when the same settings give other weights
CATEGORY = "scene"


@dataclass(frozen=True)
class TrainedNet:
    """A trained network in the store.

    Attributes:
        path: its weights.
        sha256: of that file.
        checkpoints: its weights after every epoch, in order; the last are those of `path`.
        classes: names of the concepts it tells apart, in the order of its logits.
        history: one entry an epoch.
        dataset_id: what it was trained on.
        seed: of weights, order and augmentation.
        epochs: passes over the training images.
    """

    path: str
    sha256: str
    checkpoints: tuple[str, ...]
    classes: tuple[str, ...]
    history: tuple[Epoch, ...]
    dataset_id: str
    seed: int
    epochs: int


def train(
    store: Store,
    manifest: Manifest,
    *,
    name: str = "mininet",
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int = 1,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainedNet:
    """Train `mininet`, or a variant, to name an image's scene, unless the store holds the result of the same settings.

    All images of splits train and val that have a scene are held in memory, at 112x112.

    Args:
        store: where the data set lies and the weights go.
        manifest: the data set.
        name: which of the `VARIANTS`.
        epochs: passes over the training images.
        seed: of weights, order and augmentation.
        threads: torch threads, set while it trains; they can move the last bit of the weights.
        on_epoch: called after every epoch with its numbers, for a progress bar; not for a result found done.

    Raises:
        SettingsError: `epochs`, `seed` or `threads` is out of range.
        InputError: the data set has fewer than two scenes, or no image of one in split train or in val.
        StoreError: the store cannot be read or written.
    """
    for setting, value, least in (("epochs", epochs, 1), ("seed", seed, 0), ("threads", threads, 1)):
        if value < least:
            raise SettingsError(f"{setting} is {value}, must be at least {least}")
    settings = {"dataset_id": manifest.dataset_id, "seed": seed, "epochs": epochs, "threads": threads}
    settings |= {"torch": torch.__version__, "version": VERSION}
    if name != "mininet":  # whose weights keep the name that they had before there were variants
        settings["network"] = name
    stem = f"weights/{name}-{digest(settings, 12)}"
    if store.exists(f"{stem}.json"):
        return _from_json(store.read_json(f"{stem}.json"))

    classes = _scenes(store, manifest)
    images = _read_images(store, manifest, classes)
    checkpoints: list[str] = []
    data = b""

    def keep(epoch: Epoch, state: dict[str, Tensor]) -> None:
        nonlocal data
        data = safetensors.torch.save(state)
        checkpoints.append(f"{stem}/epoch-{epoch.epoch:02d}.safetensors")
        store.write(checkpoints[-1], data)
        if on_epoch is not None:
            on_epoch(epoch)

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = MiniNet(len(classes), torch.Generator().manual_seed(seed), **VARIANTS[name])
        history = train_classifier(
            network, images["train"], images["val"], mean=MEAN, std=STD, epochs=epochs, seed=seed, on_epoch=keep
        )
    finally:
        torch.set_num_threads(threads_before)
    path, sha256 = f"{stem}.safetensors", hashlib.sha256(data).hexdigest()
    store.write(path, data)
    names = tuple(classes.values())
    trained = TrainedNet(path, sha256, tuple(checkpoints), names, history, manifest.dataset_id, seed, epochs)
    store.write_json(f"{stem}.json", settings | asdict(trained))
    return trained


def _scenes(store: Store, manifest: Manifest) -> dict[int, str]:
    """Concepts of category scene that label an image: their names by number, ascending."""
    table = store.read_table(manifest.files["concepts"], ["concept_id", "name", "category", "images"])
    rows = sorted(table.to_pylist(), key=lambda row: row["concept_id"])
    scenes = {row["concept_id"]: row["name"] for row in rows if row["category"] == CATEGORY and row["images"]}
    if len(scenes) < 2:
        raise InputError(
            f"data set {manifest.name} has {len(scenes)} concepts of category {CATEGORY} on its images, must have "
            "at least 2 to train mininet on: give weights of a network instead (model.weights)"
        )
    return scenes


def _read_images(store: Store, manifest: Manifest, scenes: dict[int, str]) -> dict[str, LabelledImages]:
    """The images of splits train and val that have a scene; of several, the one with the lowest number counts."""
    places = {concept_id: place for place, concept_id in enumerate(scenes)}
    pixels: dict[str, list[Tensor]] = {"train": [], "val": []}
    classes: dict[str, list[int]] = {"train": [], "val": []}
    for entry in manifest.shards:
        for row in store.read_table(entry.path, ["split", "image", "image_concept_ids"]).to_pylist():
            found = [places[concept_id] for concept_id in row["image_concept_ids"] if concept_id in places]
            if found and row["split"] in pixels:
                image = torch.from_numpy(decode_image(row["image"]["bytes"], SIZE, SIZE))  # y x channel
                pixels[row["split"]].append(image.permute(2, 0, 1))
                classes[row["split"]].append(min(found))
    for split, images in pixels.items():
        if not images:
            raise InputError(
                f"data set {manifest.name} has no image with a scene in split {split}, must have some in train "
                f"and in val to train mininet; its splits are {list(manifest.splits)}"
            )
    return {
        split: LabelledImages(torch.stack(images), torch.tensor(classes[split])) for split, images in pixels.items()
    }


def _from_json(found: dict[str, Any]) -> TrainedNet:
    return TrainedNet(
        path=found["path"],
        sha256=found["sha256"],
        checkpoints=tuple(found["checkpoints"]),
        classes=tuple(found["classes"]),
        history=tuple(Epoch(**epoch) for epoch in found["history"]),
        dataset_id=found["dataset_id"],
        seed=found["seed"],
        epochs=found["epochs"],
    )
