"""Training: it learns, it repeats itself, it augments what it says."""

import pytest
import torch
from torch import nn

from workers.training import (
    MAX_BRIGHTENING,
    MAX_SHIFT,
    LabelledImages,
    augment,
    measure_accuracy,
    normalize,
    train_classifier,
)

SIDE = 24
NORMALIZATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def tiny_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def tinted(num_images: int, seed: int) -> LabelledImages:
    """Noise, brighter in the channel that is the class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(num_images) % 3
    pixels = torch.randint(0, 120, (num_images, 3, SIDE, SIDE), generator=generator)
    pixels[torch.arange(num_images), classes] += 100
    return LabelledImages(pixels.to(torch.uint8), classes)


def fit(network, seed=0, epochs=12, on_epoch=None):
    return train_classifier(
        network,
        tinted(48, 1),
        tinted(24, 2),
        **NORMALIZATION,
        epochs=epochs,
        seed=seed,
        batch_size=8,
        max_learning_rate=0.02,
        on_epoch=on_epoch,
    )


def test_it_learns_what_can_be_learned():
    network = tiny_network()
    before = measure_accuracy(network, tinted(24, 2), **NORMALIZATION)
    history = fit(network)
    assert [epoch.epoch for epoch in history] == list(range(1, 13))
    assert history[-1].val_accuracy == 1 > before
    assert history[-1].loss < history[0].loss
    assert not network.training


def test_two_runs_give_the_same_weights_and_another_seed_gives_others():
    first, second, other = tiny_network(), tiny_network(), tiny_network()
    assert fit(first) == fit(second)
    fit(other, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_copy_of_the_weights_is_handed_out_after_every_epoch():
    network, seen = tiny_network(), []
    history = fit(network, epochs=3, on_epoch=lambda epoch, state: seen.append((epoch, state)))
    assert tuple(epoch for epoch, _ in seen) == history
    states = [state["0.weight"] for _, state in seen]
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[-1], network[0].weight)
    assert states[-1].data_ptr() != network[0].weight.data_ptr()


def test_validation_images_have_no_say_in_the_weights():
    networks = tiny_network(), tiny_network()
    for network, val in zip(networks, (tinted(24, 2), tinted(3, 9)), strict=True):
        train_classifier(network, tinted(12, 1), val, **NORMALIZATION, epochs=2, seed=0, batch_size=4)
    assert torch.equal(networks[0][0].weight, networks[1][0].weight)


def test_accuracy_is_the_share_of_right_answers():
    class FirstPixel(nn.Module):
        def forward(self, images):
            return images[:, :, 0, 0]

    images = tinted(10, 5)
    pixels = images.pixels.float() / 255
    right = sum(int(pixels[i, :, 0, 0].argmax() == images.classes[i]) for i in range(10))
    assert measure_accuracy(FirstPixel(), images, **NORMALIZATION, batch_size=4) == right / 10


def test_an_augmented_image_is_a_flipped_shifted_brightened_one():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, SIDE, SIDE, generator=generator) * 0.5  # so that brightening does not clip
    for image, augmented in zip(images, augment(images, generator), strict=True):
        assert any(
            _is_brightened(augmented, shifted)
            for flipped in (image, image.flip(-1))
            for down in range(-MAX_SHIFT, MAX_SHIFT + 1)
            for shifted in _shifted_across(_roll(flipped, down, dim=1))
        )


def _shifted_across(image):
    return [_roll(image, across, dim=2) for across in range(-MAX_SHIFT, MAX_SHIFT + 1)]


def _roll(image, by, dim):
    """Slower and less clever: one row at a time, edges repeated."""
    side = image.shape[dim]
    return torch.stack([image.select(dim, min(max(i + by, 0), side - 1)) for i in range(side)], dim=dim)


def _is_brightened(augmented, image):
    factor = float(augmented.sum() / image.sum())
    return abs(factor - 1) <= MAX_BRIGHTENING + 1e-3 and torch.allclose(augmented, image * factor, atol=1e-4)


def test_normalize_by_hand():
    images = torch.tensor([0.5, 0.75, 0.0])[None, :, None, None]
    assert normalize(images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.5)).flatten().tolist() == [0, 1, -1]


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="epochs is 0, must be at least 1"):
        fit(tiny_network(), epochs=0)
    with pytest.raises(ValueError, match="2 images and 1 classes"):
        LabelledImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


def test_a_loss_that_is_not_finite_is_an_error():
    network = tiny_network()
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        fit(network)
