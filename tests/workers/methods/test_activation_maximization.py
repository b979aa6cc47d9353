from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workers.methods.activation_maximization import (
    MEASURED_EVERY,
    PRESETS,
    GradientError,
    at_target,
    filters,
    maximize,
    similarity,
)
from workers.models import ModelError
from workers.nn.canvas import Recipe
from workers.nn.input_space import InputSpace
from workers.nn.relus import LayerFunction, closing_relus

SPACE = InputSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SHORT = Recipe(6, step=8.0)


def tiny_network(seed=0, dtype=torch.float64):
    """Two convolutions with a ReLU between and one behind."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(inplace=True)
    )
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return network.to(dtype).eval().requires_grad_(False)


def function(network, layer="3", shape=(3, 9, 9)):
    return LayerFunction(network, layer, closing_relus(network, layer, shape))


def starts(count, seed=0, side=9, dtype=torch.float64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + place) for place in range(count)]


def climb(network, recipe, units=(0, 1, 2, 3, 4), start=None, **more):
    start = starts(len(units)) if start is None else start
    return maximize(network, start, torch.tensor(units), SPACE, recipe, generators(len(units)), **more)


class Naive:
    """One image, one line of the definition after another."""

    def __init__(self, network, recipe):
        self.network, self.recipe = network, recipe
        low, high = SPACE.bounds(torch.zeros(1, dtype=torch.float64))
        self.low, self.high = low.numpy(), high.numpy()

    def value_and_gradient(self, x, unit):
        image = torch.from_numpy(x)[None].requires_grad_()
        activation = self.network(image)[0]
        value = activation[unit, activation.shape[1] // 2, activation.shape[2] // 2]
        return value.item(), torch.autograd.grad(value, image)[0][0].numpy()

    def blur(self, x, sigma):
        reach = int(4 * sigma + 0.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        weights /= weights.sum()
        for axis in (1, 2):
            padded = np.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="symmetric")
            x = sum(w * np.take(padded, range(k, k + x.shape[axis]), axis) for k, w in enumerate(weights))
        return x

    def step_length(self, g):
        pixel = np.mean([1 / (255 * std) for std in SPACE.std])
        if self.recipe.step_rule == "constant":
            return self.recipe.step * pixel**2
        if self.recipe.step_rule == "progress":
            return min(self.recipe.max_step * pixel**2, self.recipe.step / (g**2).sum())
        return self.recipe.step * pixel / np.abs(g[g != 0]).mean()

    def run(self, x, unit):
        recipe, trace = self.recipe, []
        best, best_x = -np.inf, x
        for t in range(recipe.steps + 1):
            if recipe.clip:
                x = np.clip(x, self.low, self.high)
            value, g = self.value_and_gradient(x, unit)
            trace.append(value)
            if value > best:
                best, best_x = value, x
            if t == recipe.steps:
                break
            x = x + self.step_length(g) * g
            if t == recipe.steps - 1:
                continue
            x = x * (1 - recipe.decay)
            if recipe.blur and t % recipe.blur_every == 0:
                x = self.blur(x, recipe.blur)
            if recipe.norm_percent:
                norms = np.sqrt((x**2).sum(0))
                x = x * (norms >= np.percentile(norms, recipe.norm_percent))
            if recipe.contribution_percent:
                share = np.abs((g * -x).sum(0))
                x = x * (share >= np.percentile(share, recipe.contribution_percent))
        return trace, best_x, x


RECIPES = st.builds(
    Recipe,
    steps=st.integers(1, 7),
    step_rule=st.sampled_from(["normalized", "constant", "progress"]),
    step=st.sampled_from([0.5, 4.0, 40.0]),
    max_step=st.sampled_from([1.0, 100.0]),
    decay=st.sampled_from([0.0, 0.1]),
    blur=st.sampled_from([0.0, 0.5, 1.0]),
    blur_every=st.integers(1, 3),
    norm_percent=st.sampled_from([0.0, 20.0, 50.0]),
    contribution_percent=st.sampled_from([0.0, 30.0, 90.0]),
    clip=st.booleans(),
)


@settings(deadline=None, max_examples=40)
@given(RECIPES, st.integers(0, 3))
def test_climbs_as_the_definition_says(recipe, seed):
    network = function(tiny_network(seed))
    start = starts(5, seed)
    made = climb(network, recipe, start=start)
    for unit in (0, 1, 4):
        trace, best, last = Naive(network, recipe).run(start[unit].numpy(), unit)
        np.testing.assert_allclose(made.trace[unit].numpy(), trace, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(made.picture[unit].numpy(), best, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(made.last[unit].numpy(), last, rtol=1e-9, atol=1e-9)
        assert made.best_step[unit] == int(np.argmax(trace))


@pytest.mark.parametrize("preset", PRESETS)
def test_who_shares_the_batch_has_no_say(preset):
    network, recipe = function(tiny_network()), replace(PRESETS[preset], steps=20)
    start = starts(5)
    made = maximize(network, start, torch.arange(5), SPACE, recipe, generators(5))
    order = [3, 0, 4, 4, 1]
    other = maximize(
        network, start[order], torch.tensor(order), SPACE, recipe, [torch.Generator().manual_seed(one) for one in order]
    )
    torch.testing.assert_close(other.picture, made.picture[order], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.trace, made.trace[order], rtol=1e-10, atol=1e-10)
    assert other.argmax_step.equal(made.argmax_step[order])


def test_in_float32_a_batch_of_the_same_shape_gives_the_same_bits():
    network = function(tiny_network(dtype=torch.float32))
    start = starts(4, dtype=torch.float32)
    made = climb(network, replace(SHORT, steps=30), units=(0, 1, 2, 3), start=start)
    company = torch.cat([start[:1], starts(3, seed=9, dtype=torch.float32)])
    other = climb(network, replace(SHORT, steps=30), units=(0, 4, 4, 4), start=company)
    assert other.picture[0].equal(made.picture[0])
    assert other.trace[0].equal(made.trace[0])


@pytest.mark.parametrize("target", ["neuron", "channel"])
def test_targets(target):
    activation = torch.randn(2, 3, 5, 4)
    values = at_target(activation, target)
    for image in range(2):
        for unit in range(3):
            expected = activation[image, unit, 2, 2] if target == "neuron" else activation[image, unit].mean()
            assert values[image, unit] == pytest.approx(expected.item())


def test_the_best_picture_is_kept_even_where_steps_overshoot():
    network = function(tiny_network())
    made = climb(network, Recipe(40, "constant", step=3000.0, clip=True))
    value = at_target(network(made.picture), "neuron").diagonal()
    torch.testing.assert_close(value, made.objective)
    assert made.objective.equal(made.trace.amax(1))
    assert (made.objective > made.last_objective).any()


def test_argmax_step_is_the_first_at_which_no_unit_is_above():
    network = function(tiny_network())
    made = climb(network, replace(SHORT, steps=40, clip=False))
    assert (made.argmax_step > 0).any()
    for unit in range(5):
        if made.argmax_step[unit] >= 0:
            short = climb(network, Recipe(int(made.argmax_step[unit]) or 1, step=8.0, clip=False))
            last = at_target(network(short.last), "neuron")[unit]
            assert made.argmax_step[unit] == 0 or last.argmax() == unit


@pytest.mark.parametrize(
    "more", [{"decay": 0.1}, {"blur": 1.0}, {"norm_percent": 50.0}, {"contribution_percent": 90.0}, {"clip": True}]
)
def test_what_is_regularized_reaches_less(more):
    network, plain = function(tiny_network()), Recipe(40, step=2.0, clip=False)
    free, held = climb(network, plain), climb(network, replace(plain, **more))
    assert (held.objective <= free.objective * (1 + 1e-12)).all()
    assert (held.objective < free.objective).any()


def test_total_variation_makes_smoother_pictures():
    network, plain = function(tiny_network()), Recipe(40, step=2.0, clip=False)
    free, held = climb(network, plain), climb(network, replace(plain, total_variation=0.3))

    def roughness(made):
        return made.last.diff(dim=2).abs().mean((1, 2, 3)) + made.last.diff(dim=3).abs().mean((1, 2, 3))

    assert (roughness(held) < roughness(free)).all()


@pytest.mark.parametrize("more", [{"jitter": 2}, {"jitter": 1, "scale_and_rotate": True}])
def test_shifted_pictures_are_measured_as_they_are(more):
    network = function(tiny_network())
    made = climb(network, Recipe(MEASURED_EVERY + 3, step=4.0, **more))
    assert made.trace_every == MEASURED_EVERY
    assert made.trace.shape == (5, 3)
    torch.testing.assert_close(at_target(network(made.picture), "neuron").diagonal(), made.objective)
    assert (made.objective > made.trace[:, 0]).sum() >= 3
    assert set(made.best_step.tolist()) <= {0, MEASURED_EVERY, MEASURED_EVERY + 3}


def blocked_network(bias, dead=False):
    """One unit behind a ReLU that no pixel of a dark image opens; with `dead`, whatever the image."""
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)).double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0 if dead else 1)
    network[0].bias.data.fill_(bias)
    return network.eval().requires_grad_(False)


def test_a_relu_that_blocks_everything_is_got_through():
    network = function(blocked_network(-3.0), "2")
    start = torch.zeros(1, 3, 9, 9, dtype=torch.float64)
    recipe = Recipe(30, step=20.0)
    stuck = climb(network, recipe, units=(0,), start=start, redirect=0)
    assert not stuck.moved.item()
    assert stuck.reachable.item()
    assert stuck.picture.equal(start)
    freed = climb(network, recipe, units=(0,), start=start, redirect=16)
    assert freed.moved.item()
    assert 0 < freed.redirected_steps.item() <= 16
    assert freed.objective > stuck.objective


def test_where_a_few_steps_do_not_get_through_the_unit_stays_blocked():
    network = function(blocked_network(-1e6), "2")
    made = climb(network, Recipe(30), units=(0,), start=torch.zeros(1, 3, 9, 9, dtype=torch.float64), redirect=4)
    assert (made.moved.item(), made.reachable.item(), made.redirected_steps.item()) == (False, True, 4)


@pytest.mark.parametrize("redirect", [0, 16])
def test_a_dead_unit_is_out_of_reach(redirect):
    network = function(blocked_network(-1.0, dead=True), "2")
    start = starts(1)
    made = climb(network, Recipe(20, clip=False), units=(0,), start=start, redirect=redirect)
    assert (made.moved.item(), made.reachable.item(), made.redirected_steps.item()) == (False, False, 0)
    assert made.picture.equal(start)


def test_only_images_without_a_gradient_are_redirected():
    network = function(tiny_network())
    made, other = (climb(network, SHORT, redirect=redirect) for redirect in (0, 16))
    assert made.moved.all()
    assert made.picture.equal(other.picture)
    assert other.redirected_steps.sum() == 0


def test_nan_names_unit_and_step():
    network = tiny_network()
    network[2].weight.data[3, 0, 0, 0] = torch.nan
    with pytest.raises(GradientError, match=r"unit \d: .* NaN or infinite at step 0; .*smaller steps"):
        climb(function(network), SHORT)


def test_pictures_that_run_away_are_an_error():
    def runs_away(images, redirected=False):
        return images.sum(1, keepdim=True).pow(3) * 1e100

    with pytest.raises(GradientError, match=r"at step [1-9]"):
        climb(runs_away, Recipe(50, "constant", step=1e60, clip=False), units=(0,))


@given(st.integers(1, 3), st.integers(2, 3), st.integers(1, 5), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_similarity_is_the_cosine_of_gram_matrices(groups, seeds, units, side):
    activation = torch.randn(groups * seeds, units, side, side, dtype=torch.float64)
    found = similarity(activation, seeds)
    grams = [one.flatten(1) @ one.flatten(1).T for one in activation]
    for image in range(groups * seeds):
        first = image - image % seeds
        others = [place for place in range(first, first + seeds) if place != image]
        expected = [
            ((grams[image] * grams[other]).sum() / grams[image].norm() / grams[other].norm()).item() for other in others
        ]
        assert found[image].item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_seeds_repel_one_another():
    network, recipe = function(tiny_network(), shape=(3, 15, 15)), Recipe(30, step=8.0)
    start = starts(6, side=15)
    units = torch.tensor([0, 0, 0, 1, 1, 1])

    def alike(diversity):
        made = maximize(network, start, units, SPACE, recipe, generators(6), seeds=3, diversity=diversity)
        return similarity(network(made.last), 3)

    assert alike(2.0).mean() < alike(0.5).mean() < alike(0.0).mean()


def test_a_units_seeds_are_all_that_it_depends_on():
    network, recipe, start = function(tiny_network()), Recipe(10, step=4.0), starts(4)
    both = maximize(network, start, torch.tensor([0, 0, 3, 3]), SPACE, recipe, generators(4), seeds=2, diversity=1.0)
    other = maximize(
        network, torch.cat([start[:2], starts(2, seed=5)]), torch.tensor([0, 0, 1, 1]), SPACE, recipe, generators(4),
        seeds=2, diversity=1.0,
    )  # fmt: skip
    torch.testing.assert_close(other.picture[:2], both.picture[:2], rtol=1e-10, atol=1e-10)


def test_first_layer_filters_are_found_and_deeper_ones_are_not():
    network = tiny_network()
    first = filters(function(network, "1"), starts(4), torch.arange(4), "neuron")
    for unit in range(4):
        assert first[unit, :, 3:6, 3:6].allclose(network[0].weight[unit])  # the center cell of 9 x 9 is (4, 4)
        assert first[unit].count_nonzero() == 27
    assert filters(function(network), starts(5), torch.arange(5), "neuron") is None


def test_plain_pictures_of_the_first_layer_are_its_filters():
    seed, network = 0, function(tiny_network(), "1")
    start = starts(4, seed) * 10 * SPACE.pixel
    made = maximize(network, start, torch.arange(4), SPACE, PRESETS["plain"], generators(4))
    found = filters(network, start, torch.arange(4), "neuron")
    cosine = torch.nn.functional.cosine_similarity(
        made.picture[:, :, 3:6, 3:6].flatten(1), found[:, :, 3:6, 3:6].flatten(1)
    )
    assert cosine.min() > 0.99


def test_frames_are_drawn_where_asked():
    made = climb(function(tiny_network()), SHORT, frames=(0, 2, 6))
    assert len(made.frames) == 3
    assert made.frames[0].shape == (5, 9, 9, 3)
    assert made.frames[2].equal(SPACE.draw(made.last)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_rgb(channels):
    generator = torch.Generator().manual_seed(0)
    network = nn.Conv2d(channels, 2, 3).double().eval().requires_grad_(False)
    network.weight.copy_(torch.randn(network.weight.shape, generator=generator))
    start = torch.randn(2, channels, 9, 9, generator=generator, dtype=torch.float64) / 10  # in the range of pixels
    space = InputSpace((0.5,) * channels, (0.25,) * channels)

    def run(recipe):
        return maximize(
            lambda images, redirected=False: network(images), start, torch.arange(2), space, recipe, generators(2)
        )

    assert (run(Recipe(10)).objective > at_target(network(start), "neuron").diagonal()).all()
    with pytest.raises(ValueError, match=f"{channels} channels, must go with adam and 3"):
        run(PRESETS["fourier"])


class Wrapped(nn.Module):
    """A network whose output, and one of whose layers, is no tensor."""

    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    def __init__(self):
        super().__init__()
        self.body, self.pair = tiny_network(), self.Pair()

    def forward(self, images):
        return {"maps": self.pair(self.body(images))[0]}


def test_only_the_layer_must_return_a_tensor():
    network = Wrapped().eval()
    made = climb(function(network, "body"), SHORT)
    assert made.picture.equal(climb(function(tiny_network()), SHORT).picture)
    with pytest.raises(ModelError, match="layer pair returns tuple, must return one tensor"):
        climb(LayerFunction(network, "pair"), SHORT)
