"""Tiny objectives of every method and short runs of them, for test_objective.py and the forks that it asks for."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from lowbit.checkpoint.read import newest_good
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.losses.queue import KeyQueue
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.heads import build_heads, predictor
from lowbit.slim.conversion import slim_
from lowbit.slim.layers import SlimConv2d, SlimLinear
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Run, fit
from lowbit.train.process import finish, make_accelerator
from lowbit.train.protocol import Stage
from lowbit.train.schedule import constant, cosine
from us3l.config import Config
from us3l.group_decay import GroupDecay
from us3l.losses import FeatureDistillation, loss_of, pooled_cosine
from us3l.methods import PROJECTORS, heads_of
from us3l.objective import Plan, UniversallySlimmable
from us3l.sampling import Sampling

DIM, PICTURES, BATCH = 6, 26, 9  # 3 batches of 9, 9, 8: two ranks hold different numbers of pictures
WIDTHS = (1.0, 0.5, 0.25)
TYPES = ("SimCLR", "SimCLR_Momentum", "BYOL", "SimSiam", "SimSiam_Momentum", "MoCo", "MoCo_v3")
SPLIT: dict[str, dict[str, Any]] = {
    "BYOL": {"features": True},
    "MoCo": {},
    "BYOL, a step per batch": {"step_per_batch": True},
}


def seed(method: str, **more: Any) -> UniversallySlimmable:
    """A method that learns from a teacher; the student at width 0.5."""
    torch.manual_seed(4)
    nets = []
    for _ in range(2):
        nets.append(WideCifarResNet(BasicBlock, (1, 1), widths=(16, 32), num_classes=0))
        nets[-1].fc = build_heads(PROJECTORS[method], 32, DIM, 8).projector
    slim_(nets[0], (3, 8, 8))
    name = {"SEED": "soft_distill", "SEED_MSE": "CosineSimilarity", "SEED_SimCLR": "InfoNCEv2_distill"}[method]
    keys = KeyQueue(DIM, 32, torch.Generator().manual_seed(1)) if method == "SEED" else None
    loss = loss_of(name, 0.2 if method == "SEED" else 0.5, keys, 0.1)
    heads = {"predictor": predictor(DIM, 8)} if method == "SEED_MSE" else {}
    plan = Plan(Sampling(fixed=(0.5,)), loss, None, heads=("".join(heads), ""), **more)
    return UniversallySlimmable(nets[0], plan, sgd, heads=heads, keys=keys, teacher=nets[1])


def sgd(objective: nn.Module) -> SGD:
    return SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def decay() -> GroupDecay:
    return GroupDecay(0.02, 0.1, "linear", 4)


def tiny(method: str, ofa: dict[str, Any] | None = None, features: bool = False, **plan: Any) -> UniversallySlimmable:
    """A method on a net of two blocks, at `WIDTHS`; `plan` replaces entries of its plan, `ofa` those of MODEL.OFA."""
    torch.manual_seed(4)
    given = {"NUM_SAMPLE_TRAINING": 3, "MOMENTUM_UPDATE": False, **(ofa or {})}
    config = Config.model_validate({"MODEL": {"OFA": given}, "SSL": {"TYPE": method}})
    encoder = WideCifarResNet(BasicBlock, (1, 1), widths=(16, 32), num_classes=0)
    encoder.fc = build_heads(PROJECTORS[method], 32, DIM, 8).projector
    slim_(encoder, (3, 8, 8))
    keys = KeyQueue(DIM, 32, torch.Generator().manual_seed(1)) if method == "MoCo" else None
    made = Plan(
        Sampling(fixed=WIDTHS),
        loss_of(config.criterion, 0.5, keys),
        loss_of(config.criterion if method in ("MoCo", "MoCo_v3") else "CosineSimilarity", 0.5, keys),
        weight=0.7,
        heads=heads_of(config),
        momentum=None if method in ("SimCLR", "SimSiam") else constant(0.9),
    )
    made = replace(made, **plan)
    heads = {name: predictor(DIM, 8) for name in dict.fromkeys(made.heads) if name}
    lifts = FeatureDistillation(("layer1.0.bn2", "layer2.0"), (16, 32), pooled_cosine, 0.3) if features else None
    return UniversallySlimmable(encoder, made, sgd, heads=heads, features=lifts, keys=keys)


def without_norm() -> UniversallySlimmable:
    """Cosine loss and group regularization of a net without batch norm, whose loss is a mean over pictures."""
    torch.manual_seed(4)
    conv = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
    encoder = nn.Sequential(
        SlimConv2d(conv(3, 16), (False, True)), nn.ReLU(), SlimConv2d(conv(16, 32)), nn.ReLU(),
        nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), SlimLinear(nn.Linear(32, DIM), (True, False)),
    )  # fmt: skip
    loss = loss_of("CosineSimilarity", 1.0)
    plan = Plan(Sampling(), loss, loss, heads=("predictor", "predictor_new"), momentum=constant(0.9), decay=decay())
    heads = {name: nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, DIM)) for name in plan.heads}
    return UniversallySlimmable(encoder, plan, sgd, heads=heads).double()


def short_run(objective: UniversallySlimmable, folder: Path, epochs: int = 2, **options: Any) -> list[float]:
    """Epochs of three batches, in float64; returns the widths, and on the main process leaves a run folder."""
    accelerator = make_accelerator("no", cpu=True)
    images = torch.randint(0, 256, (PICTURES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    pictures = MemoryPictures("made up", ["0"], images, torch.zeros(PICTURES, dtype=torch.int64))
    loader = Loader(
        pictures, cifar_train(CIFAR10, 8, 1), global_batch=BATCH, seed=3, n_views=2, workers=0, dtype=torch.float64,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    widths: list[float] = []
    objective.register_forward_hook(lambda module, args, out: widths.append(args[2].variant.width))
    resume = newest_good(folder)[1] if options.pop("resume", False) else None  # type: ignore[index]
    main_one = accelerator.is_main_process
    runs = RunFolder.open(folder, {}, resume=resume is not None) if main_one else RunFolder(folder, locked=False)
    stage = Stage(objective, epochs, {"main": cosine(0.1, per_step=False)})
    try:
        fit([stage], loader, Run(accelerator=accelerator, folder=runs, seed=3, resume=resume, **options))
    finally:
        runs.close()
    return widths


def split_run(folder: Path) -> None:
    """What one process of one or several does: every method of SPLIT, batch norm over all processes."""
    accelerator = make_accelerator("no", cpu=True)
    world, rank = accelerator.num_processes, accelerator.process_index
    for name, more in SPLIT.items():
        objective = tiny(name.partition(",")[0], sampling=Sampling(schedule="A"), decay=decay(), **more)
        sync_batchnorm_(objective.double())
        widths = short_run(objective, folder / f"{name}{world}", epochs=4 if name == "BYOL" else 2)
        torch.save((objective.state_dict(), widths), folder / f"{name}{world}.{rank}.pt")
    finish(accelerator)
