"""`ssql linear` and `ssql default`: a probe on a frozen net (TRAIN.LINEAR_EVAL), or training of the whole net.

The authors' protocols: the net is read from MODEL.PRETRAINED and quantized at QUANT.W.BIT and QUANT.A.BIT (0: float),
its ranges are found once, and only then the classifier, which is float, is trained on what the quantized net gives; the
net stays in evaluation mode. Without LINEAR_EVAL all of it is trained; at bits that is quantization-aware training, in
which the ranges of weights follow the weights while those of activations stay. `linear` evaluates after every 20th
epoch and the last; `default`, their older command for the same, after each, and keeps the best.

Deviations from the authors' program: ranges are found on fixed pictures as evaluation shows them, and those of weights
are not frozen in training; 0/0 bits are float (`QUANT.FP=authors`: the stem at 8/8); files are told by their content;
a probe without MODEL.PRETRAINED is refused; probes of a quantized net come with a second figure, for which batch norm's
statistics are re-estimated at the bits; features are taken once where every epoch shows the same pictures.
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.cached import FeatureLoader, cached
from lowbit.evaluate.classify import Batches
from lowbit.evaluate.linear import (
    digest,
    evaluate_student,
    linear_probe,
    matching_classifier,
    option_of,
    reestimated_figures,
)
from lowbit.export.backbone import save_backbone
from lowbit.loading import load as load_net
from lowbit.models.heads import linear_classifier
from lowbit.models.surgery import run_blank
from lowbit.options import RunOptions
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.epochs import after_every, after_multiples, print_epoch_lines
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.process import on_main
from lowbit.train.protocol import Stage
from lowbit.train.session import Session
from lowbit.train.supervised import Supervised
from ssql import load
from ssql.classifier import classifier, is_quantized, optimizer, rates
from ssql.config import Config
from ssql.evaluation import calibrate, check_statistics, open_backbone, statistics_batches
from ssql.judged import dataset_of
from ssql.pictures import channels_of, transforms_of
from ssql.plan import BatchPlan, batch_plan, check_named, check_start, refuse, say_plan, shared
from ssql.unused_keys import Command

VALIDATE_EVERY = 20  # epochs, the authors'
EVAL_BATCH = 256  # pictures, the authors' largest
CONTENT = "content of MODEL.PRETRAINED"  # among the options of a run, which a resumed one has to share

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says beside the config and the shared options; see `ssql linear --help`."""

    config_name: str
    command: Command = "linear"
    keep_global_batch: bool = False
    cache_features: bool = False


def check(options: RunOptions, config: Config, how: Choices) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that the command does not have.
    """
    check_named(config)
    rate = config.TRAIN.LR_SCHEDULER.BASE_LR
    if not rate > 0:
        raise InputError(f"TRAIN.LR_SCHEDULER.BASE_LR={rate}: give a number above 0")
    refuse({"--pretrained": options.pretrained}, f"in {how.command}, which starts from MODEL.PRETRAINED=PATH")
    if how.command == "linear":
        refuse({"--val-split": options.val_split}, "in linear, which keeps no best")
    if not config.TRAIN.LINEAR_EVAL:
        refuse({"--cache-features": how.cache_features}, "where the whole net is trained (TRAIN.LINEAR_EVAL=False)")
    if config.TRAIN.WARMUP_FC and not config.MODEL.PRETRAINED and options.resume is None:
        raise InputError("TRAIN.WARMUP_FC: the classifier comes from a linear evaluation; give MODEL.PRETRAINED=PATH")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and on what.

    Attributes:
        session, config, how, plan: of the command.
        train, held, test: pictures; `held` of `--val-split`.
        views, shown: recipes of training and of evaluation.
        size: (C, H, W) of what the net sees. classes: of the dataset.
        net: the classifier, on the device. weights: the digest of what it started from.
    """

    session: Session
    config: Config
    how: Choices
    plan: BatchPlan
    train: Pictures
    held: Pictures | None
    test: Pictures
    views: Recipe
    shown: Recipe
    size: tuple[int, int, int]
    classes: int
    net: nn.Module
    weights: str | None

    @property
    def probing(self) -> bool:
        """Whether the net is frozen and the classifier alone is trained."""
        return self.config.TRAIN.LINEAR_EVAL

    @property
    def reestimated(self) -> bool:
        """Whether a second figure comes with batch norm re-estimated: of a probe at bits."""
        return self.probing and is_quantized(self.config.QUANT)

    @property
    def cached(self) -> bool:
        """Whether features are taken once, since every epoch shows the same pictures to the same net."""
        return self.probing and not self.views.is_random

    @property
    def facts(self) -> dict[str, Any]:
        """As `config.json`, `result.json` and a dry run say it."""
        return {
            "protocol": "probe" if self.probing else "training",
            "w_bits": self.config.QUANT.W.BIT,
            "a_bits": self.config.QUANT.A.BIT,
            "classes": self.classes,
            "features": "cached" if self.cached else "computed",
            "train_transform": "evaluation" if self.views == self.shown else "training",
        }

    def pictures(self, pictures: Pictures, recipe: Recipe) -> EvalLoader:
        """This process's evaluation batches of a set."""
        batch = min(EVAL_BATCH, 2 * self.config.TRAIN.BATCH_SIZE)
        return EvalLoader(pictures, recipe, batch_size=batch, **self.session.loader_options())

    def features(self, pictures: EvalLoader, batch: int, shuffle: bool = True) -> FeatureLoader:
        """What the net's last layer gets of a set, in batches of `batch` over all processes."""
        session = self.session
        seed = session.options.seed
        return cached(self.net, pictures, session.accelerator, global_batch=batch, seed=seed, shuffle=shuffle)

    def batches(self, pictures: Pictures) -> Batches:
        """What is classified: pictures, or features that were taken once."""
        loader = self.pictures(pictures, self.shown)
        return list(self.features(loader, loader.batch_size, shuffle=False).epoch(0)) if self.cached else loader

    def stage(self) -> Stage:
        """Cross-entropy; a frozen net stays in evaluation mode."""
        kind = linear_probe if self.probing else Supervised
        objective = kind(self.net, partial(optimizer, self.config))
        return Stage(objective, self.config.TRAIN.EPOCHS, rates(self.config))

    def run(self) -> Run:
        """Of the loop, without the folder."""
        session, config, options = self.session, self.config, self.session.options
        head = load.header(config, self.size, self.classes)
        chosen = {"cache_features": self.how.cache_features, "val_split": options.val_split, CONTENT: self.weights}
        best = "top1" if self.held is None else "val_top1"
        return Run(
            **session.run_options(),
            accumulate=self.plan.parts,
            log_every=config.TRAIN.PRINT_FREQ,
            options=shared(self.how.command, config, options) | chosen,
            header=head,
            prefixes={"student.net." if self.probing else "student.": ""},
            best=None if self.how.command == "linear" else best,
        )


def linear(options: RunOptions, config: Config, how: Choices) -> Result | None:
    """Check, then train, with evaluations on the way, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; what was trained is saved.
    """
    read = [Path(name) for name in (options.resume, config.MODEL.PRETRAINED) if name not in (None, "", "auto")]
    with Session("ssql", options, dataset_of(config), read) as session:
        check(options, config, how)
        plan = batch_plan(options, config, how.keep_global_batch, session)
        session.download()
        return train(open_task(session, config, how, plan))


def open_task(session: Session, config: Config, how: Choices, plan: BatchPlan) -> Task:
    """Read pictures and weights.

    Raises:
        InputError: they do not fit each other or the config.
    """
    pictures, held = session.train_and_held()
    test = session.pictures("test", session.options.limit_eval)
    side, classes = side_of(pictures, config.MODEL.side), classes_of(config, pictures)
    views, shown = transforms_of(config, pictures, side)
    size = (3, side, side)
    net, weights = open_net(session, config, size, classes)
    if how.cache_features:
        views = shown
    return Task(
        session=session, config=config, how=how, plan=plan, train=pictures, held=held, test=test, views=views,
        shown=shown, size=size, classes=classes, net=net, weights=weights,
    )  # fmt: skip


def classes_of(config: Config, pictures: Pictures) -> int:
    """The dataset's classes, which `MODEL.NUM_CLASSES` may state.

    Raises:
        InputError: it states another number.
    """
    stated, found = config.MODEL.NUM_CLASSES, len(pictures.classes)
    if stated not in (0, found):
        raise InputError(f"MODEL.NUM_CLASSES={stated}: {pictures.name} has {found} classes; give that, or 0")
    return found


def open_net(
    session: Session, config: Config, size: tuple[int, int, int], classes: int
) -> tuple[nn.Module, str | None]:
    """The classifier on the device, at its bits; its ranges are still to be found, or to be resumed.

    With it comes a digest of the tensors of MODEL.PRETRAINED, which a resumed run may leave out; None: there are none.

    Args:
        session: of the command.
        config: of the run.
        size: (C, H, W) of the pictures.
        classes: of the dataset.

    Raises:
        InputError: a file that does not fit, none where a probe needs one, a net without a linear classifier, or
            for pictures of another size.
    """
    net, weights, resumed = classifier(config, size, classes), None, session.resumed()
    if not is_quantized(config.QUANT):
        run_blank(net, size, setting="MODEL.INPUTSHAPE")  # wrapping is told by such a forward, too
    linear_classifier(net)
    if config.MODEL.PRETRAINED:
        given = _given(net, config, size, session.accelerator.is_main_process)
        weights = digest(given)
        if resumed is None:
            net.load_state_dict({**net.state_dict(), **given})
    elif resumed is not None:
        weights = option_of(resumed, CONTENT)
    elif config.TRAIN.LINEAR_EVAL:
        raise InputError("MODEL.PRETRAINED is empty: name the checkpoint to evaluate, as MODEL.PRETRAINED=PATH")
    if not config.TRAIN.LINEAR_EVAL and config.TRAIN.SYNC_BN and session.accelerator.num_processes > 1:
        sync_batchnorm_(net)
    return session.place(net), weights


def _given(net: nn.Module, config: Config, size: tuple[int, int, int], warn: bool) -> dict[str, Tensor]:
    """The tensors of MODEL.PRETRAINED by the net's own keys."""
    path = config.MODEL.PRETRAINED
    backbone = open_backbone(path, config.MODEL.ARCH, size)
    given: dict[str, Tensor] = dict(backbone.model.state_dict())
    seen, shown = backbone.normalization, channels_of(config)
    if warn and seen not in (None, shown):
        log.warning("%s was trained with mean and std %s, and is shown pictures of %s", path, seen, shown)
    if config.TRAIN.WARMUP_FC:
        given |= matching_classifier(net, load_net(path), f"TRAIN.WARMUP_FC: {path}")
    return given


def train(task: Task) -> Result | None:
    """Train and judge. None after a dry run."""
    session, config, stage, run = task.session, task.config, task.stage(), task.run()
    common = {"global_batch": task.plan.total, "seed": session.options.seed, **session.loader_options()}
    loader = Loader(task.train, task.views, **common)
    check_start(stage, loader, run, batch_norm=not task.probing)
    if task.reestimated:
        check_statistics(task.net, config.QUANT.CALIBRATION, task.train)
    if session.options.dry_run:
        say_plan(session, config, task.plan, stage, loader, run, task.facts, passes=1 if task.cached else None)
        return None
    if is_quantized(config.QUANT) and run.resume is None:
        calibrate(task.net, config.QUANT.CALIBRATION, task.train, task.shown, session)
    evaluated = {"test": task.test} if task.held is None else {"test": task.test, "val": task.held}
    sets = {name: task.batches(pictures) for name, pictures in evaluated.items()}
    trained = task.features(task.pictures(task.train, task.views), task.plan.total) if task.cached else loader
    facts = {**task.plan.facts, **task.facts}
    described = {**dataclasses.asdict(task.how), "config": run.header["config"]}
    with session.open_folder(task.how.command, described, facts) as folder:
        assert folder is not None  # --output has a default
        task.plan.say_remark(session)
        due = after_multiples(VALIDATE_EVERY, first=False) if task.how.command == "linear" else after_every(1)
        lines = print_epoch_lines(session, folder, {"Loss": "loss", "Acc@1": "top1"})
        probes = (lines, evaluate_student(session, sets["test"], sets.get("val"), due))
        result = fit([stage], trained, dataclasses.replace(run, folder=folder, probes=probes))
        _finish(task, folder, result, facts)
    return result


def _finish(task: Task, folder: RunFolder, result: Result, facts: dict[str, Any]) -> None:
    """Results of a run that is over, or that `--max-steps` ended."""
    values: dict[str, Any] = {**result.eval, "train_loss": result.train.get("loss"), "steps": result.done}
    if result.best is not None:
        values["best"] = result.best
    if result.finished and task.reestimated:
        batches = statistics_batches(task.config.QUANT.CALIBRATION, task.train, task.views, task.session)
        values |= reestimated_figures(task.session, task.net, batches, task.pictures(task.test, task.shown))
    speed = {"seconds": result.seconds, "images_per_second": result.images_per_second, "finished": result.finished}
    task.session.write_result(folder, {**values, **speed, **facts, "pictures": len(task.train)})
    if result.finished and not task.probing:
        path = folder.path / "backbone.safetensors"
        on_main(task.session.accelerator, partial(save_backbone, task.net, path, task.config.MODEL.ARCH))
