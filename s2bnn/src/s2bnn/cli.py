"""The command line of S2-BNN (click only, no tensor): the authors' programs, each one command, and the tools."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import (
    Decorator,
    gathered,
    ignored_note,
    ignored_options,
    optim_flags,
    run_options,
    start_epoch_option,
    stated,
)
from lowbit.cli.parsing import COUNT, MANY, SEED, Last, Real, Several, UserPath
from lowbit.cli.program import Group
from lowbit.options import DATASETS, MAX_SIDE, MOST_CLASSES, RunOptions
from s2bnn import __version__
from s2bnn.options import (
    LAUNCHER,
    METHODS,
    OVER,
    SIMSIAM,
    FileOptions,
    LinclsOptions,
    PretrainOptions,
    pretrain_options,
)

option = functools.partial(click.option, show_default=True)
log = logging.getLogger(__name__)
POSITIVE, PART = Real(0, min_open=True), Real(0, 1)
UNUSED = {"-a/--arch": "resnet50"}  # by the authors' main_lincls


@click.group(cls=Group, name="s2bnn")
@click.version_option(__version__)
def cli() -> None:
    """S2-BNN: self-supervised binary neural networks by guided distribution calibration (Shen et al., CVPR 2021)."""


main = cli.script  # the console script


def answer_launcher() -> None:
    """A log line where the command line states flags of the authors' launcher."""
    flags = {flag.lstrip("-").replace("-", "_"): flag for flag in LAUNCHER}
    if given := [flags[name] for name in stated(flags)]:
        log.info(
            "%s: without effect; accelerate starts the processes: accelerate launch --num_processes 8 -m s2bnn ... "
            "(several machines: --num_machines, --machine_rank, --main_process_ip)", ", ".join(given),
        )  # fmt: skip


def train_options(*, epochs: int, lr: float, schedule: Any, weight_decay: Any) -> list[Decorator]:
    """What both of the authors' programs have, with the defaults of one (a text: they differ by variant)."""

    def of(default: Any) -> dict[str, Any]:
        return {"show_default" if isinstance(default, str) else "default": default}

    return [
        option("--dataset", type=click.Choice(DATASETS), default="folder",
               help="folder: DATA/train/<class>/* and DATA/val/<class>/*, as ImageNet."),
        option("--epochs", type=COUNT, default=epochs, help="Of this command."),
        option("-b", "--batch-size", cls=Last, type=COUNT, default=256, help="Of each machine; the last one counts."),
        option("--lr", "--learning-rate", type=POSITIVE, default=lr),
        option("--schedule", cls=Several, type=MANY, metavar="EPOCH...", **of(schedule),
               help="Epochs (from 0) at whose start the rate is multiplied by 0.1."),
        option("--momentum", type=Real(0, 1, max_open=True), default=0.9, help="Of SGD and LARS."),
        option("--wd", "--weight-decay", "weight_decay", type=Real(0), **of(weight_decay), help="Of all parameters."),
        option("-p", "--print-freq", type=COUNT, default=10, help="Steps between log lines."),
        option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N", help="Side of the pictures.",
               show_default="224, or their own in memory"),
        option("--sync-bn", is_flag=True, help="Batch norm over all processes."),
        start_epoch_option(),
    ]  # fmt: skip


STUDENT = option("--student", metavar="NAME", help="timm's name of the net, where the file does not say.")
STEP_OF_FILE = option("--step", type=click.IntRange(0, 2), help="What of it is binary, where the file does not say.")


def file_options(required: bool, *more: Decorator) -> Decorator:
    """Which net, as one argument `own: FileOptions`."""
    file = click.argument("file", metavar="FILE" if required else "[FILE]", required=required, type=UserPath())
    return gathered("own", FileOptions, [file, STUDENT, STEP_OF_FILE, *more])


@cli.command("main_moco", epilog=f"Answered with one line: {', '.join(LAUNCHER)}: accelerate launch starts processes.")
@run_options(output=Path(), data_argument=True)
@ignored_options(LAUNCHER)
@gathered("own", pretrain_options, [
    option("--method", type=click.Choice(METHODS), required=True, help="The losses."),
    option("--step", type=click.IntRange(0, 2), required=True, help="0: real-valued, 1: binary activations, 2: both."),
    option("--student", default="reactnet_a", help="Any timm name."),
    option("-a", "--arch", default="resnet50", help="Of the teacher: any timm name."),
    option("--teacher-path", type=UserPath(), help="The teacher's weights: MoCo, SwAV, DINO, torchvision, ..."),
    option("--timm-teacher", is_flag=True, help="timm's weights of --arch are the teacher."),
    option("--model-path", "--model_path", type=UserPath(), help="Checkpoint of the step before: its weights."),
    *train_options(epochs=200, lr=0.0003, schedule="120 160; step 2 of contrastive: 120 195",
                   weight_decay="0.0001; step 1 of distillation: 0"),
    *optim_flags("adam", "step at --schedule"),
    option("--cos", is_flag=True, help="The authors' flag: a LINEAR decay, lr (1 - epoch / epochs)."),
    option("--true-cosine", is_flag=True, help="Half a cosine, lr (1 + cos(pi epoch / epochs)) / 2."),
    option("--moco-dim", type=COUNT, default=128, help="Entries of an embedding."),
    option("--moco-k", type=COUNT, default=65536, help="Keys in the queue."),
    option("--moco-m", type=PART, default=0.999, help="Momentum of the key encoder."),
    option("--moco-t", type=POSITIVE, default=0.07, help="Temperature of both losses; the authors' commands give 0.2."),
    option("--teacher-t", type=POSITIVE, show_default="--moco-t", help="Of the teacher."),
    option("--mlp", is_flag=True, help="Two layers at the student's end, not one."),
    option("--aug-plus", is_flag=True, help="MoCo v2's augmentation with the authors' lower probabilities."),
    option("--over", type=click.Choice(OVER), default="channels",
           help="The distillation's softmax: over an embedding's channels, or a queue of the teacher's (SEED)."),
    option("--kl", is_flag=True, help="Subtract the teacher's entropy from the distillation's loss."),
    option("--keep", type=MANY, default=3, help="Checkpoints by epoch that stay."),
    option("--probe-every", type=MANY, default=10, help="Epochs between k-NN and collapse figures on the test set (and "
           "after the last); 0: none, no test set needed."),
])  # fmt: skip
def main_moco(options: RunOptions, own: PretrainOptions) -> None:
    """Train a binary network without labels, by contrast or from a teacher's outputs, on DATA/train."""
    from s2bnn.commands.main_moco import main_moco

    answer_launcher()
    main_moco(options, own)


@cli.command("report")
@file_options(
    False, option("--classes", type=click.IntRange(0, MOST_CLASSES), metavar="N", help="Of the last layer."),
    option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N", help="Side of the pictures."),
)  # fmt: skip
@run_options(data=False, training=False)
def report(options: RunOptions, own: FileOptions) -> None:
    """Count a net's real and binary operations and parameters: of FILE, or of --student (reactnet_a) at --step (2)."""
    from s2bnn.commands.report import report

    report(options, own)


@cli.command("export")
@file_options(True)
@option("--format", "form", type=click.Choice(["packed", "float", "backbone"]), default="packed",
              show_default=True, help="packed: one bit a weight.")  # fmt: skip
@run_options(data=False, training=False)
def export(options: RunOptions, own: FileOptions, form: str) -> None:
    """Write FILE, a checkpoint of ours or the authors', as a net that lowbit.load reads."""
    from s2bnn.commands.export import export

    export(options, own, form)


def lincls_options(protocol: str, **more: Any) -> LinclsOptions:
    """With the defaults of the protocol for what the command line does not state."""
    own = {name: value for name, value in SIMSIAM.items() if protocol == "simsiam" and not stated([name])}
    return LinclsOptions(protocol=protocol, **{**more, **own})


@cli.command("main_lincls", epilog=ignored_note(UNUSED))
@ignored_options(LAUNCHER)
@gathered("own", lincls_options, [
    *train_options(epochs=100, lr=30.0, schedule=(60, 80), weight_decay=0.0),
    *optim_flags("sgd", "step at --schedule"),
    option("--pretrained", "weights", type=UserPath(), metavar="FILE", help="What is evaluated: a checkpoint of "
                 "ours, of the authors or of others, or a backbone."),
    STUDENT,
    STEP_OF_FILE,
    option("-e", "--evaluate", is_flag=True, help="Only evaluate the classifier of --resume FILE."),
    option("--cache-features", is_flag=True, help="Train on the evaluation transform, features taken once."),
    option("--protocol", type=click.Choice(["moco", "simsiam"]), default="moco",
           help="simsiam: 90 epochs, -b 4096, --opt lars, --sched cosine, --lr 0.1 for 256 pictures."),
])  # fmt: skip
@run_options(data_argument=True, pretrained_flag="--timm-pretrained", output_note="a training writes to .")
@ignored_options(UNUSED)
def main_lincls(options: RunOptions, own: LinclsOptions) -> None:
    """Train a classifier on a frozen net, of --pretrained FILE."""
    from s2bnn.commands.main_lincls import main_lincls

    answer_launcher()
    here = options.output or (None if own.evaluate else Path())
    main_lincls(dataclasses.replace(options, output=here), own)


@cli.command("demo")
@run_options(output=Path("runs/s2bnn-demo"), data=False, training=False)
@option("--seed", type=SEED, default=0, help="For everything.")
def demo(options: RunOptions) -> int:
    """The digits: a small binary net distilled in two steps, and trained by contrast; a table, a picture."""
    from s2bnn.commands.demo import demo

    return demo(options)
