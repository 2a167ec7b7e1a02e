"""The same evaluation on one process and on two, for tests: a program, told where to write; not a test itself.

Every process writes `<processes>-<rank>.pt`: what it found, and whether a stop that only the last one saw reached it.
"""

import copy
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it
from accelerate import Accelerator
from ranks import fork_ranks
from torch import nn

from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train, plain
from lowbit.errors import Stopped
from lowbit.evaluate.classify import classify
from lowbit.evaluate.collapse import collapse_probe
from lowbit.evaluate.features import extract
from lowbit.evaluate.knn import knn
from lowbit.evaluate.linear import linear_probe
from lowbit.evaluate.probe import ProbeOptions, make_head, train_head_
from lowbit.evaluate.sweep import SweepOptions, Variant, sweep
from lowbit.models.create import create_model
from lowbit.train import signals
from lowbit.train.loop import Run, fit
from lowbit.train.process import finish, make_accelerator
from lowbit.train.protocol import Clock, Objective, Stage

CLASSES = 10
OPTIONS = ProbeOptions(lr=1.0, epochs=3, batch_size=50, milestones=(2,))


def pictures(split: str, n: int) -> MemoryPictures:
    """Noise about a grey of each class (the digits would have every process import scikit-learn)."""
    generator = torch.Generator().manual_seed(len(split))
    label = torch.arange(n) % CLASSES
    images = 60 + 12 * label.view(-1, 1, 1, 1) + torch.randint(0, 80, (n, 3, 8, 8), generator=generator)
    return MemoryPictures(split, [str(c) for c in range(CLASSES)], images.to(torch.uint8), label)


def rounded(net: nn.Module) -> Callable[[], AbstractContextManager[Any] | None]:
    """Puts a coarser copy of the weights into a net, for good."""

    def enter() -> None:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_((parameter * 4).round() / 4)

    return enter


def stops(accelerator: Accelerator, call: Callable[[], object]) -> bool:
    """Whether a call obeys a stop that only the last process was asked for."""
    if accelerator.process_index == accelerator.num_processes - 1:
        signals.request_stop()
    try:
        call()
    except Stopped:
        return True
    finally:
        signals.clear()
    return False


def work() -> dict[str, Any]:
    accelerator = make_accelerator("no", cpu=True)
    here: dict[str, int] = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=CLASSES).double()

    def loader(shown: MemoryPictures, size: int = 32) -> EvalLoader:
        return EvalLoader(shown, plain(CIFAR10), batch_size=size, dtype=torch.float64, **here)

    def training(**share: int) -> Loader:
        recipe = cifar_train(CIFAR10, 8, 1)
        return Loader(pictures("train", 210), recipe, global_batch=50, seed=3, dtype=torch.float64, **share)

    train, test = loader(pictures("train", 210)), loader(pictures("test", 75))
    bank, queries = extract(net, train, accelerator), extract(net, test, accelerator)
    apart = copy.deepcopy(net)  # as batch norm leaves it where it is not synchronised
    mean = apart.get_buffer("bn1.running_mean")
    mean += 0.5 * here["rank"]
    features, scores = extract(apart, test, accelerator), classify(apart, test, accelerator)
    assert mean.eq(0.5 * here["rank"]).all()
    few = extract(net, loader(pictures("test", 5)), accelerator)  # one batch: a second process has none
    head = make_head(64, CLASSES, 0, dtype=torch.float64)
    train_head_(head, bank, OPTIONS, accelerator)
    probed: Any = copy.deepcopy(net)
    probed.fc = make_head(64, CLASSES, 0, dtype=torch.float64)
    objective = linear_probe(probed, lambda student: OPTIONS.optimizer_of(probed.fc))
    fit(
        [Stage(objective, OPTIONS.epochs, {"main": OPTIONS.rate()})],
        training(**here),
        Run(accelerator=accelerator, seed=3),
    )
    clock, swept = Clock(0, 0, 1, 7, 7, 0), copy.deepcopy(net)
    variants = [Variant("float", lambda: None), Variant("coarse", rounded(swept))]
    found = {
        "bank": tuple(bank),
        "queries": tuple(queries),
        "few": tuple(few),
        "apart": tuple(features),
        "scores": (scores.top1, scores.top5),
        "knn": knn(bank, queries, accelerator, k=10),
        "collapse": dict(collapse_probe(lambda objective: net, test, accelerator)(clock, Objective())),
        "head": head.weight.detach(),
        "fitted": probed.fc.weight.detach(),
        "sweep": sweep(
            swept, variants, train, test, accelerator, SweepOptions(probe=OPTIONS, k=10, retrain=True),
            reference=variants[0], bn_batches=lambda: training().epoch(0),
        ),
        "stopped": {
            "extract": stops(accelerator, lambda: extract(net, train, accelerator)),
            "knn": stops(accelerator, lambda: knn(bank, queries, accelerator, k=10)),
            "train_head_": stops(accelerator, lambda: train_head_(head, bank, OPTIONS, accelerator)),
        },
    }  # fmt: skip
    finish(accelerator)
    return found


def child(folder: Path, rank: int, world: int) -> int:
    torch.set_num_threads(1)
    try:
        torch.save(work(), folder / f"{world}-{rank}.pt")
    except BaseException:
        (folder / f"{world}-{rank}.txt").write_text(traceback.format_exc())
        return 1
    return 0


def main() -> int:
    folder = Path(sys.argv[1])
    pids = [pid for world in (1, 2) for pid in fork_ranks(world, partial(child, folder, world=world))]
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


if __name__ == "__main__":
    os._exit(main())  # taking all these modules apart takes 2 s
