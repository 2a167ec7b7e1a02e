"""Tiny objectives of every method and short runs of them, for test_objective.py and the forks that it asks for."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD

from lowbit.checkpoint.read import newest_good
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.heads import build_heads
from lowbit.quant.bitwidths import quantize_uniform_
from lowbit.quant.observers import ObserverConfig
from lowbit.quant.uniform import WeightConfig
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Run, fit
from lowbit.train.process import finish, make_accelerator
from lowbit.train.protocol import Stage
from lowbit.train.schedule import cosine
from ssql.bit_policy import derive_policy
from ssql.methods import plan_of
from ssql.objective import Contrastive, Drawing, MomentumContrast, Reversed, SelfSupervised, Siamese

DIM, PICTURES, BATCH = 6, 26, 9  # 3 batches of 9, 9, 8: two ranks hold different numbers of pictures
SPLIT = ("SSQL_SimSiam", "SSQL_MoCo")


def tiny(kind: str, drawing: Drawing | None = None, observer: str = "minmax", grid: str = "half") -> SelfSupervised:
    """A method on a net of two blocks; `drawing` where it has SSQL in its name, the authors' ranges if none is given.

    With `grid` "whole" no weight lies at a near tie, so that one process and several stay together.
    """
    torch.manual_seed(4)
    encoder = WideCifarResNet(BasicBlock, (1, 1), widths=(4, 8), num_classes=0)
    heads = build_heads(plan_of(kind), 8, DIM, 8)
    encoder.fc = heads.projector
    if "SSQL" in kind:
        quantize_uniform_(encoder, derive_policy(encoder, (3, 8, 8)), WeightConfig(grid), ObserverConfig(observer))
        drawing = drawing or Drawing(equal=kind.startswith("R"))
    optimize = partial(sgd, lr=0.1)
    if kind.endswith("SimCLR"):
        return Contrastive(encoder, optimize, drawing, temperature=0.5, gathered=True)
    if kind.endswith("MoCo"):
        more: dict[str, Any] = {"temperature": 0.2, "momentum": 0.9, "generator": torch.Generator().manual_seed(1)}
        return MomentumContrast(encoder, optimize, drawing, dim=DIM, length=16, **more)
    assert heads.predictor is not None
    method = Reversed if kind.startswith("RSSQL") else Siamese
    return method(encoder, heads.predictor, optimize, drawing, momentum=0.9 if kind.endswith("BYOL") else None)


def sgd(objective: torch.nn.Module, lr: float) -> SGD:
    return SGD([p for p in objective.parameters() if p.requires_grad], lr=lr, momentum=0.9, weight_decay=1e-4)


def short_run(objective: SelfSupervised, folder: Path, dtype: torch.dtype, **options: Any) -> list[tuple[float, ...]]:
    """Two epochs of three batches; returns the bits that were drawn, and on the main process leaves a run folder."""
    accelerator = make_accelerator("no", cpu=True)
    images = torch.randint(0, 256, (PICTURES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    pictures = MemoryPictures("made up", ["0"], images, torch.zeros(PICTURES, dtype=torch.int64))
    loader = Loader(
        pictures, cifar_train(CIFAR10, 8, 1), global_batch=BATCH, seed=3, n_views=2, workers=0, dtype=dtype,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    drawn: list[tuple[float, ...]] = []
    objective.register_forward_hook(
        lambda module, args, out: drawn.append(tuple(out.parts[name].item() for name in ("w_bits", "a_bits")))
    )
    resume = newest_good(folder)[1] if options.pop("resume", False) else None  # type: ignore[index]
    main_one = accelerator.is_main_process
    runs = RunFolder.open(folder, {}, resume=resume is not None) if main_one else RunFolder(folder, locked=False)
    stage = Stage(objective, 2, {"main": cosine(0.1, per_step=False)})
    try:
        fit([stage], loader, Run(accelerator=accelerator, folder=runs, seed=3, resume=resume, **options))
    finally:
        runs.close()
    return drawn


def split_run(folder: Path) -> None:
    """What one process of one or several does: every method of SPLIT, in float64, batch norm over all processes."""
    accelerator = make_accelerator("no", cpu=True)
    world, rank = accelerator.num_processes, accelerator.process_index
    for kind in SPLIT:
        objective = tiny(kind, grid="whole").double()
        sync_batchnorm_(objective)
        drawn = short_run(objective, folder / f"{kind}{world}", torch.float64)
        torch.save((objective.state_dict(), drawn), folder / f"{kind}{world}.{rank}.pt")
    finish(accelerator)
