"""Files of the authors and of ours: nets by their keys, logits as recorded, bits that nobody says, damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor

from lowbit.errors import InputError
from lowbit.export.packed import load_packed
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.quant.entry import entered
from lowbit.quant.layers import quantized_layers, quantizers
from lowbit.quant.learned_layers import layer_points
from sqakd import authors
from sqakd.load import open_net
from sqakd.options import TrainOptions, timm_name

VGG = {"conv2d.": "conv.", "classifier.": "fc.", "block": "layer"}
NETS = {"resnet20": "cifar_resnet20_pad", "resnet32": "cifar_resnet32_pad", "vgg8_bn": "cifar_vgg8",
        "vgg13_bn": "cifar_vgg13"}  # fmt: skip
NETS_OF_TORCHVISION = {"tiny_mobilenetv2": "mobilenet_v2", "tiny_shufflenetv2": "shufflenet_v2_x0_5",
                       "tiny_squeezenet": "squeezenet1_0"}  # fmt: skip
QUANTIZED = {"resnet20": 18, "resnet32": 30, "vgg8_bn": 4, "vgg13_bn": 8}


def tensors(recorded: Any, which: str, first: str = "model.module.") -> dict[str, Tensor]:
    return {first + key: torch.zeros(shape) for key, shape in recorded.json("keys")[which]["keys"]}


@pytest.mark.parametrize("name", NETS)
def test_nets_and_layers_by_keys(recorded: Any, name: str) -> None:
    """The policy without options quantizes what theirs does."""
    with torch.device("meta"):
        net = create_model(NETS[name], num_classes=recorded.json("keys")[f"{name}_fp"]["num_classes"])
    found = authors.parse(tensors(recorded, f"{name}_fp"))
    assert found is not None and (found.arch, found.layers) == (NETS[name], [])
    assert found.state.keys() == net.state_dict().keys()
    quantized = authors.parse(tensors(recorded, f"{name}_quant"))
    assert quantized is not None and quantized.layers == layer_points(net) and len(quantized.layers) == QUANTIZED[name]


def test_tiny_imagenet_nets(recorded: Any) -> None:
    found = authors.parse(tensors(recorded, "tiny_vgg11_bn", "state_dict."))
    assert found is not None and found.arch == "tiny_vgg11"
    assert authors.parse(tensors(recorded, "tiny_resnet18_imagenet", "state_dict.")) is None  # torchvision's keys
    with pytest.raises(InputError, match="start from float weights"):
        authors.parse(tensors(recorded, "tiny_vgg11_bn_lsq_w4a4", "state_dict."))
    for name, count in (("resnet18", 19), ("tiny_vgg11", 7), ("tiny_mobilenetv2", 51)):
        with torch.device("meta"):
            assert len(layer_points(create_model(name))) == count


@pytest.mark.parametrize("name", NETS_OF_TORCHVISION)
def test_a_net_of_torchvision(name: str, tmp_path: Path) -> None:
    """A checkpoint as their `main` writes it on several devices."""
    net = create_model(name, num_classes=3)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 1, "arch": NETS_OF_TORCHVISION[name], "state_dict": state, "best_prec1": 9.0}, tmp_path / "x")
    assert timm_name("main", NETS_OF_TORCHVISION[name]) == name
    for found in (load(tmp_path / "x"), open_net(tmp_path / "x").model):
        assert found.num_classes == 3
        assert all(torch.equal(*pair) for pair in zip(found.parameters(), net.parameters(), strict=True))


@pytest.fixture(scope="module")
def theirs(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as their `train_quant` writes it, at 2 bits, of the recorded net."""
    nets = recorded["nets"]
    net = recorded.fill_(create_model("cifar_resnet20_pad"), "resnet20_fp", {"linear.": "fc."})
    state = {key.replace("fc.", "linear."): value for key, value in net.state_dict().items()}
    state |= {key.removeprefix("cal."): nets[key] for key in nets if key.removeprefix("cal.") in state}
    for name, row in zip(layer_points(net), nets["quant.W2A2.qparams"], strict=True):
        more = dict(zip(("lW", "uW", "lA", "uA", "output_scale"), row, strict=True))
        more |= {"uA_t": row[3], "lA_t": row[2], "init": torch.zeros(1), "bkwd_scaling_factorW": torch.zeros(())}
        state |= {f"{name}.{key}": value.float() for key, value in more.items()}
    path = tmp_path_factory.mktemp("theirs") / "any name"
    torch.save({"epoch": 3, "model": state, "test_acc": 9.0, "optimizer_m": {}, "optimizer_q": {}}, path)
    return path


def test_a_quantized_net_of_theirs(recorded: Any, theirs: Path) -> None:
    """Its levels are the command line's."""
    with pytest.raises(InputError, match="--weight_levels N"):
        load(theirs)
    own = TrainOptions(command="train_quant", arch="x", quantizer="ewgs", wbits=2, abits=2)
    net = open_net(theirs, own=own)
    assert net.arch == "cifar_resnet20_pad" and len(net.quantizers) == 18
    codes = [layer.weight_codes() for _, layer in quantized_layers(net.model)]
    assert all(c is not None and c.grid.bits == 2 and int(c.codes.max()) <= 3 for c in codes)
    first = net.model.get_submodule("layer1.0.conv1")
    row = recorded["nets"]["quant.W2A2.qparams"][0]
    assert first.weight_quantizer.output_scale.item() == pytest.approx(float(row[4]))  # type: ignore[union-attr, operator]


def test_a_packed_student(sqakd: Callable[..., Result], student: Path, tmp_path: Path) -> None:
    """The same logits for any batch; its size is that of the codes and of what stays float."""
    checkpoint, path = student / "checkpoint/last_checkpoint.pth", tmp_path / "packed.safetensors"
    sqakd("export", checkpoint, "--format", "packed", "--output", tmp_path)
    net, x = load(checkpoint), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = load_packed(path)
    with torch.no_grad():
        assert torch.allclose(packed(x), net(x), atol=1e-5) and torch.allclose(packed(x[:2]), packed(x)[:2], atol=1e-5)
    weights = sum(layer.weight.numel() for _, layer in quantized_layers(net))  # type: ignore[attr-defined]
    rest = sum(p.numel() for p in net.parameters()) - weights
    buffers = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    described = path.read_bytes()[:8]
    assert path.stat().st_size <= 1.05 * (weights * 2 / 8 + 4 * (rest + buffers)) + int.from_bytes(described, "little")
    assert "holds a run" in sqakd("export", checkpoint, "--output", tmp_path, code=2).stderr


def test_released_entries_in_files(sqakd: Callable[..., Result], few: tuple[object, ...], tmp_path: Path) -> None:
    """Quantizers of what blocks receive come back from a checkpoint, at a stop, too, and from a packed file."""
    line = ("train_quant", *few, "--quantizer", "lsq", "--wbits", 4, "--abits", 4, "--released", "--save-every", 3)
    for folder, steps in (("whole", 6), ("parts", 3)):
        sqakd(*line, "--max-steps", steps, "--output", tmp_path / folder)
    sqakd(*line, "--max-steps", 6, "--output", tmp_path / "parts", "--resume", "auto")
    whole, parts = (load(tmp_path / folder / "checkpoint/last_checkpoint.pth") for folder in ("whole", "parts"))
    assert list(entered(whole)) == ["layer1.0", "layer2.0", "layer3.0"] and len(quantizers(whole)) == 6
    sqakd("export", tmp_path / "whole/checkpoint/last_checkpoint.pth", "--output", tmp_path / "net")
    packed, x = load(tmp_path / "net/packed.safetensors"), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(packed(x), whole(x)) and torch.equal(parts(x), whole(x))


def test_a_sweep_over_bits(sqakd: Callable[..., Result], student: Path, few: tuple[object, ...]) -> None:
    limits = ("--dataset", "digits", "--limit-train", 100, "--limit-eval", 60, "--probe-epochs", 1)
    said = sqakd("sweep", student / "checkpoint/last_checkpoint.pth", "--bits", 4, 2, *limits).stdout
    assert "| 4 bits |" in said and "| 2 bits |" in said and "batch norm re-estimated" in said


def test_what_a_sweep_refuses(sqakd: Callable[..., Result], few: tuple[object, ...], tmp_path: Path) -> None:
    """Weights and inputs that are float have no bits to change."""
    line = ("train_quant", *few, "--quantizer", "pact", "--max-steps", 1)
    sqakd(*line, "--wbits", 32, "--abits", 32, "--output", tmp_path / "float")
    said = sqakd("sweep", tmp_path / "float/checkpoint/last_checkpoint.pth", "--dataset", "digits", code=2).stderr
    assert "no quantizer" in said
    sqakd(*line, "--wbits", 2, "--abits", 2, "--include", "conv1", "--output", tmp_path / "signed")
    line = ("sweep", tmp_path / "signed/checkpoint/last_checkpoint.pth", "--dataset", "digits", "--bits", 2, 1)
    assert "signed 1-bit" in sqakd(*line, "--output", tmp_path / "table", code=2).stderr
    assert not (tmp_path / "table").exists()


def test_damage_and_other_nets(student: Path, teacher: Path, tmp_path: Path) -> None:
    state = torch.load(student / "checkpoint/last_checkpoint.pth", weights_only=True)
    for change, said in (
        ({"quantizers": [[{"quantizer": "none", "bits": 2}] * 2 + [["fc"]]]}, "none"),
        ({"quantizers": [[*state["quantizers"][0][:2], ["nowhere"]]]}, "nowhere"),
        ({"format": 9}, "update lowbit-sqakd"),
    ):
        torch.save({**state, **change}, tmp_path / "x.pth")
        with pytest.raises(InputError, match=said):
            load(tmp_path / "x.pth")
    with pytest.raises(InputError, match="10 classes, and 7 are needed"):
        open_net(teacher, classes=7)
