"""Selecting and replacing modules by name."""

import pytest
from torch import nn

from lowbit.errors import InputError
from lowbit.models.surgery import replace_, select


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
