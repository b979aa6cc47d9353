"""Record layers in one forward pass.

    with torch.inference_mode():
        forward(module, images, ["layer3", "layer4"], lambda layer, activation: top.update(layer, activation))

Hooks sit on the named modules only, and only inside the `with`. Shapes: `image unit h w`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from workers.models import ModelError

OnActivation = Callable[[str, Float[Tensor, "image unit h w"]], None]


class _AllRecorded(Exception):
    """Ends a forward pass: what comes after the last wanted layer is not computed."""


@contextmanager
def record(module: nn.Module, layers: Sequence[str], on_activation: OnActivation) -> Iterator[None]:
    """Hand over each layer's activation the moment the layer has run.

    The tensor is the network's own: the next module may overwrite it (an in-place ReLU does), so
    `on_activation` must use it up or copy it before it returns.

    Args:
        module: the network; its hooks are gone when the `with` ends, whatever happened inside.
        layers: dotted module names.
        on_activation: called with the layer's name and its output. An output of two dimensions, image
            and unit, is viewed as a 1 x 1 grid.

    Raises:
        ModelError: the network has no such layer, or its output is not one tensor of 4 or 2 dimensions.
    """

    def hook(layer: str, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        on_activation(layer, as_grid(layer, output))

    with ExitStack() as stack:
        for layer in layers:
            try:
                submodule = module.get_submodule(layer)
            except AttributeError:
                raise ModelError(f"layer is {layer!r}, which the network does not have") from None
            stack.enter_context(submodule.register_forward_hook(partial(hook, layer)))
        yield


def as_grid(layer: str, output: Any) -> Float[Tensor, "image unit h w"]:
    """View a layer's output as grids: as it is if it has four dimensions, 1 x 1 if it has two.

    Raises:
        ModelError: it is something else.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    if isinstance(output, Tensor) and output.ndim == 2:
        return output[:, :, None, None]
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(
        f"layer {layer} returns {shape}, must return one tensor of 4 dimensions (image, unit, row, column) "
        "or 2 (image, unit); name a layer inside it or beside it"
    )


def forward(
    module: nn.Module,
    batch: Float[Tensor, "image channel y x"],
    layers: Sequence[str],
    on_activation: OnActivation,
) -> None:
    """Run the network as far as its last wanted layer, and no further.

    Args:
        module: the network, in eval mode.
        batch: preprocessed images.
        layers: dotted module names, in any order.
        on_activation: as `record` has it.

    Raises:
        ModelError: as `record`; or a layer has not run by the end of the forward pass.
    """
    pending = set(layers)
    if not pending:
        return

    def on_layer(layer: str, activation: Tensor) -> None:
        on_activation(layer, activation)
        pending.discard(layer)
        if not pending:
            raise _AllRecorded

    with record(module, layers, on_layer):
        try:
            module(batch)
        except _AllRecorded:
            return
    raise ModelError(
        f"layers {sorted(pending)} did not run in the forward pass; leave them out, "
        "or name the modules that run in their place"
    )
