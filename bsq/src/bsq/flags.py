"""The flags of BSQ's commands as decorators, each spelled once; the authors' names and defaults are kept.

Each decorator hands a command one value of `bsq.options`. No tensor here: `--help` imports this.
"""

import dataclasses
from typing import Any

import click

from bsq.options import FLOAT_BITS, ActOptions, PruneOptions, WidthOptions, flag_of, net_of
from lowbit.cli.options import Decorator, gathered, run_options
from lowbit.cli.parsing import COUNT, MANY, Real, UserPath
from lowbit.options import DATASETS, MAX_SIDE

FILE = UserPath(exists=True, dir_okay=False)
TRAINING = {"output_note": "default: checkpoint, and none with --evaluate"}
PATTERNS: dict[str, Any] = {"multiple": True, "metavar": "PATTERN"}


def keys_of(group: type) -> dict[str, str]:
    """Click's name of each flag -> the field of the option dataclass that it fills."""
    flags = {field.name: flag_of(f"{group.__name__}.{field.name}") for field in dataclasses.fields(group)}
    return {flag.lstrip("-").replace("-", "_").lower(): name for name, flag in flags.items()}


def shared_options(**more: Any) -> Decorator:
    """`options: RunOptions` with the authors' names of the folder and their seed; `more` as in `run_options`."""
    return run_options(seed=1234, output_flags=("-c", "--checkpoint", "--output"), **more)


def net_options() -> Decorator:
    """Which net, weights and pictures, as `net: NetOptions`."""
    return gathered("net", net_of, [
        click.option("-d", "--dataset", type=click.Choice(DATASETS), default="cifar10", show_default=True),
        click.option("--test-batch", type=COUNT, default=100, show_default=True, help="Of the whole job."),
        click.option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N", help="Side of the pictures "
                     "[default: what --model says, else as the data set's or the net's are shown]."),
        *_arch_options("resnet20"),
        click.option("--model", type=FILE, help="Checkpoint the weights come from."),
        click.option("--float64", is_flag=True, help="Compute in double precision (slow, and free of rounding noise)."),
    ])  # fmt: skip


def file_options() -> Decorator:
    """A checkpoint and, where it does not say it itself, its architecture, as `net: NetOptions`."""
    model = click.option("--model", type=FILE, required=True, help="Checkpoint.")
    return gathered("net", net_of, [model, *_arch_options(None)])


def _arch_options(arch: str | None) -> list[Decorator]:
    return [
        click.option("-a", "--arch", default=arch, show_default=arch or "what --model holds",
                     help="resnet (with --depth), resnet20 … resnet110, or any timm name."),
        click.option("--depth", type=int, help="Of -a resnet: 6n + 2, from 8 to 110 [default: 20]."),
        click.option("--block-name", type=click.Choice(["BasicBlock", "Bottleneck"]), default="BasicBlock"),
    ]  # fmt: skip


def act_options() -> Decorator:
    """Activation quantization, as `acts: ActOptions`."""
    return gathered("acts", ActOptions, [
        click.option("--act", type=click.IntRange(0, FLOAT_BITS), default=4, show_default=True,
                     help="Activation bits; 0, 17 to 32: float. The authors' nets clip at 6 above 3, else by PACT."),
        click.option("--act-range", type=click.Choice(["batch", "running"]), default="batch", show_default=True,
                     help="Range of each batch (the authors'), or calibrated on training pictures."),
        click.option("--act-clip", type=click.Choice(["6", "none", "pact"]), help="Of each quantized ReLU [default: "
                     "the authors' rule for their nets; other nets keep theirs]."),
        click.option("--act-include", **PATTERNS, help="Activations quantized, by name."),
        click.option("--act-exclude", **PATTERNS, help="Activations left float, by name."),
    ], keys_of(ActOptions))  # fmt: skip


IGNORED = {
    "--drop/--dropout": 0.0, "--cardinality": 8, "--widen-factor": 4, "--growthRate": 12,
    "--compressionRate": 2, "--gpu-id": "0",
}  # fmt: skip
IGNORED_BY_CONVERT = {**IGNORED, "--start-epoch": 0, "--resume": "", "--decay": 0.01, "-e/--evaluate": False}


def width_options() -> Decorator:
    """Which layers get how many bits, as `widths: WidthOptions`."""
    return gathered("widths", WidthOptions, [
        nbits_option(),
        click.option("--dict", type=FILE, help="Checkpoint whose Nbit_dict gives each layer its bits."),
        click.option("--preset", type=click.Choice(["hawq"]), help="HAWQ's widths of ResNet-20."),
        click.option("--include", **PATTERNS, default=("*",), show_default=True, help="Layers quantized, by name."),
        click.option("--exclude", **PATTERNS, help="Layers left float [default: the authors' 1x1 shortcuts]."),
    ], keys_of(WidthOptions))  # fmt: skip


def nbits_option(help: str = "Magnitude bits of a weight.", **more: Any) -> Decorator:
    """`--Nbits` as the authors have it (their recipes say 8)."""
    return click.option("--Nbits", type=click.IntRange(1, 16), default=4, show_default=True, help=help, **more)


def prune_options() -> Decorator:
    """How widths are found, as `bits: PruneOptions`."""
    widths: dict[str, Any] = {**PATTERNS, "metavar": "[PATTERN=]N", "show_default": True}
    return gathered("bits", PruneOptions, [
        nbits_option(help="Magnitude bits of a net that is not in bit form yet."),
        click.option("--Prun_Int", type=MANY, default=50, show_default=True,
                     help="Epochs between re-quantisations; 0: only at the end."),
        click.option("--thre", type=Real(0, 100), default=0.0, show_default=True,
                     help="Percent of weights a plane may lose."),
        click.option("--decay", type=Real(0), default=0.01, show_default=True, help="Strength of the group lasso."),
        click.option("--L1", is_flag=True, help="Switch the group lasso on."),
        click.option("--target-compression", type=Real(1, 32, min_open=True), help="Adapt --decay so that the net ends "
                     "at this compression (signs not counted); --L1 is then implied."),
        click.option("--max-bits", **widths, default=("8",), help="Widths grow up to N; wider layers do not shrink."),
        click.option("--min-bits", **widths, default=("1",), help="Dropping empty planes leaves at least N."),
    ], keys_of(PruneOptions))  # fmt: skip
