"""What the commands share: devices, the data and how it is prepared, evaluation, calibration, the folder."""

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from bsq.layers import BitConv2d, BitLinear
from bsq.load import header
from bsq.options import NetOptions
from lowbit.data.datasets import load_dataset
from lowbit.data.geometry import PaddedCrop
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import MemoryPictures, Pictures, balanced_subset
from lowbit.data.recipe import CIFAR10, DIGITS, IMAGENET, Recipe, cifar_train, from_timm, plain
from lowbit.errors import Stopped
from lowbit.evaluate.classify import Scores, classify
from lowbit.options import RunOptions
from lowbit.quant.activation import calibrate_, quantizers
from lowbit.train.folder import RunFolder
from lowbit.train.process import finish, make_accelerator, on_main, start_trackers, stop_agreed

CALIBRATION_BATCHES = 10
TRIAL_BATCHES = 2  # timed by a dry run

# (training, evaluation) by dataset; the authors normalise CIFAR-100 as CIFAR-10. An image folder is prepared as timm
# prepares pictures for the net. A mirrored digit is another digit.
RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "cifar10": (cifar_train(CIFAR10), plain(CIFAR10)),
    "cifar100": (cifar_train(CIFAR10), plain(CIFAR10)),
    "tiny-imagenet": (cifar_train(IMAGENET, 64, 8), plain(IMAGENET)),
    "digits": (Recipe(DIGITS, PaddedCrop(8, 1, flip=0.0)), plain(DIGITS)),
}

log = logging.getLogger(__name__)


class Session:
    """One command's devices and data; a `with` block, at whose end all processes wait for each other.

    Attributes:
        accelerator: devices and processes. dtype: of the weights.
        test: the evaluated pictures, after `open_data`. chosen: positions kept by a limit, by set.

    Raises:
        InputError: the folder holds a run; fp16 on the CPU; an unknown tracker.
    """

    test: Pictures

    def __init__(self, options: RunOptions, net: NetOptions, *inputs: Path | None) -> None:
        self.options, self.net = options, net
        self.dtype = torch.float64 if net.float64 else torch.float32
        self.accelerator = make_accelerator(options.mixed_precision, options.trackers, options.output)
        if options.output is not None:
            again = {"resume": options.resume is not None, "overwrite": options.overwrite}
            check = partial(RunFolder.check, options.output, **again, inputs=(net.model, *inputs))
            on_main(self.accelerator, check)
        self.chosen: dict[str, list[int]] = {}
        self._sets: dict[str, Pictures] = {}
        self._seen: tuple[str, Scores] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, Stopped):
            finish(self.accelerator)

    @property
    def classes(self) -> int:
        """Number of classes of the dataset."""
        return len(self.test.classes)

    def open_data(self) -> None:
        """Read the evaluated set; with `--download` both sets are fetched first.

        Raises:
            InputError: the dataset cannot be read, or a limit is larger than it.
        """
        if self.options.download and not self.options.dry_run:
            on_main(self.accelerator, self._download)
        self.test = self.pictures("test", self.options.limit_eval)

    def _download(self) -> None:
        for split in ("train", "test"):
            load_dataset(self.net.dataset, self.options.data, split, download=True)

    def pictures(self, split: Literal["train", "test"], limit: int | None) -> Pictures:
        """One set, class-balanced and cut to `limit` pictures by a fixed seed; read once."""
        if split not in self._sets:
            self._sets[split] = self._read(split, limit)
        return self._sets[split]

    def _read(self, split: Literal["train", "test"], limit: int | None) -> Pictures:
        found = load_dataset(self.net.dataset, self.options.data, split, max_corrupt=self.options.max_corrupt)
        if limit is None:
            return found
        index = balanced_subset(found.labels, limit)
        self.chosen[split] = index.tolist()
        return found.subset(index)

    def recipes(self, model: nn.Module, pictures: Mapping[str, Any] | None) -> tuple[Recipe, Recipe]:
        """How pictures are prepared for training and for evaluation; `pictures`: timm's data configuration or None."""
        if pictures is None and self.net.dataset in RECIPES:
            return RECIPES[self.net.dataset]
        return from_timm(pictures or resolve_model_data_config(model))

    def head(self, model: nn.Module, pictures: Mapping[str, Any] | None, recipe: Recipe) -> dict[str, Any]:
        """The head of a checkpoint of this command's net (`bsq.load`); `recipe`: the evaluation's."""
        shown = recipe.geometry.size(*(self.test.size if isinstance(self.test, MemoryPictures) else (0, 0)))
        facts = {"arch": self.net.arch, "classes": self.classes, "dataset": self.net.dataset, "pictures": pictures}
        return header(model, **facts, input_size=[3, *shown])

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the precision and memory format of the command."""
        model = model.to(self.accelerator.device, self.dtype)
        if self.options.channels_last:
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.dim() == 4:  # planes have 5 dimensions, which torch's own conversion refuses
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return model

    def loader_options(self) -> dict[str, Any]:
        """What all loaders of this command have in common; pictures are prepared in single precision."""
        return {
            "rank": self.accelerator.process_index,
            "world": self.accelerator.num_processes,
            "device": self.accelerator.device,
            "workers": self.options.workers,
            "max_corrupt": self.options.max_corrupt,
            "channels_last": self.options.channels_last,
        }

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
        if any(q.largest is not None for q in quantizers(model).values()):
            self.pictures("train", self.options.limit_train)

    def calibrate(self, model: nn.Module, recipe: Recipe, batch: int) -> None:
        """Set running ranges on training pictures as evaluation prepares them: the first batches of a seeded order.

        Raises:
            Stopped: a stop signal came.
        """
        if not any(q.largest is not None for q in quantizers(model).values()):
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
        for name, value in {**lines, **facts, "output": self.options.output}.items():
            self.say(f"{name}: {value:,.0f}" if isinstance(value, float | int) else f"{name}: {value}")

    def say(self, *lines: str) -> None:
        """Lines of the record, on stdout, once for all processes."""
        if self.accelerator.is_main_process:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()

    def batch_sizes(self, train_batch: int | None = None) -> dict[str, int]:
        """`global_batch` and `batch_per_process`; evaluation gives whole batches to processes."""
        world, batch = self.accelerator.num_processes, train_batch or self.net.test_batch
        return {"global_batch": batch, "batch_per_process": batch if train_batch is None else -(-batch // world)}

    @contextmanager
    def folder(self, command: str, *options: Any, **facts: Any) -> Iterator[RunFolder | None]:
        """The run's folder, locked and described by every resolved option; None without `--output`. Says the facts.

        Args:
            command: its name.
            options: dataclasses of options beside those of the session.
            facts: more entries of `config.json`.
        """
        where, said = self.options.output, ", ".join(f"{name} {value}" for name, value in facts.items())
        if where is None:
            log.info(said)
            yield None
            return
        values = {"command": command, **asdict(self.options), **asdict(self.net)}
        for group in options:
            values[type(group).__name__.removesuffix("Options").lower()] = asdict(group)
        values |= {"processes": self.accelerator.num_processes, "chosen": self.chosen, **facts}
        opened: list[RunFolder] = []

        def open_it() -> None:
            resume, overwrite = self.options.resume is not None, self.options.overwrite
            opened.append(RunFolder.open(where, values, resume=resume, overwrite=overwrite))

        on_main(self.accelerator, open_it)
        with opened[0] if opened else RunFolder(where, locked=False) as folder:
            if self.options.trackers:
                start_trackers(self.accelerator, "bsq", values)
            log.info(said)
            yield folder

    def write_result(self, folder: RunFolder | None, values: Mapping[str, Any]) -> None:
        """Write `result.json`, by one process."""
        if folder is not None and self.accelerator.is_main_process:
            folder.write_result({**values, "seed": self.options.seed})


def figures(scores: Scores) -> dict[str, Any]:
    """An evaluation as entries of `result.json`."""
    speed = scores.pictures / max(scores.seconds, 1e-9)
    return {**scores._asdict(), "images_per_second": speed}


def fingerprint(model: nn.Module) -> str:
    """A hash of what a net computes with: its plain weights and its activation quantizers."""
    digest = hashlib.blake2b(repr([(name, q.config) for name, q in quantizers(model).items()]).encode())
    for prefix, module in model.named_modules():
        own = module.to_plain() if isinstance(module, BitConv2d | BitLinear) else module
        for name, value in (*own.named_parameters(prefix, False), *own.named_buffers(prefix, False)):
            digest.update(f"{name} {value.dtype}".encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
