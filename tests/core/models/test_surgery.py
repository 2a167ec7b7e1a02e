"""Selecting and replacing modules by name."""

import resource

import pytest
import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.surgery import replace_, run_blank, select


def net() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    return nn.Sequential(body, nn.Linear(1, 1)).eval()


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [(("*",), (), ["0.0", "0.2", "1"]), (("0.*",), (), ["0.0", "0.2"]), (("*",), ("*.2",), ["0.0", "1"])],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], names: list[str]) -> None:
    assert select(net(), is_layer, include, exclude) == names


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match=r"'head\.\*' matches no layer; the names here are: 0\.0"):
        select(net(), is_layer, ("head.*",))
    with pytest.raises(InputError, match="downsample"):
        select(net(), is_layer, exclude=("*downsample*",))


def test_replacements_take_over_the_mode() -> None:
    model = replace_(net(), {"0.1": nn.ReLU6(), "1": nn.Linear(1, 2)})
    assert isinstance(model[0][1], nn.ReLU6) and model[1].out_features == 2 and not model[1].training
    single = nn.Linear(1, 1)
    assert replace_(single, {"": nn.Identity()}) is not single


@pytest.mark.parametrize("arch", ["test_vit", "vgg11"])
def test_pictures_that_a_net_cannot_take(arch: str) -> None:
    with torch.device("meta"):
        model = create_model(arch, num_classes=0)
    seen: list[object] = []
    handle = model.register_forward_hook(lambda *args: seen.append(args))
    with pytest.raises(InputError, match=f"{arch} cannot take pictures of 8x8 pixels"):
        run_blank(model, (3, 8, 8), [handle])
    assert model.training and not model._forward_hooks


def test_large_blank_pictures_take_no_memory() -> None:
    net, seen = create_model("cifar_resnet8_1x1").train(), list[tuple[int, ...]]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handle = net.get_submodule("layer1").register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    run_blank(net, (3, 4096, 4096), [handle])
    run_blank(net, (3, 16, 16))
    assert seen == [(1, 16, 4096, 4096)] and net.training
    assert not any(value.is_meta for value in net.state_dict().values())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # kB; a layer's output is 1 GB
    with pytest.raises(InputError, match="cannot take pictures of 4096x4096"):
        run_blank(create_model("vit_tiny_patch16_224"), (3, 4096, 4096))
