"""Checkpoints and exports of every method, of small nets for digits, and pictures of digits as files."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from in_process import Run, runner
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from bsq import checkpoint as bsq_checkpoint
from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from lowbit.data.recipe import DIGITS, plain
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.quant.binary import binarize_
from lowbit.quant.calibrate import calibrate_
from lowbit.quant.initialize import initialize_
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points
from s2bnn.load import header as s2bnn_header
from sqakd.load import header as sqakd_header
from sqakd.quantize import quantize_
from ssql import load as ssql_load
from ssql import methods as ssql_methods
from ssql.config import Config as SsqlConfig
from us3l import load as us3l_load
from us3l.config import Config as Us3lConfig
from us3l.network import network

ARCH, SIZE = "cifar_resnet8_1x1", (3, 8, 8)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CFG = pretrained_cfg(plain(DIGITS), SIZE, NAMES)
X = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def program() -> Run:
    """Run one command line in this process: `program("lowbit", "show", PATH, code=2)`."""

    def run(package: str, *args: object, code: int = 0) -> Result:
        module = "lowbit.cli.main" if package == "lowbit" else f"{package}.cli"
        return runner(importlib.import_module(module).cli)(*args, code=code)

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 6 pictures, digit-N.png, of scikit-learn's digits (16 levels of ink become 255)."""
    folder = tmp_path_factory.mktemp("digits")
    for number, image in enumerate(load_digits().images[:6]):
        Image.fromarray((image * 255 / 16).round().astype("uint8")).save(folder / f"digit-{number}.png")
    return folder


def trained(net: nn.Module) -> nn.Module:
    """Statistics of batch norm, and outputs that are told apart."""
    net.train()
    with torch.no_grad():
        net(X)
    return net.eval()


def bsq_files(folder: Path, program: Run) -> None:
    torch.manual_seed(0)
    net = to_bits_(quantize_bsq_activations_(trained(create_model(ARCH, num_classes=10)), 4), 3)
    facts = {"arch": ARCH, "classes": 10, "dataset": "digits", "input_size": list(SIZE), "pretrained_cfg": CFG}
    last = {"train": {"loss": 1.5}, "eval": {"top1": 12.5, "loss": 2.25}}
    said = {**bsq_checkpoint.header(net, **facts), "epoch": 3, "last": last}
    torch.save({**said, "state_dict": bsq_checkpoint.state_dict(net)}, folder / "bsq.pth.tar")
    program("bsq", "export", "--model", folder / "bsq.pth.tar", "--limit-train", 256, "--output", folder / "bsq")


def ssql_files(folder: Path, program: Run) -> None:
    tree = {"MODEL": {"ARCH": ARCH}, "QUANT": {"W": {"BIT": 4}, "A": {"BIT": 4}}, "SSL": {"TYPE": "SSQL_SimSiam"}}
    config = SsqlConfig.model_validate_json(json.dumps(tree))
    torch.manual_seed(0)
    net = trained(ssql_methods.classifier(config, SIZE, 10))
    calibrate_(net, [X])
    state = {**ssql_load.header(config, CFG, 10), "state_dict": net.state_dict()}
    torch.save(state, folder / "ssql.pth.tar")
    objective = ssql_methods.build(config, SIZE)
    state = {**ssql_load.header(config, CFG), "state_dict": ssql_load.state_dict(objective)}
    torch.save(state, folder / "ssql-encoder.pth.tar")
    save_backbone(net, folder / "ssql-backbone.safetensors", ARCH, CFG)


def us3l_files(folder: Path, program: Run) -> None:
    tree = {"MODEL": {"ARCH": f"us_{ARCH}"}, "TRAIN": {"DATASET": "digits"}}
    config = Us3lConfig.model_validate_json(json.dumps(tree))
    torch.manual_seed(0)
    net = network(config.MODEL.net, SIZE, (0.5,), 10)
    state = {**us3l_load.header(config, CFG, 10, 0.5, (0.5,)), "state_dict": trained(net).state_dict()}
    torch.save(state, folder / "us3l.pth.tar")
    for kind in ("plain", "packed"):
        program("us3l", "export", folder / "us3l.pth.tar", "--format", kind, "--output", folder / f"us3l-{kind}")


def s2bnn_files(folder: Path, program: Run) -> None:
    torch.manual_seed(0)
    net = trained(binarize_(create_model(ARCH, num_classes=10), 2))
    state = {**s2bnn_header(ARCH, 2, CFG, "classifier", 10), "state_dict": net.state_dict()}
    torch.save(state, folder / "s2bnn.pth.tar")
    for kind in ("packed", "float", "backbone"):
        program("s2bnn", "export", folder / "s2bnn.pth.tar", "--format", kind, "--output", folder / f"s2bnn-{kind}")


def sqakd_files(folder: Path, program: Run) -> None:
    torch.manual_seed(0)
    net, bits2 = trained(create_model(ARCH, num_classes=10)), LearnedConfig("ewgs", 2)
    quantizers = dict.fromkeys(layer_points(net), (bits2, bits2))
    initialize_(quantize_(net, quantizers), [X])
    torch.save({**sqakd_header(ARCH, 10, quantizers, CFG), "state_dict": net.state_dict()}, folder / "sqakd.pth")
    program("sqakd", "export", folder / "sqakd.pth", "--output", folder / "sqakd")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, program: Run) -> Path:
    """A folder with the files of every method."""
    folder = tmp_path_factory.mktemp("files")
    for write in (bsq_files, ssql_files, us3l_files, s2bnn_files, sqakd_files):
        write(folder, program)
    return folder
