"""What the commands share: devices, the data and how it is prepared, evaluation, calibration, the folder."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from bsq.checkpoint import header
from bsq.layers import BitConv2d, BitLinear
from bsq.options import NetOptions
from lowbit.data.geometry import PaddedCrop
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Recipe, cifar_train, dataset_channels, from_timm, plain
from lowbit.errors import Stopped
from lowbit.evaluate.classify import Scores, classify
from lowbit.models.surgery import of_kind
from lowbit.options import RunOptions
from lowbit.quant.activations import QuantActivation
from lowbit.quant.calibrate import calibrate_
from lowbit.quant.layers import quantizers
from lowbit.train import session
from lowbit.train.folder import RunFolder
from lowbit.train.process import stop_agreed

CALIBRATION_BATCHES = 10
TRIAL_BATCHES = 2  # timed by a dry run

# Of training, by dataset. A mirrored digit is another digit. An image folder is prepared as timm prepares pictures for
# the net.
TRAIN_RECIPES = {
    "cifar10": cifar_train(dataset_channels("cifar10")),
    "cifar100": cifar_train(dataset_channels("cifar100")),
    "tiny-imagenet": cifar_train(dataset_channels("tiny-imagenet"), 64, 8),
    "digits": Recipe(dataset_channels("digits"), PaddedCrop(8, 1, flip=0.0)),
}
RECIPES = {name: (train, plain(train.channels)) for name, train in TRAIN_RECIPES.items()}  # (training, evaluation)

log = logging.getLogger(__name__)


class Session(session.Session):
    """A BSQ command's devices and data (`lowbit.train.session`).

    Attributes:
        test: the evaluated pictures, after `open_data`.
    """

    test: Pictures

    def __init__(self, options: RunOptions, net: NetOptions, *inputs: Path | None) -> None:
        dtype = torch.float64 if net.float64 else torch.float32
        super().__init__("bsq", options, net.dataset, (net.model, *inputs), dtype)
        self.net = net
        self._seen: tuple[str, Scores] | None = None

    @property
    def classes(self) -> int:
        """Number of classes of the dataset."""
        return len(self.test.classes)

    def open_data(self) -> None:
        """Read the evaluated set; with `--download` both sets are fetched first.

        Raises:
            InputError: the dataset cannot be read, or a limit is larger than it.
        """
        self.download()
        self.test = self.pictures("test", self.options.limit_eval)

    def recipes(self, model: nn.Module, pictures: Mapping[str, Any] | None) -> tuple[Recipe, Recipe]:
        """How pictures are prepared for training and for evaluation; `pictures`: timm's data configuration or None."""
        if pictures is None and self.net.dataset in RECIPES:
            return RECIPES[self.net.dataset]
        return from_timm(pictures or resolve_model_data_config(model))

    def head(self, model: nn.Module, pictures: Mapping[str, Any] | None, recipe: Recipe) -> dict[str, Any]:
        """The head of a checkpoint of this command's net (`bsq.checkpoint`); `recipe`: the evaluation's."""
        shown = recipe.geometry.size(*(self.test.size if isinstance(self.test, MemoryPictures) else (0, 0)))
        facts = {"arch": self.net.arch, "classes": self.classes, "dataset": self.net.dataset, "pictures": pictures}
        return header(model, **facts, input_size=[3, *shown])

    def evaluate(self, model: nn.Module, pictures: Pictures, recipe: Recipe) -> Scores:
        """Evaluate on any set of pictures."""
        loader = EvalLoader(pictures, recipe, batch_size=self.net.test_batch, **self.loader_options())
        return classify(model, loader, self.accelerator)

    def scores(self, model: nn.Module, recipe: Recipe) -> Scores:
        """Evaluate on the test set; a net that computes with the very weights of the last call keeps its figures.

        The authors' programs evaluate the same weights two or three times in a row (before and after a change of form
        that changes nothing); the record shows them all, and one evaluation is enough for it.
        """
        key = fingerprint(self.place(model))
        if self._seen is None or self._seen[0] != key:
            self._seen = (key, self.evaluate(model, self.test, recipe))
            log.info("evaluated %d pictures in %.1f s", self._seen[1].pictures, self._seen[1].seconds)
        return self._seen[1]

    def open_calibration(self, model: nn.Module) -> None:
        """Read the training pictures if `model` has ranges to set, before the folder records which were chosen."""
        if any(q.has_range() for q in quantizers(model).values()):
            self.pictures("train", self.options.limit_train)

    def calibrate(self, model: nn.Module, recipe: Recipe, batch: int) -> None:
        """Set running ranges on training pictures as evaluation prepares them: the first batches of a seeded order.

        Raises:
            Stopped: a stop signal came.
        """
        if not any(q.has_range() for q in quantizers(model).values()):
            return
        train, options = self.pictures("train", self.options.limit_train), self.loader_options()
        size = min(batch, len(train))
        loader = Loader(train, recipe, global_batch=size, seed=self.options.seed, drop_last=True, **options)

        def views() -> Iterator[Tensor]:
            for part in islice(loader.epoch(0), CALIBRATION_BATCHES):
                if stop_agreed(self.accelerator):
                    raise Stopped("calibration was interrupted")
                yield part.views[0].to(self.dtype)

        calibrate_(self.place(model), views())

    def planned(self, model: nn.Module, recipe: Recipe, evaluations: int = 1) -> bool:
        """With `--dry-run` print the plan of an evaluating command, two batches timed; False without it."""
        if not self.options.dry_run:
            return False
        some = torch.arange(min(len(self.test), TRIAL_BATCHES * self.net.test_batch))
        trial = self.evaluate(self.place(model), self.test.subset(some), recipe)
        seconds = evaluations * trial.seconds * len(self.test) / trial.pictures
        self.say_plan(model, {"pictures": len(self.test), "evaluations": evaluations, "estimated seconds": seconds})
        return True

    def say_plan(self, model: nn.Module, facts: Mapping[str, float]) -> None:
        """The lines of a dry run; nothing was written."""
        weights = sum(p.numel() for p in model.parameters())
        lines = {"net": self.net.arch, "parameters": weights, "dataset": self.net.dataset, "classes": self.classes}
        self.say_facts({**lines, **facts})

    def batch_sizes(self, train_batch: int | None = None) -> dict[str, int]:
        """`global_batch` and `batch_per_process`; evaluation gives whole batches to processes."""
        world, batch = self.accelerator.num_processes, train_batch or self.net.test_batch
        return {"global_batch": batch, "batch_per_process": batch if train_batch is None else -(-batch // world)}

    def folder(self, command: str, *options: Any, **facts: Any) -> AbstractContextManager[RunFolder | None]:
        """The run's folder (`open_folder`); `options`: dataclasses beside those of the session."""
        groups = {type(group).__name__.removesuffix("Options").lower(): asdict(group) for group in options}
        return self.open_folder(command, {**asdict(self.net), **groups}, facts)


def figures(scores: Scores) -> dict[str, Any]:
    """An evaluation as entries of `result.json`."""
    speed = scores.pictures / max(scores.seconds, 1e-9)
    return {**scores._asdict(), "images_per_second": speed}


def fingerprint(model: nn.Module) -> str:
    """A hash of what a net computes with: its plain weights and its activation quantizers."""
    digest = hashlib.blake2b(repr([(name, q.config) for name, q in of_kind(model, QuantActivation).items()]).encode())
    for prefix, module in model.named_modules():
        own = module.to_plain() if isinstance(module, BitConv2d | BitLinear) else module
        for name, value in (*own.named_parameters(prefix, False), *own.named_buffers(prefix, False)):
            digest.update(f"{name} {value.dtype}".encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
