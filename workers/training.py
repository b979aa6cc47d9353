"""Training a small image classifier, the same weights every time.

Cross entropy, Adam with decoupled weight decay, a one-cycle learning rate (Smith 2018), images flipped, shifted and
brightened at random. Order and augmentation are drawn from one seeded generator, so that with the same torch,
threads and CPU the weights are the same to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

LABEL_SMOOTHING = 0.05
MAX_SHIFT = 8  # pixels
MAX_BRIGHTENING = 0.2  # of a factor about 1
MAX_GRADIENT = 1.0  # norm of the gradient over all weights; longer ones are shortened to it
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Epoch:
    """How well the network did in one pass over the training images.

    Attributes:
        epoch: from 1.
        loss: mean over the augmented training images, while the weights moved.
        train_accuracy: share of the augmented training images it got right, while the weights moved.
        val_accuracy: share of the validation images it gets right, after the epoch.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float


@dataclass(frozen=True)
class LabelledImages:
    """Images as they are stored, and the class of each.

    Attributes:
        pixels: RGB in [0, 255].
        classes: index of the class, from 0.
    """

    pixels: UInt8[Tensor, "image 3 y x"]
    classes: Int64[Tensor, " image"]

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.classes) or not len(self.pixels):
            raise ValueError(
                f"there are {len(self.pixels)} images and {len(self.classes)} classes, must be one class an image "
                "and at least one image"
            )


def train_classifier(
    network: nn.Module,
    train: LabelledImages,
    val: LabelledImages,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    epochs: int,
    seed: int,
    batch_size: int = 32,
    max_learning_rate: float = 1e-3,
    on_epoch: Callable[[Epoch, dict[str, Tensor]], None] | None = None,
) -> tuple[Epoch, ...]:
    """Train a network in place.

    Args:
        network: image batch -> logits; it is left in eval mode.
        train: what it learns from.
        val: what its accuracy is measured on; it has no say in the weights.
        mean: of a channel in [0, 1], subtracted first.
        std: of a channel in [0, 1], divided by then.
        epochs: passes over the training images.
        seed: of the images' order and their augmentation.
        batch_size: training images a step.
        max_learning_rate: the top of the cycle.
        on_epoch: called after every epoch with its numbers and a copy of the weights.

    Returns:
        One entry an epoch.

    Raises:
        ValueError: `epochs` or `batch_size` is not positive.
        FloatingPointError: the loss is no longer finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}, must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=max_learning_rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(train.pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_learning_rate, total_steps=max(steps, 2), pct_start=0.25
    )
    history = []
    for epoch in range(1, epochs + 1):
        network.train()
        total_loss, num_right = 0.0, 0
        for chosen in torch.randperm(len(train.pixels), generator=generator).split(batch_size):
            images = augment(train.pixels[chosen].float() / 255, generator)
            logits = network(normalize(images, mean, std))
            loss = F.cross_entropy(logits, train.classes[chosen], label_smoothing=LABEL_SMOOTHING)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} in epoch {epoch}: lower max_learning_rate, now {max_learning_rate}"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(chosen)
            num_right += int((logits.argmax(dim=1) == train.classes[chosen]).sum())
        num_images = len(train.pixels)
        val_accuracy = measure_accuracy(network, val, mean=mean, std=std, batch_size=batch_size)
        history.append(Epoch(epoch, total_loss / num_images, num_right / num_images, val_accuracy))
        if on_epoch is not None:
            state = {name: value.detach().clone() for name, value in network.state_dict().items()}
            on_epoch(history[-1], state)
    network.eval()
    return tuple(history)


def augment(
    images: Float[Tensor, "image channel y x"], generator: torch.Generator
) -> Float[Tensor, "image channel y x"]:
    """Flip, shift (edges repeated) and brighten every image on its own."""
    num_images, height, width = len(images), images.shape[-2], images.shape[-1]
    flipped = torch.rand(num_images, generator=generator) < 0.5
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (num_images, 2), generator=generator)
    factor = 1 + MAX_BRIGHTENING * (2 * torch.rand(num_images, 1, 1, 1, generator=generator) - 1)

    rows = (torch.arange(height) + shift[:, :1]).clamp(0, height - 1)  # image y
    columns = (torch.arange(width) + shift[:, 1:]).clamp(0, width - 1)  # image x
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return (images * factor).clamp(0, 1)


def normalize(
    images: Float[Tensor, "image channel y x"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "image channel y x"]:
    """Images in [0, 1] as the network wants them."""
    center, spread = images.new_tensor(mean), images.new_tensor(std)
    return (images - center[:, None, None]) / spread[:, None, None]


@torch.inference_mode()
def measure_accuracy(
    network: nn.Module,
    images: LabelledImages,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 32,
) -> float:
    """The share of images whose class has the largest logit; the network is left in eval mode."""
    network.eval()
    num_right = 0
    for pixels, classes in zip(images.pixels.split(batch_size), images.classes.split(batch_size), strict=True):
        logits = network(normalize(pixels.float() / 255, mean, std))
        num_right += int((logits.argmax(dim=1) == classes).sum())
    return num_right / len(images.classes)
