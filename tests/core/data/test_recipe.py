"""Recipes: order, normalisation to the last bit, and what each paper's recipe does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms.v2 import functional as tv

from lowbit.data.geometry import Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.hashing import Draws
from lowbit.data.recipe import (
    CIFAR10,
    IMAGENET,
    ColorJitter,
    Colour,
    RandomBlur,
    RandomGrayscale,
    Recipe,
    cifar_train,
    flip_share,
    from_timm,
    imagenet_eval,
    imagenet_train,
    plain,
)
from lowbit.data.views import ssl_views
from lowbit.errors import InputError


def bytes_(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(recipe: Recipe, x: torch.Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.empty(len(draws.views), len(x), 3, *recipe.geometry.size(*x.shape[2:]), dtype=dtype)
    recipe.batch_(out, x, 255, recipe.draw_geometry(draws, *x.shape[2:]), recipe.draw_colour(draws))
    return out


def apply(operation: Colour, x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return operation.batch(x.clone(), operation.draw(draws))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_is_torchvisions_to_the_last_bit(dtype: torch.dtype) -> None:
    x = bytes_(9)  # which ToTensor divides by 255
    expected = tv.normalize(x.to(dtype).div(255), list(CIFAR10.mean), list(CIFAR10.std))
    assert torch.equal(run(plain(CIFAR10), x, Draws(np.arange(9), 0, 0), dtype)[0], expected)


def test_cifar_train_is_crop_flip_normalise_to_the_last_bit() -> None:
    x, recipe, draws = bytes_(30), cifar_train(), Draws(np.arange(30), 5, 2)
    table = recipe.geometry.draw(draws.of("geometry"), np.full(30, 32.0), np.full(30, 32.0)).astype(int)
    for i, (top, left, flip) in enumerate(table):
        expected = tv.crop(tv.pad(x[i], [4, 4, 4, 4]), int(top), int(left), 32, 32)
        expected = tv.horizontal_flip(expected) if flip else expected
        expected = tv.normalize(expected.float().div(255), list(CIFAR10.mean), list(CIFAR10.std))
        assert torch.equal(run(recipe, x, draws)[0, i], expected)


def test_views_differ_and_each_is_what_it_would_be_alone() -> None:
    x, recipe = bytes_(40), ssl_views(32, CIFAR10, blur=True)
    both = run(recipe, x, Draws(np.arange(40), 0, 0, (0, 1)))
    second = run(recipe, x, Draws(np.arange(40), 0, 0, (1,)))[0]
    torch.testing.assert_close(both[1], second, rtol=0, atol=1e-6)
    assert (both[0] - both[1]).abs().amax((1, 2, 3)).min() > 0.1
    few = run(recipe, x[3:7], Draws(np.arange(3, 7), 0, 0, (1,)))[0]
    torch.testing.assert_close(both[1, 3:7], few, rtol=0, atol=1e-6)


def test_float64_and_float32_make_the_same_draws() -> None:
    x, recipe, draws = bytes_(40), ssl_views(32, CIFAR10, blur=True), Draws(np.arange(40), 0, 0)
    torch.testing.assert_close(run(recipe, x, draws).double(), run(recipe, x, draws, torch.float64), rtol=0, atol=1e-4)


def test_jitter_strengths_and_probability() -> None:
    n = 3000
    draws, x = Draws(np.arange(n), 0, 0), torch.full((n, 3, 1, 1), 0.5)
    changed = apply(ColorJitter(brightness=0.4, contrast=0, saturation=0, hue=0), x, draws) != x
    assert abs(changed.any(1).float().mean() - 0.8) < 5 * math.sqrt(0.16 / n)
    factor = (apply(ColorJitter(0.4, 0, 0, 0, p=1), x, draws) / x)[:, 0, 0, 0]
    assert 0.6 <= factor.min() < 0.605 and 1.395 < factor.max() <= 1.4 and abs(factor.mean() - 1) < 0.02


def test_grayscale_and_blur_happen_as_often_as_they_should() -> None:
    n = 2000
    draws, x = Draws(np.arange(n), 0, 0), torch.rand(n, 3, 8, 8)
    gray = apply(RandomGrayscale(), x, draws)
    hit = (gray[:, 0] == gray[:, 1]).flatten(1).all(1)
    assert abs(hit.float().mean() - 0.2) < 5 * math.sqrt(0.16 / n) and torch.equal(gray[~hit], x[~hit])
    blurred = apply(RandomBlur(sigma=(0.5, 2.0)), x, draws)
    hit = (blurred != x).flatten(1).any(1)
    assert abs(hit.float().mean() - 0.5) < 5 * math.sqrt(0.25 / n)


def test_recipes_of_the_papers() -> None:
    assert cifar_train().geometry == PaddedCrop(32, 4, 0.5)
    views = ssl_views(32, CIFAR10, blur=False)
    assert views.geometry == RandomResizedCrop(32, (0.2, 1.0)) and views.colour == (ColorJitter(), RandomGrayscale())
    assert ssl_views(64, IMAGENET, blur=True).colour[-1] == RandomBlur(0.5, (0.1, 2.0))
    assert imagenet_train(64).geometry == RandomResizedCrop(64, (0.08, 1.0))
    assert imagenet_eval().geometry == ResizedCenterCrop(256, 224)
    assert plain(CIFAR10).geometry == Keep()


def test_recipes_of_a_pretrained_net() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("resnet18", pretrained=False))
    train, evaluation = from_timm(config)
    assert isinstance(train.geometry, RandomResizedCrop) and train.geometry.side == 224
    assert train.geometry.interpolation == config["interpolation"] == evaluation.geometry.interpolation
    assert evaluation.geometry.resize == math.floor(224 / config["crop_pct"])
    assert evaluation.channels.mean == tuple(config["mean"]) and evaluation.channels.std == tuple(config["std"])
    unmirrored = from_timm(config, flip_share("digits"))[0].geometry
    assert train.geometry.flip == flip_share("folder") and unmirrored == replace(train.geometry, flip=0.0)
    squash = from_timm({**config, "crop_mode": "squash"})[1].geometry
    assert squash == ResizedCenterCrop(evaluation.geometry.resize, 224, config["interpolation"], squash=True)
    with pytest.raises(InputError, match="crop mode border"):
        from_timm({**config, "crop_mode": "border"})
