"""What is asked of the files of every release: the release itself answers in `make.py`, later ones in the tests."""

import importlib
import json
import tarfile
from pathlib import Path
from typing import Any

import tiny  # registers its net
import torch
from click.testing import CliRunner, Result

import lowbit

HERE = Path(__file__).resolve().parent
FILES = "files.tar.xz"
TINY = ("-d", "digits", "-a", tiny.NAME, "--act", 3, "--act-clip", "pact", "--act-range", "running")
RESNET = ("-d", "digits", "-a", "resnet8")
TRAINING = (
    "--config", "configs/base/evaluation.yaml", "--num_workers", 0, "MODEL.INPUTSHAPE=8,8", "TRAIN.DATASET=digits",
    "TRAIN.BATCH_SIZE=64", "TRAIN.EPOCHS=1", "QUANT.W.BIT=4", "QUANT.A.BIT=4",
)  # fmt: skip
PROBE = ("linear", *TRAINING, "TRAIN.LINEAR_EVAL=True", "TRAIN.LR_SCHEDULER.BASE_LR=0.5")
SWEEP = ("--bits", "fp,4w4f", "--probe-epochs", 4, "--probe-lr", 3, "--limit-train", 600)
EVALUATIONS: dict[str, tuple[object, ...]] = {  # a command that judges FILE; its figures are those of result.json
    "bsq-float.pth.tar": ("bsq", "train", "-e", *RESNET, "--float64"),
    "bsq-bits.pth.tar": ("bsq", "cifar_prune_STE", "-e", *RESNET, "--float64"),
    "bsq-requantized.pth.tar": ("bsq", "cifar_finetune", "-e", *RESNET, "--float64"),
    "bsq-finetuned.pth.tar": ("bsq", "cifar_finetune", "-e", *RESNET, "--float64"),
    "bsq-finished.pth.tar": ("bsq", "cifar_prune_STE", "-e", *TINY, "--float64"),
    "bsq-interrupted.pth.tar": ("bsq", "cifar_finetune", "-e", *TINY, "--float64"),
    "ssql-simsiam.pth.tar": ("ssql", "sweep", *SWEEP),
    "ssql-moco.pth.tar": ("ssql", "sweep", *SWEEP),
    "ssql-linear.pth.tar": ("ssql", "sweep", *SWEEP, "--dataset", "digits"),
    "ssql-backbone.safetensors": ("ssql", "sweep", *SWEEP, "--dataset", "digits"),
}
PROBES: dict[str, tuple[object, ...]] = {  # a linear evaluation that starts from FILE
    "ssql-simsiam.pth.tar": (*PROBE, "MODEL.ARCH=cifar_resnet8_1x1"),
    "ssql-moco.pth.tar": (*PROBE, f"MODEL.ARCH={tiny.NAME}"),
}
FIGURES = ("top1", "top5", "loss", "top1_bn", "loss_bn", "train_loss", "compression", "compression_signed")


def unpack(release: str, to: Path) -> Path:
    """The folder with the files of a release."""
    with tarfile.open(HERE / f"v{release}" / FILES) as archive:
        archive.extractall(to, filter="data")
    return to


def run(program: str, *args: object, code: int = 0) -> Result:
    """Run one command line in this process."""
    command = importlib.import_module(f"{program}.cli").cli
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def outputs(path: Path) -> dict[str, Any]:
    """What the net of a file gives for two fixed pictures of 8x8, in double precision."""
    net = lowbit.load(path).double()
    with torch.no_grad():
        y = net(torch.sin(torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) ** 2).reshape(2, 3, 8, 8))
    return {"shape": list(y.shape), "sum": y.sum().item(), "first": y[:, :4].flatten().tolist()}


def evaluation(file: Path, output: Path) -> dict[str, Any]:
    """The figures of `EVALUATIONS`."""
    program, command, *rest = EVALUATIONS[file.name]
    given = (file, *rest) if program == "ssql" else (*rest, "--model", file)
    run(program, command, *given, "--output", output)
    return figures(output)


def probe(file: Path, output: Path) -> dict[str, Any]:
    """The figures of `PROBES`."""
    run("ssql", *PROBES[file.name], f"MODEL.PRETRAINED={file}", "--output", output)
    return figures(output)


def figures(folder: Path) -> dict[str, Any]:
    """Of a `result.json`, what does not differ from run to run; one entry a row of a sweep."""
    result = json.loads((folder / "result.json").read_text())
    if "rows" not in result:
        return {name: result[name] for name in FIGURES if name in result}
    return {
        f"{row['variant']} {name}": value
        for row in result["rows"]
        for name, value in row.items()
        if name.startswith(("knn_top1", "probe_top1"))
    }
