"""The command line of SQAKD (click only, no tensor): the authors' three programs and the tools.

Flags of the authors keep their names, defaults and meanings; what they edited into files has flags of its own.
"""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import (
    OPTIMIZERS,
    SCHEDULES,
    Decorator,
    gathered,
    ignored_note,
    ignored_options,
    run_options,
    start_epoch_option,
    stated,
)
from lowbit.cli.parsing import COUNT, MANY, WORKER_COUNT, Real, Several, Switch, UserPath
from lowbit.cli.program import Group
from lowbit.errors import InputError
from lowbit.options import DATASETS, MAX_SIDE, QUANTIZERS, WORKERS, RunOptions
from sqakd import __version__
from sqakd.kd.flags import distill_flags
from sqakd.options import ENDS, TrainOptions, train_options

POSITIVE, PART, FILE = Real(0, min_open=True), Real(0, 1, max_open=True), UserPath()
RESULTS = "./results/ResNet20_CIFAR10"
IGNORED = {"--num_classes": 10, "--gpu_id": "0"}
IGNORED_BY_MAIN = {
    "--dali_cpu": False, "--prof": -1, "--deterministic": False, "--local_rank": 0,
    "--keep-batchnorm-fp32": None, "--loss-scale": None, "-t/--test": False, "--backward_method": None,
}  # fmt: skip


@click.group(cls=Group, name="sqakd")
@click.version_option(__version__)
def cli() -> None:
    """SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao, AISTATS 2024)."""


main = cli.script  # the console script


def common(arch: str, *, epochs: int, dataset: str | None) -> list[Decorator]:
    """What all three have."""
    return [
        click.option("--dataset", type=click.Choice(DATASETS), default=dataset,
                     show_default=dataset or "tiny-imagenet or folder, by what DATA holds"),
        click.option("-a", "--arch", default=arch, show_default=True, help="An authors' name, or any timm name."),
        click.option("--epochs", type=COUNT, default=epochs, show_default=True),
        click.option("-b", "--batch_size", "--batch-size", type=COUNT, default=256, show_default=True,
                     help="Of the whole job."),
        click.option("--momentum", type=PART, default=0.9, show_default=True, help="Of SGD and LARS."),
        click.option("--weight_decay", "--weight-decay", type=Real(0), default=1e-4, show_default=True),
        click.option("--warmup-epochs", type=MANY, default=0, metavar="N", help="Epochs in which rates rise."),
        click.option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N", help="Side of the pictures."),
        click.option("--sync-bn", "--sync_bn", is_flag=True, help="Batch norm over all processes."),
        click.option("--calibration", type=MANY, default=1024, show_default=True, metavar="N", help="Training pictures "
                     "that batch norm is re-estimated on for the second figure; 0: none."),
        click.option("-e", "--evaluate", is_flag=True, help="Only evaluate --resume FILE, or what would be trained."),
        click.option("-p", "--print-freq", type=COUNT, default=100, show_default=True, help="Steps between log lines"),
    ]  # fmt: skip


def rate_flags(of: str, opt: str, lr: float) -> list[Decorator]:
    """Optimizer and learning rate of the weights (m) or of the quantizers (q), as in the CIFAR programs."""
    more = (("--opt",), ("--sched",)) if of == "m" else ((), ())
    factor = click.option("--gamma", type=Real(0, 1000, min_open=True), default=0.1, show_default=True,
                          help="Factor of a step schedule.")  # fmt: skip
    return [
        *([factor] if of == "m" else ()),
        click.option(f"--optimizer_{of}", *more[0], f"optimizer_{of}", default=opt, show_default=True,
                     type=click.Choice(OPTIMIZERS, case_sensitive=False)),
        click.option(f"--lr_{of}", type=POSITIVE, default=lr, show_default=True),
        click.option(f"--lr_{of}_end", type=Real(0), default=0.0, show_default=True),
        click.option(f"--lr_scheduler_{of}", *more[1], f"lr_scheduler_{of}", type=click.Choice(SCHEDULES),
                     default="cosine", show_default=True, help="By epoch."),
        click.option(f"--decay_schedule_{of}", metavar="EPOCH-EPOCH", default="150-300", show_default=True),
    ]  # fmt: skip


def quantizer_flags(quantizer: str, bits: int) -> list[Decorator]:
    """What quantizes which layers; the program's own quantizer and bits, for the help."""
    patterns: dict[str, Any] = {"multiple": True, "metavar": "PATTERN"}
    return [
        click.option("--quantizer", "--quan_method", type=click.Choice(QUANTIZERS, case_sensitive=False),
                     show_default=quantizer),
        click.option("--wbits", type=click.IntRange(1, 32), show_default=str(bits),
                     help="Of weights; 17 to 32: float."),
        click.option("--abits", type=click.IntRange(1, 32), show_default=str(bits),
                     help="Of the layers' inputs."),
        click.option("--weight_levels", type=COUNT, help="2 to the --wbits."),
        click.option("--act_levels", type=COUNT, help="2 to the --abits."),
        click.option("--bkwd_scaling_factorW", "bkwd_scaling_factorW", type=Real(0, 99), default=0.0,
                     help="EWGS's scale of weights' gradients; 0 with --use_hessian: 0.001 until the Hessian."),
        click.option("--bkwd_scaling_factorA", "bkwd_scaling_factorA", type=Real(0, 99), default=0.0,
                     help="Likewise, of inputs."),
        click.option("--use_hessian", cls=Switch, default=True, show_default=True, help="EWGS's scale follows the "
                     "Hessian of the loss that is trained."),
        click.option("--update_every", type=COUNT, default=10, show_default=True, help="Epochs between two Hessians."),
        click.option("--released", is_flag=True, help="Quantizers as the authors' programs compute them."),
        click.option("--include", **patterns, help="Layers quantized, by name [default: all but first and last]."),
        click.option("--exclude", **patterns, help="Layers left float, by name."),
        click.option("--first-last", type=click.Choice(ENDS), default="float", show_default=True,
                     help="Bits of the first layer and the classifier."),
    ]  # fmt: skip


shared = partial(run_options, output_flags=("--log_dir", "--output"))
WORKERS_TOO = click.option("--num_workers", "workers", type=WORKER_COUNT, default=WORKERS, hidden=True)


@cli.command("train_fp", epilog=ignored_note(IGNORED))
@gathered("own", partial(train_options, "train_fp"), [
    *common("resnet20_fp", epochs=400, dataset="cifar10"), *rate_flags("m", "sgd", 0.1),
    *distill_flags("--kd_gamma", "--kd_alpha"),
])  # fmt: skip
@WORKERS_TOO
@shared(output_note=f"default: {RESULTS}/fp, and none with --evaluate")
@ignored_options(IGNORED)
def train_fp(options: RunOptions, own: TrainOptions) -> None:
    """Train a float net: with labels, the teacher; or with --distill NAME a student of any net by another."""
    _run(options, own, f"{RESULTS}/fp")


@cli.command("train_quant", epilog=ignored_note(IGNORED))
@gathered("own", partial(train_options, "train_quant"), [
    *common("resnet20_quant", epochs=400, dataset="cifar10"), *rate_flags("m", "adam", 1e-3),
    *rate_flags("q", "adam", 1e-5), *quantizer_flags("ewgs", 1),
    click.option("--baseline", cls=Switch, default=False, help="The same as --quantizer ste."),
    click.option("--QWeightFlag", "QWeightFlag", cls=Switch, default=True, help="False: weights stay float."),
    click.option("--QActFlag", "QActFlag", cls=Switch, default=True, help="False: inputs stay float."),
    click.option("--load_pretrain", cls=Switch, default=False, help="Start from --pretrain_path."),
    click.option("--pretrain_path", type=FILE, default=f"{RESULTS}/fp/checkpoint/last_checkpoint.pth",
                 show_default=True, help="Float weights."),
    *distill_flags("--kd_gamma", "--kd_alpha"),
])  # fmt: skip
@WORKERS_TOO
@shared(output_note=f"default: {RESULTS}/W1A1, and none with --evaluate")
@ignored_options(IGNORED)
def train_quant(options: RunOptions, own: TrainOptions) -> None:
    """Train a low-bit net on small pictures: with labels (QAT), or by a teacher (--distill kd: SQAKD)."""
    _run(options, own, f"{RESULTS}/W1A1")


@cli.command("main", epilog=ignored_note(IGNORED_BY_MAIN))
@gathered("own", partial(train_options, "main"), [
    *common("resnet18", epochs=90, dataset=None),
    click.option("--optimizer_type", "--opt", "optimizer_m", type=click.Choice(OPTIMIZERS, case_sensitive=False),
                 default="sgd", show_default=True, help="SGD has Nesterov's momentum."),
    click.option("--lr", "--learning-rate", "lr_m", type=POSITIVE, default=1e-4, show_default=True, help="The peak."),
    click.option("--sched", "lr_scheduler_m", type=click.Choice(["cosine"]), default="cosine", show_default=True,
                 help="By step, after a warm-up from 0.0001."),
    click.option("--warmup-steps", type=MANY, default=2500, show_default=True),
    click.option("--smoothing", type=PART, show_default="0.1; 0 with --distill", help="Of labels."),
    click.option("--optimizer_q", type=click.Choice(OPTIMIZERS, case_sensitive=False), show_default="as the weights",
                 help="Of the quantizers' parameters."),
    click.option("--lr_q", type=POSITIVE, show_default="--lr", help="Likewise."),
    click.option("--weight_decay_q", type=Real(0), show_default="--weight_decay", help="Likewise."),
    *quantizer_flags("dorefa", 4),
    click.option("--not-quant", "not_quant", cls=Switch, default=False, help="Train a float net."),
    click.option("--load_pretrain", cls=Switch, default=False, help="Start from --pretrain_path."),
    click.option("--pretrain_path", type=FILE, help="Float weights."),
    *distill_flags("--gamma", "--alpha"),
])  # fmt: skip
@click.option("--opt-level", type=click.Choice(["O0", "O1", "O2", "O3"]), help="O1 to O3: --mixed-precision fp16.")
@start_epoch_option()
@run_options(data_argument=True, output_flags=("--save_root_path", "--output"), output_note="a training needs one")
@ignored_options(IGNORED_BY_MAIN)
def main_command(options: RunOptions, own: TrainOptions, opt_level: str | None) -> None:
    """Train a float or low-bit net on Tiny-ImageNet or a folder of pictures, DATA."""
    _run(
        options if opt_level in (None, "O0") else replace(options, mixed_precision="fp16"), replace(own, nesterov=True)
    )


SAID_BY = {"weight_levels": "wbits", "act_levels": "abits", "baseline": "quantizer"}


def _run(options: RunOptions, own: TrainOptions, default: str | None = None) -> None:
    from sqakd.commands.training import evaluate, train

    if own.evaluate:
        evaluate(options, own, {SAID_BY.get(name, name) for name in stated(("quantizer", "wbits", "abits", *SAID_BY))})
        return
    if options.output is None and default is None and not options.dry_run:
        raise InputError("--save_root_path (--output) is missing: name the run's folder")
    train(replace(options, output=options.output or (Path(default) if default else None)), own)


@cli.command("recipe", context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...")
@click.option("--print", "only", is_flag=True, help="Print the command line, run nothing.")
def recipe(name: str | None, more: tuple[str, ...], only: bool) -> None:
    """Run an experiment of the authors' scripts, OPTIONs replaced; the plain command line is printed first.

    Without NAME the recipes are listed, with what they train with.
    """
    from lowbit.train import console
    from sqakd.commands.recipe import command_of, listed

    line = command_of(name, more) if name else []
    console.say(*([shlex.join(["sqakd", *line])] if line else listed()))
    if line and not only:
        cli.commands[line[0]].main(line[1:], f"sqakd {line[0]}", standalone_mode=False)


@cli.command("sweep")
@click.argument("file", type=FILE)
@click.option("--dataset", type=click.Choice(DATASETS), default="cifar10", show_default=True)
@click.option(
    "--bits", cls=Several, type=click.IntRange(1, 16), default=(8, 4, 3, 2), show_default=True, metavar="N..."
)
@click.option("--probe-epochs", type=COUNT, default=20, show_default=True)
@run_options(training=False)
def sweep(options: RunOptions, file: Path, dataset: str, bits: tuple[int, ...], probe_epochs: int) -> None:
    """Evaluate a student at several bits: k-NN and a probe, one table."""
    from sqakd.commands.sweep import sweep

    sweep(options, file, dataset, bits, probe_epochs)


@cli.command("export")
@click.argument("file", type=FILE)
@click.option("--format", "form", type=click.Choice(["packed"]), default="packed", expose_value=False)
@run_options(data=False, training=False)
def export(options: RunOptions, file: Path) -> None:
    """Write a student as one file with its codes at their own bits, which lowbit.load reads."""
    from sqakd.commands.export import export

    export(options, file)


@cli.command("demo")
@run_options(training=False, output_note="default: runs/sqakd-demo")
def demo(options: RunOptions) -> int:
    """Show it all on the digits: a teacher, then W2A2 with labels and without, by three quantizers."""
    from sqakd.commands.demo import demo

    return demo(options)
