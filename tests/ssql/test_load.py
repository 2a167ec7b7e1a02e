"""Checkpoints to nets: ours, and the authors' layout by content, read and written back."""

import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.loading import load
from lowbit.quant.bitwidths import activations, weight_quantizers
from ssql import authors
from ssql.config import read_config
from ssql.evaluation import open_pretrained
from ssql.load import from_checkpoint, state_dict
from ssql.methods import build

Shapes = list[tuple[str, list[int]]]


def made_up(shapes: Shapes) -> dict[str, Tensor]:
    """A number of its own for every key, without memory; aliases share their weight's."""
    numbers = {key: float(number) for number, (key, _) in enumerate(shapes)}
    state = {}
    for key, shape in shapes:
        number = numbers[key.replace("weight_quantizer.weight", "weight")]
        whole = key.endswith(("num_batches_tracked", "queue_ptr"))
        state[key] = (torch.tensor(int(number)) if whole else torch.tensor(number)).expand(shape)
    return state


@pytest.fixture(scope="session")
def layouts(recorded: Any) -> dict[str, Shapes]:
    keys = recorded.json("keys")
    return {**keys["ssl_checkpoint"], "linear": keys["linear_checkpoint_cifar10"]}


def test_ours(digits_run: tuple[Path, Result]) -> None:
    path = digits_run[0] / "checkpoint.pth.tar"
    saved = torch.load(path, weights_only=True)["state_dict"]
    random = torch.get_rng_state()
    net = load(path)
    assert torch.equal(random, torch.get_rng_state())  # building it draws from a generator of its own
    assert not net.training
    assert all(torch.equal(value, saved[f"encoder_q.{key}"]) for key, value in net.state_dict().items())
    assert len(weight_quantizers(net)) > 5 and all(int(a.observer.seen) for a in activations(net).values())
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 32)
    copy = load(digits_run[0] / "checkpoint_0001.pth.tar")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), copy.state_dict().values(), strict=True))
    assert load(digits_run[0] / "backbone.safetensors")(torch.randn(2, 3, 8, 8)).shape == (2, 64)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_quantized_layout_of_theirs(layouts: dict[str, Shapes], prefix: str) -> None:
    theirs = made_up(layouts["cifar_resnet18_ssql_simsiam_cifar"])
    net = from_checkpoint({"epoch": 400, "state_dict": {prefix + key: value for key, value in theirs.items()}})
    assert net is not None
    own, inner = net.state_dict(), "encoder_q.model."
    pairs = {
        "conv1.weight": "conv1.weight",
        "bn1.running_var": "conv1.bn_function.running_var",
        "layer2.0.bn2.weight": "layer2.0.conv2.bn_function.weight",
        "layer2.0.downsample.0.weight": "layer2.0.downsample.weight",
        "layer2.0.downsample.1.num_batches_tracked": "layer2.0.downsample.bn_function.num_batches_tracked",
        "fc.4.bias": "fc.3.bn_function.bias",
        "fc.7.running_mean": "fc.6.bn_function.running_mean",
        "relu.observer.low": "conv1.output_quantizer.observer.min_val",
        "layer1.0.relu1.observer.high": "layer1.0.conv1.output_quantizer.observer.max_val",
        "layer1.0.relu2.observer.high": "layer1.0.output_quantizer.observer.max_val",
    }
    assert {key: own[key].unique().item() for key in pairs} == {
        key: theirs[inner + other].unique().item() for key, other in pairs.items()
    }
    assert len(activations(net)) == 17 and net(torch.randn(2, 3, 32, 32)).shape == (2, 2048)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("cifar_resnet18_simsiam_cifar", "cifar_resnet18"),
        ("cifar_resnet18_byol_cifar", "cifar_resnet18"),
        ("cifar_resnet18_simclr_cifar", "cifar_resnet18"),
        ("cifar_resnet18_moco_cifar", "cifar_resnet18"),
        ("imagenet_resnet50_ssql_simsiam_imagenet", "resnet50"),
        ("linear", "cifar_resnet18"),
    ],
)
def test_every_layout_of_theirs_is_read_strictly(layouts: dict[str, Shapes], name: str, arch: str) -> None:
    theirs = made_up(layouts[name])
    parsed = authors.parse(theirs)
    assert parsed is not None and authors.arch_of(parsed.state) == arch
    net = from_checkpoint({"state_dict": theirs})
    assert net is not None
    assert len(activations(net)) == (0 if not parsed.wrapped else 49 if "50" in arch else 17)
    assert net.get_parameter("layer3.1.conv1.weight").unique().item() in {
        v.flatten()[0].item() for v in theirs.values()
    }


def test_written_back_it_is_what_was_read(layouts: dict[str, Shapes]) -> None:
    shapes = layouts["cifar_resnet18_ssql_simsiam_cifar"]
    theirs = made_up(shapes)
    net = from_checkpoint({"state_dict": theirs})
    assert net is not None
    rest = {key: value for key, value in theirs.items() if key.startswith("predictor.")}
    ours = {f"encoder_q.{key}": value for key, value in net.state_dict().items()} | rest
    back = authors.to_authors(ours, authors.follows_of("cifar_resnet18", (3, 32, 32)))
    assert [(key, list(value.shape)) for key, value in back.items()] == [(key, shape) for key, shape in shapes]
    made_anew = ("weight_quantizer.observer", "output_quantizer.observer")
    assert all(torch.equal(back[key], theirs[key]) for key in back if not any(part in key for part in made_anew))
    ranges = [key for key in back if made_anew[1] in key and bool(back[key])]
    assert len(ranges) == 2 * 17 and all(torch.equal(back[key], theirs[key]) for key in ranges)


@pytest.mark.parametrize("method", ["ssql_moco", "moco", "ssql_byol"])
def test_our_objectives_have_their_layout(layouts: dict[str, Shapes], method: str) -> None:
    config = read_config("ssl", f"cifar/resnet18_{method}_cifar.yaml")
    shapes = dict(layouts[f"cifar_resnet18_{method}_cifar"])
    if method == "ssql_byol":
        config = read_config("ssl", f"cifar/resnet18_{method}_cifar.yaml", ["SSL.SETTING.OUTPUT_BN=True"])
    written = authors.to_authors(state_dict(build(config, (3, 32, 32))))
    assert {key: list(value.shape) for key, value in written.items()} == shapes


def save(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(content, path)
    return path


def damaged(saved: dict[str, Any], how: str) -> dict[str, Any]:
    state = dict(saved["state_dict"])
    key = "encoder_q.conv1.weight"
    changes: dict[str, dict[str, Any]] = {
        "not finite": {"state_dict": state | {key: state[key] * torch.nan}},
        "another shape": {"state_dict": state | {key: state[key][:3]}},
        "integers": {"state_dict": state | {key: state[key].int()}},
        "no weights": {"state_dict": {}},
        "a key less": {"state_dict": {k: v for k, v in state.items() if k != key}},
        "no config": {"config": None},
        "an unknown key": {"config": {"NEW": 1}},
        "a later format": {"format": 99},
        "no size": {"input_size": [3, -8, 8]},
        "another method": {"package": "nobody"},
    }
    return saved | changes[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("not finite", "NaN"),
        ("another shape", "conv1.weight"),
        ("integers", "integers"),
        ("no weights", "state_dict"),
        ("a key less", "conv1.weight"),
        ("no config", "damaged"),
        ("an unknown key", "NEW"),
        ("a later format", "format 99"),
        ("no size", "input_size"),
        ("another method", "nobody"),
    ],
)
def test_a_damaged_file_of_ours(digits_run: tuple[Path, Result], tmp_path: Path, how: str, said: str) -> None:
    saved = torch.load(digits_run[0] / "checkpoint.pth.tar", weights_only=True)
    path = save(tmp_path / "bad.pth.tar", damaged(saved, how))
    with pytest.raises(InputError, match=r"bad\.pth\.tar") as found:
        load(path)
    assert said in str(found.value)


def test_a_file_that_is_cut_off(digits_run: tuple[Path, Result], tmp_path: Path) -> None:
    path = tmp_path / "cut.pth.tar"
    path.write_bytes((digits_run[0] / "checkpoint.pth.tar").read_bytes()[:20000])
    with pytest.raises(InputError, match="cut"):
        load(path)


def test_others_files_are_not_taken_and_theirs_damaged_are_told(layouts: dict[str, Shapes]) -> None:
    assert from_checkpoint({}) is None
    assert from_checkpoint({"state_dict": nn.Linear(2, 2).state_dict()}) is None
    assert from_checkpoint({"state_dict": {"encoder_q.conv1.weight": torch.zeros(4, 3, 3, 3)}}) is None
    theirs = made_up(layouts["cifar_resnet18_ssql_simsiam_cifar"])
    with pytest.raises(InputError, match="blocks"):
        from_checkpoint({"state_dict": {key: value for key, value in theirs.items() if "layer4" not in key}})
    with pytest.raises(InputError, match="conv1"):
        from_checkpoint({"state_dict": theirs | {"encoder_q.model.conv1.weight": torch.zeros(8, 3, 3, 3)}})


def test_the_flag_writes_a_file_of_theirs(
    ssql: Callable[..., Result], small: Path, tmp_path: Path, digits_run: tuple[Path, Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    limits = ("--limit-train", 16, "--probe-every", 0)
    line = ("ssl", "--config", small, "--output", tmp_path, *limits, "TRAIN.EPOCHS=1", "--authors-layout")
    assert "cifar_resnet8_1x1 is none of the authors' nets" in ssql(*line, code=2).stderr
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(authors, "NETS", [*authors.NETS, "cifar_resnet8_1x1"])  # as if it were one of theirs
    ssql(*line)
    assert not os.path.lexists(digits_run[0] / "checkpoint_authors.pth.tar")
    saved = torch.load(tmp_path / "checkpoint_authors.pth.tar", weights_only=True)
    ours = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    assert saved["epoch"] == 1 and "encoder_q.model.layer3.0.downsample.bn_function.weight" in saved["state_dict"]
    low = saved["state_dict"]["encoder_q.model.layer1.0.output_quantizer.observer.max_val"]
    assert low == ours["encoder_q.layer1.0.relu2.observer.high"] and low > 0
    net = load(tmp_path / "checkpoint_authors.pth.tar")
    assert torch.equal(net.get_parameter("conv1.weight"), ours["encoder_q.conv1.weight"])


T = torch.ones(2)
ENTRIES = [
    ("classes", -1), ("classes", 2**40), ("classes", T), ("classes", "3"), ("arch", T), ("arch", None), ("arch", [1]),
    ("package", T), ("package", 5), ("input_size", T), ("input_size", [3, 8]), ("input_size", [3, 10**6, 8]),
    ("input_size", None), ("config", T), ("config", 5), ("config", [1]), ("config", {1: 2}), ("config", {"TRAIN": T}),
    ("config", {"SSL": {"SETTING": {"DIM": -1}}}), ("config", {"SSL": 3}), ("state_dict", T), ("state_dict", [T]),
    ("state_dict", {1: T}), ("state_dict", {"encoder_q.conv1.weight": 3}), ("format", T), ("format", None),
]  # fmt: skip


@pytest.mark.parametrize("reader", [load, open_pretrained])
@pytest.mark.parametrize(("name", "value"), ENTRIES)
def test_entries_of_another_kind(
    digits_run: tuple[Path, Result], tmp_path: Path, name: str, value: Any, reader: Callable[[Path], Any]
) -> None:
    saved = torch.load(digits_run[0] / "checkpoint.pth.tar", weights_only=True)
    words = name if name != "config" else "config|damaged"
    with pytest.raises(InputError, match=words) as found:
        reader(save(tmp_path / "bad.pth.tar", saved | {name: value}))
    assert "\n" not in str(found.value) and "bad.pth.tar" in str(found.value)


def test_nets_that_their_file_cannot_hold(digits_run: tuple[Path, Result], tmp_path: Path) -> None:
    saved = torch.load(digits_run[0] / "checkpoint.pth.tar", weights_only=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = saved["config"]
    wide = config | {"SSL": config["SSL"] | {"SETTING": config["SSL"]["SETTING"] | {"DIM": 2**20 - 1}}}
    giant = config | {"MODEL": config["MODEL"] | {"ARCH": "vit_giant_patch14_224"}}
    for change in ({"config": wide}, {"config": giant}, {"classes": 10**6}):
        with pytest.raises(
            InputError, match=r"than the file can hold|do not fit|lower one of them|cannot take pictures"
        ):
            load(save(tmp_path / "bad.pth.tar", saved | change))
    large = save(tmp_path / "large.pth.tar", saved | {"input_size": [3, 4096, 4096]})
    assert load(large)(torch.randn(2, 3, 8, 8)).shape == (2, 32)  # a net that takes pictures of any size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_a_state_with_and_without_the_wrapper(layouts: dict[str, Shapes]) -> None:
    theirs = made_up(layouts["cifar_resnet18_ssql_simsiam_cifar"])
    key = "encoder_q.model.conv1.weight"
    with pytest.raises(InputError, match=f"both {key} and module.{key}"):
        from_checkpoint({"state_dict": theirs | {f"module.{key}": theirs[key] + 1}})
