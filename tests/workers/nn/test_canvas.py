"""Steps and regularizers in float64 beside their formulas, and beside torch's own Adam."""

from dataclasses import replace

import pytest
import torch

from workers.nn import fourier, regularizers
from workers.nn.canvas import DEGREES, SCALES, Canvas, Recipe, mean_size
from workers.nn.input_space import InputSpace

SPACE = InputSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = InputSpace((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), scale=1.0, bgr=True)
PIXEL = (1 / 0.229 + 1 / 0.224 + 1 / 0.225) / 3 / 255  # of SPACE


def random(number=2, size=(6, 7), seed=0, space=SPACE):
    """Pictures about the mean color, some pixels of which leave the range."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, *size, dtype=torch.float64, generator=generator) * 80 * space.pixel


def generators(number=2, seed=0):
    return [torch.Generator().manual_seed(seed + place) for place in range(number)]


def canvas_of(recipe, start, space=SPACE):
    return Canvas(start, space, recipe, generators(len(start)))


def moved(recipe, start, gradient, space=SPACE):
    canvas = canvas_of(recipe, start, space)
    canvas.move(gradient)
    return canvas.z.detach()


def test_a_normalized_step_is_so_many_pixel_values_in_the_mean():
    start, gradient = random(), random(seed=1) * torch.tensor([1e-6, 1e6]).view(2, 1, 1, 1)
    gradient[0, :, 2:] = 0  # what it does not reach does not count
    seen = moved(Recipe(1, "normalized", step=2.5), start, gradient)
    for place in range(2):
        values = [abs(one) for one in gradient[place].flatten().tolist() if one != 0]
        expected = start[place] + 2.5 * PIXEL * gradient[place] / (sum(values) / len(values))
        torch.testing.assert_close(seen[place], expected, rtol=1e-12, atol=1e-14)
    change = (seen - start)[1].abs().mean()
    assert change.item() == pytest.approx(2.5 * PIXEL)


def test_pixel_values_are_as_long_in_another_input_space():
    start, gradient = random(space=CAFFE), random(seed=1)
    seen = moved(Recipe(1, "normalized", step=2.5), start, gradient, CAFFE)
    assert (seen - start).abs().mean().item() == pytest.approx(2.5)


def test_a_constant_step_follows_the_gradient_by_pixels():
    """In the space of pixels x' = x / pixel, where the gradient is pixel g: x' + step pixel g."""
    start, gradient = random(), random(seed=1)
    in_pixels = start / PIXEL + 0.7 * (PIXEL * gradient)
    seen = moved(Recipe(1, "constant", step=0.7), start, gradient)
    torch.testing.assert_close(seen, in_pixels * PIXEL, rtol=1e-12, atol=1e-14)


def test_a_step_of_progress_raises_a_linear_objective_by_so_much():
    start, gradient = random(), random(seed=1) * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1)
    seen = moved(Recipe(1, "progress", step=0.3, max_step=1e9), start, gradient)
    rise = (gradient * (seen - start)).sum((1, 2, 3))
    torch.testing.assert_close(rise, torch.full((2,), 0.3, dtype=torch.float64))


def test_a_step_of_progress_is_at_most_a_constant_one():
    start, gradient = random(), random(seed=1) * torch.tensor([1e-9, 30.0]).view(2, 1, 1, 1)
    seen = moved(Recipe(1, "progress", step=0.3, max_step=5.0), start, gradient)
    bounded = moved(Recipe(1, "constant", step=5.0), start, gradient)
    torch.testing.assert_close(seen[0], bounded[0], rtol=1e-14, atol=0)
    assert not torch.equal(seen[0], start[0])
    assert (gradient[1] * (seen - start)[1]).sum().item() == pytest.approx(0.3)


@pytest.mark.parametrize("rule", ["normalized", "constant", "progress", "adam"])
def test_without_a_gradient_nothing_moves(rule):
    start = random()
    gradient = torch.zeros_like(start)
    gradient[1] = 1
    seen = moved(Recipe(1, rule), start, gradient)
    assert torch.equal(seen[0], start[0])
    assert (seen[1] > start[1]).all()


def test_the_mean_size_is_over_what_a_gradient_reaches():
    gradient = torch.zeros(3, 2, 2, 2)
    gradient[0, 0] = torch.tensor([[3.0, -1.0], [0, 0]])
    gradient[1] = -2
    assert mean_size(gradient).tolist() == [2, 2, 0]


@pytest.mark.parametrize("space", ["pixels", "fourier"])
def test_adam_is_torchs(space):
    """Upward by hand: m and v with 0.9 and 0.999, both made up for their start at 0."""
    start = random()
    canvas = canvas_of(Recipe(5, "adam", step=0.6, space=space), start)
    expected = canvas.z.detach().clone().requires_grad_()
    by_hand, first, second = expected.detach().clone(), 0.0, 0.0
    optimizer = torch.optim.Adam([expected], 0.6 * (PIXEL if space == "pixels" else 1), maximize=True)
    for step in range(1, 6):
        gradient = (expected.detach() * step).cos()
        expected.grad = gradient
        optimizer.step()
        canvas.move(gradient)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        size = (second / (1 - 0.999**step)) ** 0.5 + 1e-8
        by_hand = by_hand + 0.6 * (PIXEL if space == "pixels" else 1) * (first / (1 - 0.9**step)) / size
        torch.testing.assert_close(canvas.z.detach(), expected.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(canvas.z.detach(), by_hand, rtol=1e-9, atol=1e-12)


def in_order(images, gradient, *operations):
    steps = {
        "decay": lambda x: x * (1 - 0.3),
        "blur": lambda x: regularizers.gaussian_blur(x, 0.8),
        "norm": lambda x: regularizers.clip_small_norms(x, 40.0),
        "contribution": lambda x: regularizers.clip_small_contributions(x, gradient, 30.0),
    }
    for operation in operations:
        images = steps[operation](images)
    return images


ALL = Recipe(9, decay=0.3, blur=0.8, blur_every=4, norm_percent=40.0, contribution_percent=30.0)


@pytest.mark.parametrize("step", [0, 1, 3, 4, 6, 8])
def test_regularizers_follow_in_the_order_of_deepvis(step):
    start, gradient = random(), random(seed=1)
    canvas = canvas_of(ALL, start)
    canvas.regularize(step, gradient)
    blur = ["blur"] if step % 4 == 0 else []
    expected = in_order(start, gradient, "decay", *blur, "norm", "contribution")
    assert torch.equal(canvas.z.detach(), expected)
    others = [("decay", "norm", *blur, "contribution"), ("decay", *blur, "contribution", "norm")]
    if blur:
        assert all(not torch.equal(in_order(start, gradient, *other), expected) for other in others)
        assert not torch.equal(in_order(start, gradient, "decay", "norm", "contribution"), expected)


@pytest.mark.parametrize(
    ("settings", "operation"),
    [
        ({"decay": 0.3}, "decay"),
        ({"blur": 0.8, "blur_every": 1}, "blur"),
        ({"norm_percent": 40.0}, "norm"),
        ({"contribution_percent": 30.0}, "contribution"),
    ],
)
def test_each_regularizer_alone(settings, operation):
    start, gradient = random(), random(seed=1)
    canvas = canvas_of(Recipe(9, **settings), start)
    canvas.regularize(3, gradient)
    assert torch.equal(canvas.z.detach(), in_order(start, gradient, operation))
    assert not torch.equal(canvas.z.detach(), start)
    assert canvas.z.requires_grad
    assert canvas.z.is_leaf


@pytest.mark.parametrize("space", ["pixels", "fourier"])
def test_without_regularizers_nothing_changes(space):
    canvas = canvas_of(Recipe(9, "adam", space=space), random())
    before = canvas.z.detach().clone()
    canvas.regularize(0, random())
    assert torch.equal(canvas.z.detach(), before)


def test_regularizers_work_on_the_picture_of_coefficients():
    canvas = canvas_of(Recipe(9, "adam", space="fourier", decay=0.3), random() / 8)
    before = canvas.picture().detach()
    canvas.regularize(1, before)
    torch.testing.assert_close(canvas.picture().detach(), before * 0.7, rtol=0, atol=1e-12)


def test_clipping_keeps_to_the_range_of_pixels():
    start = random() * 3
    canvas = canvas_of(Recipe(1), start)
    canvas.clip()
    for channel, (mean, std) in enumerate(zip(SPACE.mean, SPACE.std, strict=True)):
        black, white = -mean / std, (1 - mean) / std
        torch.testing.assert_close(
            canvas.z.detach()[:, channel], start[:, channel].clamp(black, white), rtol=1e-6, atol=0
        )
    assert (canvas.z != start).any()
    assert (canvas.z == start).any()
    rgb = SPACE.to_rgb(canvas.picture().detach())
    assert (rgb.min().item(), rgb.max().item()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))


def test_without_clipping_pictures_leave_the_range():
    start = random() * 3
    canvas = canvas_of(Recipe(1, clip=False), start)
    canvas.clip()
    assert torch.equal(canvas.z.detach(), start)


@pytest.mark.parametrize("space", [SPACE, CAFFE])
def test_a_fourier_picture_keeps_to_the_range_by_itself(space):
    start = random(space=space)
    canvas = canvas_of(Recipe(1, "adam", space="fourier"), start, space)
    assert canvas.z.shape == (2, 3, 6, 4, 2)
    expected = space.from_rgb(space.to_rgb(start).clamp(fourier.DULL, 1 - fourier.DULL))
    torch.testing.assert_close(canvas.picture().detach(), expected, rtol=0, atol=1e-9 * 255 * space.pixel)
    with torch.no_grad():
        canvas.z.mul_(50)
    before = canvas.z.detach().clone()
    canvas.clip()
    assert torch.equal(canvas.z.detach(), before)
    rgb = space.to_rgb(canvas.picture().detach())
    assert -1e-6 < rgb.min() < 0.01 < 0.99 < rgb.max() < 1 + 1e-6


@pytest.mark.parametrize("rule", ["normalized", "constant", "progress"])
def test_coefficients_go_with_adam_only(rule):
    with pytest.raises(ValueError, match=f"space is fourier with step_rule {rule} and 3 channels, must go with adam"):
        canvas_of(Recipe(1, rule, space="fourier"), random())


def test_coefficients_go_with_three_channels_only():
    with pytest.raises(ValueError, match="step_rule adam and 1 channels"):
        Canvas(torch.zeros(1, 1, 4, 4), SPACE, Recipe(1, "adam", space="fourier"), generators(1))


def test_the_start_is_copied():
    start = random()
    kept = start.clone()
    canvas = canvas_of(Recipe(1), start)
    canvas.move(torch.ones_like(start))
    assert torch.equal(start, kept)


def test_pictures_are_shown_as_they_are_where_nothing_transforms():
    canvas = canvas_of(Recipe(3), random())
    pictures = canvas.picture()
    assert canvas.transform(pictures, 2) is pictures


def test_jitter_rolls_each_image_by_its_own_draws():
    recipe, start = Recipe(40, jitter=2), random()
    canvas = canvas_of(recipe, start)
    own = generators(2)
    offsets = set()
    for step in range(recipe.steps):
        draws = [torch.rand(4, generator=one, dtype=torch.float64).tolist() for one in own]
        offset = torch.tensor([[int(down * 5) - 2, int(right * 5) - 2] for down, right, _, _ in draws])
        assert torch.equal(canvas.transform(start, step), regularizers.roll(start, offset))
        offsets |= set(map(tuple, offset.tolist()))
    assert {down for down, _ in offsets} == {right for _, right in offsets} == {-2, -1, 0, 1, 2}


def test_scaling_and_rotating_are_those_of_the_paper_around_gray():
    recipe, start = Recipe(3, "adam", jitter=2, scale_and_rotate=True), random()
    canvas = canvas_of(recipe, start)
    own = generators(2)
    gray = torch.stack([(0.5 - mean) / std * torch.ones(1, 1) for mean, std in zip(SPACE.mean, SPACE.std, strict=True)])
    for step in range(recipe.steps):
        draws = torch.stack([torch.rand(4, generator=one, dtype=torch.float64) for one in own])
        expected = fourier.Transformations(2, SCALES, DEGREES)(start, draws, gray.double())
        torch.testing.assert_close(canvas.transform(start, step), expected, rtol=0, atol=1e-6)
    assert [round(one, 9) for one in SCALES] == [0.9, 0.92, 0.94, 0.96, 0.98, 1, 1.02, 1.04, 1.06, 1.08, 1.1]
    assert (min(DEGREES), max(DEGREES), DEGREES.count(0)) == (-10, 10, 6)


RECIPES = {
    "normalized": Recipe(6),
    "constant": replace(ALL, step_rule="constant", step=20.0),
    "progress": replace(ALL, step_rule="progress", step=50.0, contribution_percent=0.0),
    "normalized, all": replace(ALL, jitter=2),
    "adam": replace(ALL, step_rule="adam", blur_every=1),
    "fourier": Recipe(6, "adam", step=0.05, jitter=2, scale_and_rotate=True, space="fourier"),
    "fourier, decay": Recipe(6, "adam", step=0.05, decay=0.1, space="fourier"),
}


def climb(recipe, start, own):
    """Some steps by a gradient that is each image's own."""
    canvas = Canvas(start, SPACE, recipe, own)
    for step in range(6):
        canvas.clip()
        pictures = canvas.picture()
        objective = canvas.transform(pictures, step).sin().mul(torch.arange(8.0)).sum()
        by_pixels, by_z = torch.autograd.grad(objective, [pictures, canvas.z], materialize_grads=True)
        canvas.move(by_z)
        canvas.regularize(step, by_pixels)
    return canvas.picture().detach()


@pytest.mark.parametrize("name", RECIPES)
def test_no_image_has_a_say_in_anothers_steps(name):
    recipe, start = RECIPES[name], random(4, (6, 8))  # whole vectors: a sigmoid rounds otherwise in the rest of one
    together = climb(recipe, start, generators(4))
    for place in (0, 2):
        alone = climb(recipe, start[place : place + 1], generators(1, seed=place))
        assert torch.equal(alone[0], together[place])
    reordered = climb(recipe, start.flip(0), generators(4)[::-1])
    assert torch.equal(reordered.flip(0), together)
    assert (together != start).flatten(1).any(1).all()
