"""`us3l slimmable`: a switchable net (S-Net) trained with labels at the widths of MODEL.OFA.WIDTH_MULT_LIST.

The baseline of the papers; the authors' command ends at its start (it calls transforms that their program has not).
Accuracies at each width come after every 20th epoch and the last, as theirs.
"""

from functools import partial

from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.options import BatchOptions, OptimOptions, RunOptions
from lowbit.slim.layers import at_width
from lowbit.slim.training import SlimmableTraining, evaluate_widths
from lowbit.slim.widths import show_width
from lowbit.train.configured import batch_of, dataset_of, job_of
from lowbit.train.epochs import print_epoch_lines
from lowbit.train.run import Result
from lowbit.train.session import Session
from us3l import load
from us3l.commands import FILES
from us3l.commands.linear import DUE, transforms_of
from us3l.commands.pretrain import check_config
from us3l.config import Config
from us3l.network import network
from us3l.optim import AUTHORS, optimizer, rates
from us3l.unused_keys import without_effect


def slimmable(
    options: RunOptions, config: Config, name: str, own: BatchOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with accuracies on the way, and write the results."""
    check(options, config)
    train, ofa, arch = config.TRAIN, config.MODEL.OFA, config.MODEL.net.name
    with Session("us3l", options, dataset_of(train), files=FILES) as session:
        pictures, test = session.pictures("train"), session.pictures("test")
        side, classes = side_of(pictures, config.MODEL.side), config.MODEL.classes(pictures.name, len(pictures.classes))
        views, shown = transforms_of(train.DATASET, pictures, side)
        batch = batch_of(train, session, own.keep_global_batch)
        loader = session.loader(pictures, views, batch, drop_last=train.DROP_LAST)
        net = network(config.MODEL.net, (3, side, side), ofa.WIDTH_MULT_LIST, classes)
        session.place(net, sync_batchnorm=train.SYNC_BN)
        objective = SlimmableTraining(
            net, ofa.WIDTH_MULT_LIST, partial(optimizer, config, command="slimmable", optim=optim),
            distills=ofa.DISTILL, step_per_batch=ofa.STEP_PER == "batch",
        )  # fmt: skip
        cfg = pretrained_cfg(shown, (3, side, side), pictures.classes)
        facts = {"widths": [show_width(width) for width in objective.widths], "classes": classes}
        job = job_of(
            session, "slimmable", config, objective, rates(config, "slimmable", optim), loader, batch,
            header=load.header(config, cfg, classes), unused=without_effect("slimmable", config, optim.sched),
            name=name, own=own, optim=optim, prefixes={"student.": ""}, facts=facts,
        )  # fmt: skip
        job.check()
        if job.planned({**facts, "dataset": train.DATASET}):
            return None
        widest = show_width(objective.widths[0])
        with job.open() as folder:
            assert folder is not None  # --output has a default
            lines = print_epoch_lines(session, folder, {"Loss": f"loss_{widest}", "Acc@1": f"top1_{widest}"})
            accuracies = evaluate_widths(session, session.eval_loader(test, shown), objective.widths, DUE)
            result = job.fit(folder, [lines, accuracies])
            job.write_result(folder, result, {})
            if objective.widths[0] == 1:
                with at_width(net, 1.0):
                    path = folder.path / "backbone.safetensors"
                    job.export(folder, result, lambda _: save_backbone(net, path, arch, cfg))
    return result


def check(options: RunOptions, config: Config) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or what this command does not have.
    """
    config.check_evaluation(resumes=True)  # a rate
    check_config("slimmable", options, config)
    if config.MODEL.net.kind != "switchable":
        raise InputError(
            f"MODEL.ARCH={config.MODEL.ARCH}: `us3l slimmable` trains switchable nets, such as s_cifar_resnet18"
        )
