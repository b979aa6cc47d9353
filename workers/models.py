"""The networks: an explicit registry, never an import string.

torchvision's classifiers by name, `caffenet`, `zfnet`, `mininet` and its variants from `workers.networks`, and
`timm:<name>` where timm is installed. Preprocessing comes with the model. Images are squashed, the whole
of them, to the size that the model's own transform crops to: a crop would move the image under its labels.
"""

import copy
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from workers.precision import DTYPES, MEMORY_FORMATS, MemoryFormat, Precision
from workers.weights import ModelError, is_file, parse_weights, put_weights, randomize, weights_sha256

__all__ = [
    "LoadedModel",
    "ModelError",
    "ModelSpec",
    "Preprocessing",
    "available",
    "keep",
    "load",
    "load_once",
    "weights_names",
]

RANDOM = "random"
PRETRAINED = "pretrained"
TIMM = "timm:"

_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


@dataclass(frozen=True)
class ModelSpec:
    """Which network with which weights; plain data, so that it travels to workers in the model's place.

    Attributes:
        name: one of `available()`, or `timm:<name>`.
        weights: `random`; one of `weights_names(name)`, which are downloaded; or the path or URL of a
            `.safetensors`, `.pth` or `.pt` file.
        seed: of random weights.
        num_classes: None takes it from the file's last layer, or else the network's default.
        sha256: what the file, or without one the loaded weights, must hash to; None does not check.
        transform_input: GoogLeNet and Inception v3 only: convert from ImageNet's mean and std to the ones
            that torchvision's published weights were trained with. None does for exactly those weights,
            by name or by the file's hash.
        copy: path of a copy of named weights, which is read in place of a download.
    """

    name: str
    weights: str = RANDOM
    seed: int = 0
    num_classes: int | None = None
    sha256: str | None = None
    transform_input: bool | None = None
    copy: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        height: rows that the whole image is squashed to; nothing is cropped.
        width: columns likewise.
        mean: subtracted after scaling, in the order of the channels.
        std: divided by after that.
        interpolation: of the squashing, antialiased.
        channel_order: `rgb`, or `bgr` for networks from Caffe.
        scale: what pixel values from 0 to 255 are divided by: 255, or 1 for networks from Caffe.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 255.0

    def normalize(
        self, images: UInt8[Tensor, "image 3 y x"] | Float[Tensor, "image 3 y x"]
    ) -> Float[Tensor, "image 3 y x"]:
        """Turn RGB pixels from 0 to 255, already of this size, into the network's input."""
        ordered = images.flip(1) if self.channel_order == "bgr" else images
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return ordered.to(torch.float32, copy=True).div_(self.scale).sub_(mean).div_(std)


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to look at.

    Attributes:
        module: in eval mode, no parameter wants a gradient; on the CPU in float32 as it is loaded. It may be
            shared: nobody changes it.
        preprocessing: how its images are made.
        num_classes: length of its output.
        weights_sha256: hash of its weights and buffers by name, not of a file.
        description: one line for people.
    """

    module: nn.Module
    preprocessing: Preprocessing
    num_classes: int
    weights_sha256: str
    description: str

    def apart(self) -> "LoadedModel":
        """The same network with modules of its own, so that hooks on it are too; weights and buffers are shared."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        shared = {id(tensor): tensor for tensor in tensors}
        return replace(self, module=copy.deepcopy(self.module, shared))

    def on(
        self, device: str, precision: Precision = "float32", memory_format: MemoryFormat = "contiguous"
    ) -> "LoadedModel":
        """The same network as it runs there; a copy, unless it is already so."""
        dtype = DTYPES[precision]
        if (torch.device(device).type, dtype, memory_format) == ("cpu", torch.float32, "contiguous"):
            return self
        module = copy.deepcopy(self.module).to(device, dtype)
        return replace(self, module=module.to(memory_format=MEMORY_FORMATS[memory_format]))


@dataclass(frozen=True)
class _Network:
    """A registry entry: how to construct it, what goes in, whose weights can be had by name."""

    build: Callable[..., nn.Module]
    preprocessing: Preprocessing
    published: Callable[[str], dict[str, Tensor]] = lambda name: {}


def available() -> list[str]:
    """Name the networks that need no extra, sorted."""
    return sorted([*_torchvision_names(), *_OWN])


def weights_names(name: str) -> list[str]:
    """Name the published weights that can be downloaded for a network."""
    if name.startswith(TIMM):
        return [PRETRAINED]
    if name in _OWN or name not in _torchvision_names():
        return []
    import torchvision

    return list(torchvision.models.get_model_weights(name).__members__)


def load(spec: ModelSpec, read: Callable[[str], bytes]) -> LoadedModel:
    """Build a network and give it its weights.

    Args:
        spec: which.
        read: fetches the bytes of `spec.weights` where that is a path or URL.

    Raises:
        ModelError: the network or its weights are unknown, cannot be had, do not fit, or hash to
            something else than `spec.sha256`.
    """
    data = read(spec.weights) if is_file(spec.weights) else None
    if data is not None and spec.sha256 is not None:
        _check_sha256(spec, hashlib.sha256(data).hexdigest())
    network = _find(spec, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        module = network.build() if spec.num_classes is None else network.build(num_classes=spec.num_classes)
        if spec.weights == RANDOM:
            randomize(module, spec.seed)
        else:
            state = _read_state(spec, network, data, read)
            num_classes = _count_classes(module, state)
            if spec.num_classes is None and num_classes != _count_classes(module):
                module = network.build(num_classes=num_classes)
            put_weights(module, state, spec.weights)
    module = module.eval().requires_grad_(False)
    sha256 = weights_sha256(module)
    if data is None:
        _check_sha256(spec, sha256)
    num_classes, size = _count_classes(module), network.preprocessing
    weights = f"random weights, seed {spec.seed}" if spec.weights == RANDOM else f"weights {spec.weights}"
    description = f"{spec.name}, {weights}, {num_classes} classes, input {size.height} x {size.width}"
    return LoadedModel(module, network.preprocessing, num_classes, sha256, description)


_last: dict[tuple[ModelSpec, str], LoadedModel] = {}
_loading = threading.Lock()


def load_once(
    spec: ModelSpec, read: Callable[[str], bytes], place: str, weights_sha256: str | None = None
) -> LoadedModel:
    """`load`, unless the network is the one that this process loaded last, which it keeps.

    Args:
        spec: which.
        read: as `load` has it.
        place: what `read` reads relative paths from, such as the store's URL.
        weights_sha256: of the wanted weights; one that is kept with others is loaded again. None takes it as it is.

    Raises:
        ModelError: as `load`.
    """
    key = (spec, place)
    with _loading:
        loaded = _last.get(key)
        if loaded is None or weights_sha256 not in (None, loaded.weights_sha256):
            _last.clear()  # before, so that the old one does not lie beside the new one
            loaded = _last[key] = load(spec, read)
        return loaded.apart()  # runs in other threads put their hooks on it


def keep(loaded: LoadedModel, spec: ModelSpec, place: str) -> None:
    """Keep a network for `load_once`, as if loaded from there: its file's bytes are known to be the same."""
    with _loading:
        _last.clear()
        _last[spec, place] = loaded


def _find(spec: ModelSpec, data: bytes | None) -> _Network:
    if spec.name.startswith(TIMM):
        network = _timm(spec.name.removeprefix(TIMM), spec)
    elif spec.name in _OWN:
        network = _OWN[spec.name]()
    elif spec.name in _torchvision_names():
        network = _torchvision(spec, data)
    else:
        names = available()
        near = get_close_matches(spec.name, names, n=5) or names
        raise ModelError(
            f"model is {spec.name!r}, which is unknown; near are {', '.join(near)}; "
            "allowed are the names that `raydissect models` lists, and timm:<name>"
        )
    names = weights_names(spec.name)
    if not (spec.weights == RANDOM or spec.weights in names or is_file(spec.weights)):
        raise ModelError(
            f"weights of {spec.name} is {spec.weights!r}, must be one of {', '.join([RANDOM, *names])}, "
            "or a file that ends in .safetensors, .pth or .pt"
        )
    return network


def _read_state(
    spec: ModelSpec, network: _Network, data: bytes | None, read: Callable[[str], bytes]
) -> dict[str, Tensor]:
    if data is not None:
        state = parse_weights(data, spec.weights)
    elif spec.copy is not None:
        state = parse_weights(read(spec.copy), spec.copy)
    else:
        try:
            state = network.published(spec.weights)
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise ModelError(
                f"weights {spec.weights} of {spec.name} cannot be downloaded ({error}); get them where there "
                "is a network, and set model.weights to the .safetensors or .pth file"
            ) from error
    for name in [name for name in state if name.startswith(_AUXILIARY.get(spec.name, ()))]:
        del state[name]
    return state


def _check_sha256(spec: ModelSpec, sha256: str) -> None:
    if spec.sha256 is not None and spec.sha256.lower() != sha256:
        raise ModelError(
            f"weights {spec.weights} of {spec.name} have sha256 {sha256}, must have {spec.sha256}; "
            "they are other weights than were asked for, or arrived broken"
        )


def _count_classes(module: nn.Module, state: dict[str, Tensor] | None = None) -> int:
    """Length of the last layer: the network's own, or as the weights have it if they fit otherwise."""
    name, own = [(name, weight) for name, weight in module.named_parameters() if weight.ndim > 1][-1]
    weight = own if state is None else state.get(name, own)
    return weight.shape[0] if weight.shape[1:] == own.shape[1:] else own.shape[0]


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision(spec: ModelSpec, data: bytes | None) -> _Network:
    import torchvision

    members = torchvision.models.get_model_weights(spec.name).__members__
    chosen = members.get(spec.weights, members["DEFAULT"])
    transform = chosen.transforms()
    (size,) = transform.crop_size
    preprocessing = Preprocessing(
        size, size, tuple(transform.mean), tuple(transform.std), transform.interpolation.value
    )
    arguments: dict[str, Any] = {"weights": None}
    if spec.name in _AUXILIARY:
        published = spec.weights in members or (
            data is not None and f"-{hashlib.sha256(data).hexdigest()[:8]}." in chosen.url
        )
        converts = published if spec.transform_input is None else spec.transform_input
        # torchvision's own initialization of these two takes a minute, and `randomize` needs none.
        arguments |= {"aux_logits": False, "init_weights": False, "transform_input": converts}
    elif spec.name.startswith("vit_"):
        arguments["image_size"] = size

    def published_state(name: str) -> dict[str, Tensor]:
        return members[name].get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")

    return _Network(partial(torchvision.models.get_model, spec.name, **arguments), preprocessing, published_state)


def _timm(name: str, spec: ModelSpec) -> _Network:
    timm = _import_timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5)
        raise ModelError(f"model is {spec.name!r}, which timm does not have; near are {', '.join(near) or 'none'}")
    config = timm.models.get_pretrained_cfg(name).to_dict()
    _, height, width = config["input_size"]
    interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
    preprocessing = Preprocessing(height, width, config["mean"], config["std"], interpolation)

    def published_state(_name: str) -> dict[str, Tensor]:
        return timm.create_model(name, pretrained=True).state_dict()

    return _Network(partial(timm.create_model, name, pretrained=False), preprocessing, published_state)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ModelError("models named timm:<name> need timm; pip install 'raydissect[timm]'") from error
    return timm


def _caffenet() -> _Network:
    from workers.networks.caffenet import MEAN, SIZE, CaffeNet

    return _Network(CaffeNet, Preprocessing(SIZE, SIZE, MEAN, (1.0, 1.0, 1.0), channel_order="bgr", scale=1.0))


def _zfnet() -> _Network:
    from workers.networks.zfnet import MEAN, SIZE, ZFNet

    return _Network(ZFNet, Preprocessing(SIZE, SIZE, MEAN, (1.0, 1.0, 1.0), scale=1.0))


def _mininet(variant: str) -> _Network:
    from workers.networks.mininet import MEAN, SIZE, STD, VARIANTS, MiniNet

    return _Network(partial(MiniNet, **VARIANTS[variant]), Preprocessing(SIZE, SIZE, MEAN, STD))


_OWN: dict[str, Callable[[], _Network]] = {
    "caffenet": _caffenet,
    "zfnet": _zfnet,
    **{name: partial(_mininet, name) for name in ("mininet", "minialexnet", "minizfnet")},
}
