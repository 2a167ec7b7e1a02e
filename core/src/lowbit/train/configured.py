"""Trainings with a YAML config: batch, optimizer and learning rates by its keys; what the record and a resume need."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lowbit.config.keys.root import MAY_DIFFER, PRETRAINED, RESUME, Root
from lowbit.config.keys.train import BATCH, Train
from lowbit.config.tree import dump_config
from lowbit.config.unused import used_values
from lowbit.data.loader import Loader
from lowbit.errors import InputError
from lowbit.models.create import check_arch
from lowbit.models.pretrained_cfg import ENTRY, Cfg
from lowbit.options import DATASETS, OptimOptions, RunOptions
from lowbit.train.batch import BatchPlan, per_process
from lowbit.train.job import Job
from lowbit.train.optim import make_optimizer, make_schedule, parameter_groups
from lowbit.train.protocol import Objective, Stage
from lowbit.train.schedule import Schedule
from lowbit.train.session import Session


def dataset_of(train: Train) -> str:
    """What `lowbit.data.datasets` calls its data set: those that are folders of pictures have one name there."""
    return train.DATASET if train.DATASET in DATASETS else "folder"


def refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse options that a command does not have.

    Raises:
        InputError: the first that was given.
    """
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} has no meaning {why}: leave it out")


def check_training(command: str, options: RunOptions, config: Root, arch: str) -> None:
    """What a training from drawn weights cannot do.

    Args:
        command: its name, for the message.
        options: shared.
        config: of the run.
        arch: timm name of its net.

    Raises:
        InputError: a key that has to be set and is not, an unknown net, or what asks for other weights or for a best.
    """
    config.check_training()
    check_arch(arch)
    model = config.MODEL
    unused = {
        PRETRAINED: model.PRETRAINED,
        "--pretrained": options.pretrained,
        "--val-split": options.val_split,
    }
    refuse(unused, f"in {command}, which starts from drawn weights and keeps no best")


def batch_of(train: Train, session: Session, keep_global_batch: bool) -> BatchPlan:
    """How many pictures a step sees; another number than the learning rate was chosen for makes a remark.

    Raises:
        InputError: --keep-global-batch cannot reach the stated number.
    """
    world, accumulate = session.accelerator.num_processes, session.options.accumulate
    return per_process(
        train.BATCH_SIZE, world, accumulate=accumulate, wanted=train.GLOBAL_BATCH, keep=keep_global_batch, options=BATCH
    )


def optimizer_of(train: Train, module: nn.Module, name: str, fixed: Sequence[str] = ()) -> Optimizer:
    """An optimizer over all that is trained of a module; groups for what weight decay leaves out.

    Args:
        train: rate, momentum and decay.
        module: an objective or a network.
        name: as in `lowbit.train.optim.make_optimizer`.
        fixed: as in `lowbit.train.optim.parameter_groups`.
    """
    keys = train.OPTIMIZER
    decays = keys.DECAY_NORM_AND_BIAS
    groups = parameter_groups(module, keys.WEIGHT_DECAY, decay_norm_and_bias=decays, fixed=fixed)
    return make_optimizer(groups, name, lr=train.LR_SCHEDULER.BASE_LR, momentum=keys.MOMENTUM)


def schedule_of(train: Train, name: str, warmup_epochs: int = 0) -> Schedule:
    """A learning rate that moves once an epoch.

    Args:
        train: full rate and milestones.
        name: "step" or "cosine".
        warmup_epochs: as in `lowbit.train.optim.make_schedule`.
    """
    rate, milestones = train.LR_SCHEDULER.BASE_LR, train.LR_SCHEDULER.DECAY_MILESTONES
    return make_schedule(name, rate, milestones=milestones, warmup_epochs=warmup_epochs, per_step=False)


def described(name: str, own: Any, optim: OptimOptions, config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `config.json`: the config's name, the command's own options (a dataclass), the config itself."""
    return {"config_name": name, **asdict(own), "optim": asdict(optim), "config": config}


def shared(config: Root, unused: Collection[str], optim: OptimOptions) -> dict[str, Any]:
    """What a resumed run must have in common with its start: every key that acts, optimizer and schedule.

    Args:
        config: of the run.
        unused: its keys without effect.
        optim: of the run.
    """
    flags = {"--opt": optim.opt, "--sched": optim.sched, "--warmup-epochs": optim.warmup_epochs}
    return {**used_values(config, {*unused, *MAY_DIFFER}), **flags}


def header_of(package: str, newest: int, config: Root, arch: str, cfg: Cfg, **more: Any) -> dict[str, Any]:
    """What every checkpoint of a training by a config says beside `state_dict`; paths of the run are left out.

    Args:
        package: import name of the method's package.
        newest: format that it writes.
        config: of the run.
        arch: timm name of the net.
        cfg: how pictures are shown.
        more: entries of the method.
    """
    said = dump_config(config)
    said["OUTPUT"], said["MODEL"]["CHECKPOINT"] = "", ""
    facts = {"format": newest, "package": package, "arch": arch, "input_size": cfg["input_size"]}
    return {**facts, **more, ENTRY: cfg, "config": said}


def job_of(
    session: Session, command: str, config: Root, objective: Objective, rates: Mapping[str, Schedule], loader: Loader,
    batch: BatchPlan, *, header: Mapping[str, Any], unused: Collection[str], name: str, own: Any, optim: OptimOptions,
    also: Mapping[str, Any] | None = None, **more: Any,
) -> Job:  # fmt: skip
    """The training of one objective by a config.

    Args:
        session: and the further arguments of `Job`, with the epochs of the config.
        command: likewise.
        config: resolved.
        objective: of the only stage.
        rates: its learning rates.
        loader: likewise.
        batch: likewise.
        header: likewise; its entry `config` is the dumped config.
        unused: as in `shared`.
        name: as in `described`.
        own: likewise.
        optim: likewise.
        also: more that a resumed run must have in common with its start.
        more: likewise.
    """
    train = config.TRAIN
    return Job(
        session, command, [Stage(objective, train.EPOCHS, rates)], loader, batch, header=header,
        shared={**shared(config, unused, optim), **(also or {})},
        described=described(name, own, optim, header["config"]), log_every=train.PRINT_FREQ, resume_option=RESUME,
        **more,
    )  # fmt: skip
