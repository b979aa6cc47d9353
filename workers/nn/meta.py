"""A forward pass on the meta device: calls and shapes, nothing is computed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workers.activations import record


def shadow(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without values, by name; of a module with two names once, or they would not be put back."""
    state: dict[str, Tensor] = {}
    for name, submodule in module.named_modules():
        state |= dict(submodule.named_parameters(name, recurse=False, remove_duplicate=False))
        state |= dict(submodule.named_buffers(name, recurse=False, remove_duplicate=False))
    return {name: tensor.detach().to("meta") for name, tensor in state.items()}


def run_on_meta(
    module: nn.Module, layer: str, input_shape: tuple[int, int, int], on_activation: Callable[[str, Tensor], None]
) -> None:
    """Run a network on one image without values.

    Args:
        module: the network, in eval mode.
        layer: dotted module name.
        input_shape: channels, rows, columns of the image.
        on_activation: called with the layer's name and output; what it raises ends the pass.

    Raises:
        ModelError: there is no such layer.
        RuntimeError: the network does not run on such an input.
    """
    state = shadow(module)
    kind = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
    image = torch.empty(1, *input_shape, dtype=kind, device="meta")
    with torch.no_grad(), record(module, [layer], on_activation):
        torch.func.functional_call(module, state, (image,), tie_weights=False)
