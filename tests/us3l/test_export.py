"""A sub-network as an ordinary net: equal outputs at each width, timm's arguments, files that stand for themselves."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.export.backbone import save_network
from lowbit.export.packed import load_packed, save_packed
from lowbit.export.plain import save_plain, timm_net
from lowbit.export.program import SAID, save_program
from lowbit.loading import load
from lowbit.slim.conversion import sub_network
from lowbit.slim.statistics import WidthStatistics
from lowbit.train.process import make_accelerator
from us3l.names import net_of
from us3l.network import network

CFG = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
CFG |= {"input_size": [3, 8, 8], "label_names": ["a", "b", "c"]}
SMALL = "cifar_resnet8_1x1"
At = Callable[[float], AbstractContextManager[None]]


def pictures(side: int, count: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def made(arch: str, side: int, classes: int = 3) -> tuple[nn.Module, At]:
    """A net, and a context of it at a width with the statistics of some pictures there."""
    torch.manual_seed(0)
    net = network(net_of(f"us_{arch}"), (3, side, side), (0.25, 1.0), classes).eval()
    batches = [Batch((pictures(side, 8),), torch.arange(8))]
    return net, lambda width: WidthStatistics(net, lambda: batches, make_accelerator("no", cpu=True)).at(width)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, At]:
    return made(SMALL, 8)


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        (SMALL, 8),
        *(pytest.param(*net, marks=pytest.mark.heavy) for net in (("cifar_mobilenetv2", 8), ("resnet18d", 32))),
    ],
)
@torch.no_grad()
def test_each_width_equals_the_exported_net(arch: str, side: int, tmp_path: Path) -> None:
    """To 1e-6, in float32; also as `lowbit.load` gives it, and as timm builds it and loads it strictly."""
    net, at = made(arch, side)
    x, path = pictures(side, 3), tmp_path / "net.safetensors"
    for width in (0.25, 0.5, 1.0):
        with at(width):
            wanted = net(x)
            scale = float(wanted.abs().max())
            plain = sub_network(net, width)
            assert not any(type(module).__module__.startswith("us3l") for module in plain.modules())
            assert (plain(x) - wanted).abs().max() <= 1e-6 * scale
            save_network(net, path, arch, 3, CFG)
        assert (load(path)(x) - wanted).abs().max() <= 1e-6 * scale
        found = timm_net(plain, arch, 3, width, (3, side, side))
        if (arch, width) == ("cifar_mobilenetv2", 0.25):  # both 16 and 24 channels become 8: timm adds a shortcut
            assert found is None
            continue
        assert found is not None
        theirs = timm.create_model(found[0], **found[1], num_classes=3, checkpoint_path=str(path)).eval()
        assert (theirs(x) - wanted).abs().max() <= 1e-6 * scale


@pytest.mark.heavy
def test_the_nets_that_timm_has() -> None:
    def said(arch: str, width: float) -> Any:
        net = network(net_of(f"us_{arch}"), (3, 32, 32), (0.25, 1.0), 0)
        return timm_net(sub_network(net, width).eval(), net_of(f"us_{arch}").name, 0, width, (3, 32, 32))

    assert said("mobilenetv2", 0.5) == ("mobilenetv2_050", {}) and said("mobilenetv2", 0.6) is None
    assert said("resnet18", 0.5) is None  # its stem has 64 channels
    assert said("resnet18d", 0.5) == ("resnet18d", {"channels": [32, 64, 128, 256], "stem_width": 16})
    assert said("cifar_resnet18", 0.25) == ("cifar_resnet18", {"widths": [16, 32, 64, 128]})


@torch.no_grad()
def test_three_files_that_say_what_is_needed(small: tuple[nn.Module, At], tmp_path: Path) -> None:
    net, at = small
    x = pictures(8, 5)
    with at(0.5):
        said = save_plain(net, tmp_path / "subnetwork", SMALL, 3, CFG, 0.5, {"macs": 7})
        wanted = net(x)
    assert {path.name for path in tmp_path.iterdir()} == {f"subnetwork.{end}" for end in ("pt2", "safetensors", "json")}
    assert json.loads((tmp_path / "subnetwork.json").read_text()) == said
    assert (said["architecture"], said["model_args"]) == (SMALL, {"widths": [8, 16, 32]})
    assert (said["num_classes"], said["width"], said["macs"], said["pretrained_cfg"]) == (3, 0.5, 7, CFG)
    loaded = load(tmp_path / "subnetwork.safetensors")
    assert torch.equal(loaded(x), wanted) and loaded.pretrained_cfg["label_names"] == ("a", "b", "c")  # type: ignore[index]
    said_inside = {SAID: ""}
    program = torch.export.load(tmp_path / "subnetwork.pt2", extra_files=said_inside).module()
    assert json.loads(said_inside[SAID]) == said
    for count in (1, 5):
        torch.testing.assert_close(program(x[:count]), wanted[:count], rtol=1e-6, atol=1e-6)


@pytest.mark.heavy
@torch.no_grad()
def test_the_program_runs_with_torch_alone(small: tuple[nn.Module, At], tmp_path: Path) -> None:
    net, at = small
    x = pictures(8, 5)
    with at(0.5):
        save_plain(net, tmp_path / "subnetwork", SMALL, 3, CFG, 0.5, {})
        torch.save((x, net(x)), tmp_path / "answer")
    program = f"""
import json, sys, torch
x, wanted = torch.load("answer")
said = {{"{SAID}": ""}}
net = torch.export.load("subnetwork.pt2", extra_files=said).module()
assert json.loads(said["{SAID}"])["num_classes"] == 3 and not {{"timm", "lowbit", "us3l"}} & set(sys.modules)
for count in (1, 2, 5):
    torch.testing.assert_close(net(x[:count]), wanted[:count], rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def test_packed_at_a_width(tmp_path: Path) -> None:
    net, at = made("cifar_resnet18", 8)
    with at(0.25):
        recipe = {"arch": "cifar_resnet18", "args": {"num_classes": 3}, "pretrained_cfg": CFG}
        written = save_packed(net, tmp_path / "net", recipe)
        wanted = net(pictures(8, 3))
        save_network(net, tmp_path / "plain", "cifar_resnet18", 3, CFG)
    assert torch.equal(load_packed(tmp_path / "net")(pictures(8, 3)), wanted)
    assert written <= 1.05 * (tmp_path / "plain").stat().st_size


def test_a_net_that_torch_cannot_follow(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"net\.pt2: torch\.export cannot follow this net") as found:
        save_program(Branching(), tmp_path / "net.pt2", (3, 4, 4), {})
    assert "\n" not in str(found.value) and not list(tmp_path.iterdir())
