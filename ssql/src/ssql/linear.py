"""`ssql linear` and `ssql default`: a probe on a frozen net (TRAIN.LINEAR_EVAL), or training of the whole net.

The authors' protocols: the net is read from MODEL.PRETRAINED and quantized at QUANT.W.BIT and QUANT.A.BIT (0: float),
its ranges are found once, and only then the classifier, which is float, is trained on what the quantized net gives; the
net stays in evaluation mode. Without LINEAR_EVAL all of it is trained; at bits that is quantization-aware training, in
which the ranges of weights follow the weights while those of activations stay. `linear` evaluates after every 20th
epoch and the last; `default`, their older command for the same, after each, and keeps the best.

Deviations from the authors' program: ranges are found on fixed pictures as evaluation shows them, and those of weights
are not frozen in training; 0/0 bits are float (`QUANT.FP=authors`: the stem at 8/8); files are told by their content;
a probe without MODEL.PRETRAINED is refused; probes of a quantized net come with a second figure, for which batch norm's
statistics are estimated anew at the bits; features are taken once where every epoch shows the same pictures.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.data.loader import Loader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.process import on_main
from lowbit.train.protocol import Stage
from lowbit.train.session import Session
from lowbit.train.supervised import Supervised
from ssql import load
from ssql.cached import FromFeatures
from ssql.classifier import is_quantized, optimizer, rates
from ssql.config import Config
from ssql.evaluation import calibrate
from ssql.judged import dataset_of
from ssql.norm import check_norm, norm_batches
from ssql.plan import BatchPlan, batch_plan, check_named, check_start, refuse, say_plan, shared
from ssql.scores import Judge, Watch, accuracy_line
from ssql.start import CONTENT, classes_of, open_net
from ssql.transforms import is_random, recipes
from ssql.unused_keys import Command
from ssql.views import side_of

VALIDATE_EVERY = 20  # epochs, the authors'
EVAL_BATCH = 256  # pictures, the authors' largest


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
    def norm_anew(self) -> bool:
        """Whether a second figure comes with batch norm estimated anew: of a probe at bits."""
        return self.probing and is_quantized(self.config.QUANT)

    @property
    def cached(self) -> bool:
        """Whether features are taken once, since every epoch shows the same pictures to the same net."""
        return self.probing and not is_random(self.views)

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

    def stage(self) -> Stage:
        """Cross-entropy; a frozen net stays in evaluation mode."""
        student = FromFeatures(self.net) if self.probing else self.net
        objective = Supervised(student, partial(optimizer, self.config))
        objective.frozen = ("student.net",) if self.probing else ()
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
    side, classes = side_of(config, pictures), classes_of(config, pictures)
    views, shown = recipes(config, pictures, side)
    size = (3, side, side)
    net, weights = open_net(session, config, size, classes)
    if how.cache_features:
        views = shown
    return Task(
        session=session, config=config, how=how, plan=plan, train=pictures, held=held, test=test, views=views,
        shown=shown, size=size, classes=classes, net=net, weights=weights,
    )  # fmt: skip


def train(task: Task) -> Result | None:
    """Train and judge. None after a dry run."""
    session, config, stage, run = task.session, task.config, task.stage(), task.run()
    common = {"global_batch": task.plan.total, "seed": session.options.seed, **session.loader_options()}
    loader = Loader(task.train, task.views, **common)
    check_start(stage, loader, run, batch_norm=not task.probing)
    if task.norm_anew:
        check_norm(task.net, config.QUANT.CALIBRATION, task.train)
    if session.options.dry_run:
        say_plan(session, config, task.plan, stage, loader, run, task.facts, passes=1 if task.cached else None)
        return None
    if is_quantized(config.QUANT) and run.resume is None:
        calibrate(task.net, config.QUANT.CALIBRATION, task.train, task.shown, session)
    judge = Judge(session, task.net, task.shown, min(EVAL_BATCH, 2 * config.TRAIN.BATCH_SIZE))
    judged = {"test": task.test} if task.held is None else {"test": task.test, "val": task.held}
    sets = {name: judge.batches(pictures, task.cached) for name, pictures in judged.items()}
    seen = judge.pictures(task.train, task.views)
    trained = judge.features(seen, task.plan.total) if task.cached else loader
    facts = {**task.plan.facts, **task.facts}
    described = {**dataclasses.asdict(task.how), "config": run.header["config"]}
    with session.open_folder(task.how.command, described, facts) as folder:
        assert folder is not None  # --output has a default
        task.plan.say_remark(session)
        watch = Watch(session, folder, sets, VALIDATE_EVERY if task.how.command == "linear" else 1)
        result = fit([stage], trained, dataclasses.replace(run, folder=folder, probes=(watch,)))
        _finish(task, judge, folder, result, facts)
    return result


def _finish(task: Task, judge: Judge, folder: RunFolder, result: Result, facts: dict[str, Any]) -> None:
    """Results of a run that is over, or that `--max-steps` ended."""
    values: dict[str, Any] = {**result.eval, "train_loss": result.train.get("loss"), "steps": result.done}
    if result.best is not None:
        values["best"] = result.best
    if result.finished and task.norm_anew:
        batches = norm_batches(task.config.QUANT.CALIBRATION, task.train, task.views, task.session)
        anew = judge.with_norm_anew(batches, task.test)
        task.session.say(f"{accuracy_line(anew)} with batch norm estimated anew")
        values |= {"top1_bn": anew.top1, "top5_bn": anew.top5, "loss_bn": anew.loss}
    speed = {"seconds": result.seconds, "images_per_second": result.images_per_second, "finished": result.finished}
    task.session.write_result(folder, {**values, **speed, **facts, "pictures": len(task.train)})
    if result.finished and not task.probing:
        path = folder.path / "backbone.safetensors"
        on_main(task.session.accelerator, partial(save_backbone, task.net, path, task.config.MODEL.ARCH))
