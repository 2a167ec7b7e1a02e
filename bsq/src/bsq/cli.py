"""The command line of BSQ: the authors' programs as commands, their flags and defaults kept (click only, no tensor).

`convert` and `cifar_finetune` are the authors' scripts; `train` is the float training that they left to another
repository; `report`, `export` and `demo` are ours. Flags of the authors that had no effect are accepted without one.
"""

import dataclasses
from pathlib import Path
from typing import Any

import click

from bsq import __version__, flags
from bsq.options import NetOptions
from lowbit.cli.options import ignored_note, ignored_options, sgd_options, start_epoch_option
from lowbit.cli.parsing import SEED
from lowbit.cli.program import Group
from lowbit.errors import InputError
from lowbit.options import DATASETS, RunOptions, SgdOptions


@click.group(cls=Group, name="bsq")
@click.version_option(__version__)
def cli() -> None:
    """BSQ (Yang et al., ICLR 2021): bit-level sparsity finds each layer's precision."""


main = cli.script  # the console script


def of_training(options: RunOptions, evaluate: bool) -> RunOptions:
    """A training writes to `checkpoint` by default; an evaluation only where it is told to, and resumes nothing.

    Raises:
        InputError: --resume with --evaluate.
    """
    if evaluate and options.resume is not None:
        raise InputError(f"--resume {options.resume} with --evaluate: an evaluation is not resumed; leave one out")
    return options if evaluate else dataclasses.replace(options, output=options.output or Path("checkpoint"))


@cli.command("train")
@flags.net_options()
@sgd_options(epochs=350, schedule=(150, 250, 325), weight_decay=1e-4)
@click.option("-e", "--evaluate", is_flag=True, help="Only evaluate --model: plain ReLU, float activations.")
@flags.shared_options(**flags.TRAINING)
def train(options: RunOptions, net: NetOptions, sgd: SgdOptions, evaluate: bool) -> None:
    """Train the float net that conversion starts from, by default into `checkpoint`.

    It is not needed for a net that was trained elsewhere: convert takes a checkpoint of any timm net (--model FILE -a
    NAME), or timm's own weights (--pretrained).
    """
    from bsq.commands.train import evaluate_float, train

    options = of_training(options, evaluate)
    if evaluate:
        evaluate_float(options, net)
    else:
        train(options, net, sgd)


@cli.command("convert", epilog=ignored_note(flags.IGNORED_BY_CONVERT))
@flags.net_options()
@flags.act_options()
@flags.width_options()
@flags.shared_options(output=Path("checkpoint"), training=False)
@sgd_options(epochs=300, opt=None)
@ignored_options(flags.IGNORED_BY_CONVERT)
def convert(sgd: SgdOptions, **given: Any) -> None:
    """Turn a float net into bit planes. Of the training options only --train-batch acts: it calibrates ranges."""
    from bsq.commands.convert import convert

    convert(**given, calibration_batch=sgd.train_batch)


@cli.command("cifar_prune_STE", epilog=ignored_note(flags.IGNORED))
@flags.net_options()
@flags.act_options()
@flags.prune_options()
@click.option("--bin", is_flag=True, default=False, expose_value=False, help="No effect: bits it is.")
@click.option("-e", "--evaluate", is_flag=True, help="Only evaluate --model.")
@flags.shared_options(**flags.TRAINING)
@sgd_options(epochs=350, opt="sgd; of what is no plane")
@start_epoch_option()
@ignored_options(flags.IGNORED)
def cifar_prune_ste(options: RunOptions, evaluate: bool, **given: Any) -> None:
    """Train in bit form: a group lasso empties bit planes, which finds each layer's precision.

    Without --model (or --pretrained) it starts from random weights.
    """
    from bsq.commands.prune import prune

    prune(of_training(options, evaluate), evaluate=evaluate, **given)


@cli.command("cifar_finetune", epilog=ignored_note(flags.IGNORED))
@flags.net_options()
@flags.act_options()
@flags.nbits_option(expose_value=False, help="No effect: the widths are those of --model.")
@click.option("--bin", is_flag=True, default=False, expose_value=False, help="No effect: bits it is.")
@click.option("-e", "--evaluate", is_flag=True, help="Evaluate --model: accuracy, ones per bit, each layer's bits.")
@flags.shared_options(**flags.TRAINING)
@sgd_options(epochs=300)
@start_epoch_option()
@ignored_options(flags.IGNORED)
def cifar_finetune(options: RunOptions, evaluate: bool, **given: Any) -> None:
    """Train a net in bits on at the widths that were found, or only evaluate it."""
    from bsq.commands.finetune import finetune

    finetune(of_training(options, evaluate), evaluate=evaluate, **given)


@cli.command("report")
@flags.file_options()
@flags.shared_options(data=False, training=False)
def report(options: RunOptions, net: NetOptions) -> None:
    """Show a checkpoint's bits, ones per plane and compression; with --output also as JSON and as a picture."""
    from bsq.commands.report import report

    report(options, net)


@cli.command("export")
@flags.file_options()
@click.option("--format", type=click.Choice(["packed"]), default="packed", show_default=True)
@click.option("-d", "--dataset", type=click.Choice(DATASETS), help="Sets ranges [default: what --model says].")
@click.option("--keep-batch-ranges", is_flag=True, help="Results then depend on what else is in a picture's batch.")
@flags.shared_options(training=False)
def export(format: str, **given: Any) -> None:
    """Write a checkpoint's codes at their own bits into `--output`/packed.safetensors.

    Activation ranges of each batch become fixed, found on training pictures; top-1 is reported before and after.
    """
    from bsq.commands.export import export

    export(**given)


@cli.command("demo")
@flags.shared_options(output=Path("runs/bsq-demo"), data=False, training=False)
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything.")
def demo(options: RunOptions) -> int:
    """The digits: a small float net, 8, 4 and 3 bits, then BSQ and fine-tuning; tables, a picture, result.json."""
    from bsq.commands import demo

    return demo.demo(options)
