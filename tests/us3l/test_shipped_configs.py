"""Every shipped config of `ssl`, `distill` and `slimmable` can be run: its net and its objective are made."""

from pathlib import Path

import pytest
from torch import nn

import us3l
from lowbit.options import RunOptions
from us3l import methods
from us3l.commands.pretrain import check_config
from us3l.config import Config, read_config
from us3l.names import DISTILLED
from us3l.network import network
from us3l.unused_keys import Command

SHIPPED = Path(us3l.__file__).parent / "configs"
NAMES = sorted(
    path.relative_to(SHIPPED).as_posix()
    for path in SHIPPED.rglob("*.yaml")
    if path.parent.name != "base" and not any(word in path.name for word in ("linear", "finetune", "calibrate"))
)


def read(name: str) -> tuple[Command, Config]:
    command: Command = "slimmable" if "slimmable" in name else "distill" if "seed" in name else "ssl"
    config = read_config(command, f"configs/{name}")
    check_config(command, RunOptions(), config)
    return command, config


def test_nothing_is_refused() -> None:
    for name in NAMES:
        command, config = read(name)
        if command != "slimmable":
            methods.check(config)
        assert (config.method in DISTILLED) == (command == "distill")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_built(name: str) -> None:
    command, config = read(name)
    height, width = config.MODEL.INPUTSHAPE
    size, ofa = (3, height, width), config.MODEL.OFA
    if command == "ssl":
        objective = methods.build(config, size)
        assert ("encoder_k" in dict(objective.named_children())) == (
            config.method in ("MoCo", "MoCo_v3") or "Momentum" in config.method or config.method == "BYOL"
        )
    elif command == "distill":
        methods.build(config, size, teacher=nn.Identity())
    else:
        network(config.MODEL.net, size, ofa.WIDTH_MULT_LIST, 100)
