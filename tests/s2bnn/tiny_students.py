"""Tiny objectives of every method and short runs of them, for test_objective.py and the forks that it asks for."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.losses.queue import KeyQueue
from lowbit.models.heads import projector
from lowbit.models.reactnet import ReActNet
from lowbit.quant.binary import binarize_
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Run, fit
from lowbit.train.process import finish, make_accelerator
from lowbit.train.protocol import Stage
from lowbit.train.schedule import linear
from s2bnn.objective import S2bnn

DIM, WIDE, PICTURES, BATCH = 6, 10, 26, 9  # 3 batches of 9, 9, 8: two ranks hold different numbers of pictures
SPLIT: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "contrastive+distillation": {"step": 1},
    "distillation": {"step": 0},
    "distillation over a queue": {"over": "queue", "wide": True},
}


def student(dim: int, step: int) -> nn.Module:
    net: Any = binarize_(ReActNet(channels=(4, 8, 16)), step)
    net.fc = projector(16, 16, dim, 2)
    return net


def adam(objective: nn.Module) -> Adam:
    return Adam([p for p in objective.parameters() if p.requires_grad], lr=0.01)


def tiny(method: str, step: int = 2, over: str = "channels", wide: bool = False, **more: Any) -> S2bnn:
    """A method on a ReActNet of two blocks; `wide`: the teacher has more channels than the student."""
    torch.manual_seed(4)
    net, dim, generator = student(DIM, step), WIDE if wide else DIM, torch.Generator().manual_seed(1)
    learns = "distillation" in method
    return S2bnn(
        net, adam, temperature=0.2, momentum=0.9, teacher=student(dim, 0) if learns else None,
        keys=KeyQueue(DIM, 16, generator) if "contrastive" in method else None,
        projector=nn.Linear(DIM, dim) if wide else None, teacher_temperature=0.1,
        teacher_keys=KeyQueue(dim, 16, generator) if over == "queue" else None, **more,
    )  # fmt: skip


def short_run(objective: S2bnn, folder: Path, epochs: int = 3) -> None:
    """Epochs of three batches, in float64; on the main process leaves a run folder."""
    accelerator = make_accelerator("no", cpu=True)
    images = torch.randint(0, 256, (PICTURES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    pictures = MemoryPictures("made up", ["0"], images, torch.zeros(PICTURES, dtype=torch.int64))
    loader = Loader(
        pictures, cifar_train(CIFAR10, 8, 1), global_batch=BATCH, seed=3, n_views=objective.n_views, workers=0,
        dtype=torch.float64, rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    runs = RunFolder.open(folder, {}) if accelerator.is_main_process else RunFolder(folder, locked=False)
    try:
        stage = Stage(objective, epochs, {"main": linear(0.01, per_step=False)})
        fit([stage], loader, Run(accelerator=accelerator, folder=runs, seed=3))
    finally:
        runs.close()


def split_run(folder: Path) -> None:
    """What one process of one or several does: every method of SPLIT, 27 steps, batch norm over all processes."""
    accelerator = make_accelerator("no", cpu=True)
    world, rank = accelerator.num_processes, accelerator.process_index
    for name, more in SPLIT.items():
        objective = tiny(name, **more).double()
        sync_batchnorm_(objective)
        short_run(objective, folder / f"{name}{world}", epochs=9)
        torch.save(objective.state_dict(), folder / f"{name}{world}.{rank}.pt")
    finish(accelerator)
