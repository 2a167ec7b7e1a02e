"""`sqakd train_fp`, `train_quant` and `main`: a float net, a low-bit one with labels (QAT), or from a teacher (SQAKD).

The student starts from float weights, its quantizers from the first batch, which is the same on all processes. After
each epoch it is evaluated as it is, and with batch norm re-estimated on training pictures, shown as in training
(`top1_bn`): running statistics lag behind weights that cross rounding thresholds.

Deviations from the authors' programs: `best` is chosen on held-out pictures with `--val-split`; batch-norm statistics
do not depend on the order of processes; an unset or missing file of weights is an error, not a random start.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lowbit.checkpoint.write import Names
from lowbit.data.folders import LAYOUT
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe, flip_share, from_timm
from lowbit.errors import InputError
from lowbit.evaluate.linear import EVAL_BATCH, evaluate_student, figures_of, looked_at
from lowbit.export.backbone import save_backbone
from lowbit.metrics import number, read_metrics
from lowbit.models.create import check_arch, create_model, create_pretrained, picture_settings
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.models.surgery import run_blank
from lowbit.options import RunOptions
from lowbit.quant.initialize import initialize_
from lowbit.train.batch import of_job
from lowbit.train.folder import RunFolder
from lowbit.train.job import Job
from lowbit.train.run import Result
from lowbit.train.session import Session
from sqakd import load
from sqakd.commands import FILES
from sqakd.kd.build import make_stages
from sqakd.options import NETS, TINY, TrainOptions
from sqakd.pictures import dataset_of, recipes, shown_side
from sqakd.quantize import Quantizers, quantize_, quantizers_of

LAST_EPOCHS = 5
NAMES = {
    TINY: Names("checkpoints/checkpoint.pth.tar", "checkpoints/model_best.pth.tar"),
    "": Names("checkpoint/last_checkpoint.pth", "checkpoint/best_checkpoint.pth"),
}


class Task(NamedTuple):
    """A student on the device before its first step, its quantizers set; its pictures and its teacher.

    Attributes:
        held: of `--val-split`. test: None where pictures have no classes.
        views, shown: how training and evaluation show them.
    """

    model: nn.Module
    arch: str
    quantizers: Quantizers
    train: Pictures
    held: Pictures | None
    test: Pictures | None
    views: Recipe
    shown: Recipe
    side: int
    classes: int
    teacher: nn.Module | None

    def seen(self, session: Session, own: TrainOptions) -> dict[str, Any]:
        """What figures are of; {} where pictures have no classes."""
        sets, recipes = (self.train, self.test, self.held), (self.views, self.shown)
        return looked_at(session, self.model, sets, recipes, own.calibration)


def train(options: RunOptions, own: TrainOptions) -> Result | None:
    """Check, then train, with figures after each epoch, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    check_arch(own.arch)
    if options.pretrained and own.start is not None:
        raise InputError("--pretrained and --load_pretrain both give the weights; give one of them")
    if options.compile and own.hessian_every:
        raise InputError("--compile has no second derivatives: give --use_hessian False with it")
    with open_session(options, own) as session:
        task = prepare(session, own)
        world, parts = session.accelerator.num_processes, options.accumulate
        batch = of_job(own.batch_size, world, accumulate=parts, option="--batch_size")
        stages = make_stages(own, task.model, task.teacher, task.train.labels, task.side)
        for stage in stages:
            session.place(stage.objective, sync_batchnorm=own.sync_bn)
        labels = any(stage.objective.needs_labels for stage in stages)
        loader = session.loader(task.train, task.views, batch, labels=labels)
        cfg = pretrained_cfg(task.shown, (3, task.side, task.side), task.train.classes)
        facts = {"arch": task.arch, "classes": task.classes, "quantized": len(task.quantizers)}
        best = None if task.test is None else "top1" if task.held is None else "val_top1"
        job = Job(
            session, own.command, stages, loader, batch, best=best,
            header=load.header(task.arch, task.classes, task.quantizers, cfg), shared=own.compared, facts=facts,
            described=own.described, prefixes={"student.": "", load.METHOD: load.METHOD}, log_every=own.print_freq,
        )  # fmt: skip
        job.check()
        seen = task.seen(session, own)
        if job.planned({"dataset": session.dataset, "labels": "read" if labels else "not read"}):
            return None
        with job.open() as folder:
            result = job.fit(
                folder,
                []
                if not seen
                else [evaluate_student(session, due=lambda clock: clock.stage + 1 == len(stages), **seen)],
            )
            job.write_result(folder, result, _last_epochs(session, folder, result))
            if not task.quantizers:
                save = partial(save_backbone, task.model, arch=task.arch, cfg=cfg)
                job.export(folder, result, lambda path: save(path / "backbone.safetensors"))
    return result


def _last_epochs(session: Session, folder: RunFolder | None, result: Result) -> dict[str, float]:
    """At the end of a run the best top-1, the last, and the mean of the last five epochs, which is returned."""
    lines = [] if folder is None or not result.finished else read_metrics(folder.metrics)
    seen = (number(line.get("top1")) for line in lines if line.get("event") == "eval")
    found = [value for value in seen if value is not None][-LAST_EPOCHS:]
    if not found or result.best is None:
        return {}
    mean = sum(found) / len(found)
    best, last = result.best["top1"], found[-1]
    session.say(f" * Acc@1 best {best:.3f} last {last:.3f} mean of the last {len(found)} epochs {mean:.3f}")
    return {"top1_last5": mean}


def evaluate(options: RunOptions, own: TrainOptions, stated: Collection[str] = ()) -> dict[str, float] | None:
    """Of `--resume FILE`, or of what a training would start from, quantized before it. None after a dry run.

    Args:
        options: of any command.
        own: of the training; a file's net has its own quantizers, but for the authors' nets, which do not say them.
        stated: fields of `own` that the file has to agree with: `quantizer`, `wbits`, `abits`.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    path, options = options.resume, replace(options, resume=None)
    if path == "auto":
        raise InputError("--evaluate --resume auto: name the checkpoint, --resume FILE")
    with open_session(options, own, None if path is None else Path(path)) as session:
        task = prepare(session, own, path)
        for name in stated if path is not None else ():
            _check_stated(name, getattr(own, name), task.quantizers, str(path))
        facts = {"arch": task.arch, "classes": task.classes, "quantized": len(task.quantizers)}
        if options.dry_run:
            session.say_facts({**facts, "dataset": session.dataset, "pictures": len(task.test or ())})
            return None
        with session.open_folder(own.command, own.described, facts) as folder:
            values = figures_of(session, task.model, **task.seen(session, own))
            session.write_result(folder, {**values, **facts, "global_batch": EVAL_BATCH})
    return values


def _check_stated(name: str, value: str | int, quantizers: Quantizers, path: str) -> None:
    """Refuse to evaluate another net than the command line describes; first and last layer may have other bits.

    EWGS and the straight-through estimator compute the same net.
    """
    found: set[Any] = set()
    for weight, given in quantizers.values():
        found.add({"quantizer": weight.quantizer, "wbits": weight.bits, "abits": given.bits}[name])
    same = {"ewgs", "ste"}
    if value not in (found | same if found & same else found or {"", 0}):
        held = ", ".join(map(str, sorted(found))) or "no quantizers"
        raise InputError(f"--{name} {value}: the net of {path} has {held}: leave out --{name}, or name another file")


def open_session(options: RunOptions, own: TrainOptions, *read: Path | None) -> Session:
    """Devices and data; `read`: files that the command reads beside those of its options."""
    resumed = Path(options.resume) if options.resume not in (None, "auto") else None
    inputs = [own.start, own.teacher_path, resumed, *read]
    names = NAMES.get(own.command, NAMES[""])
    return Session("sqakd", options, dataset_of(own, options.data), inputs, files=FILES, names=names)


def prepare(session: Session, own: TrainOptions, path: str | None = None) -> Task:
    """Data, teacher and student; the latter out of a file, or as it starts.

    Raises:
        InputError: weights of another net, pictures without classes that are needed, patterns that fit no layer.
    """
    options, reader = session.options, "--evaluate reads labels" if own.evaluate else own.label_reader
    if not session.pictures("train", labels=False).classes and reader:
        raise InputError(f"{reader}, and {options.data} is not {LAYOUT}: sort its pictures so, or give another --data")
    train, held = session.train_and_held()
    test = session.pictures("test") if train.classes else None
    side, classes = shown_side(own, train), len(train.classes) or None
    teacher = None
    if own.distill and own.teacher_path and not own.evaluate:
        found = load.open_net(own.teacher_path, own.teacher_arch or own.arch, classes)
        if own.teacher_arch not in (None, found.arch):
            raise InputError(f"--teacher_arch {own.teacher_arch}: {own.teacher_path} holds a {found.arch}: name that")
        teacher = found.model
        run_blank(teacher, (3, side, side), setting="--image-size", values=False)
        classes = _classes(teacher)
    quantizers: Quantizers
    if path is not None:
        model, arch, quantizers, _ = load.open_net(path, own.arch, classes, own)
    else:
        model, arch, quantizers = _start(own, options.pretrained, classes or 0), own.arch, {}
    run_blank(model, (3, side, side), setting="--image-size", values=False)  # slow under quantizers
    if path is None:
        quantizers = quantizers_of(own, model)
        quantize_(model, quantizers)
    views, shown = recipes(own, session.dataset, train, side)
    if options.pretrained:
        cfg = {**picture_settings(model), "input_size": (3, side, side)}
        views, shown = from_timm(cfg, flip_share(session.dataset))
    session.place(model)
    if quantizers and path is None and session.resumed() is None:
        world = session.accelerator.num_processes
        batches = session.loader(train, views, of_job(own.batch_size, world), labels=False).epoch(0, whole=True)
        initialize_(model.train(), [next(batches).views[0].to(session.accelerator.device)])
    return Task(model, arch, quantizers, train, held, test, views, shown, side, classes or _classes(model), teacher)


def _classes(model: nn.Module) -> int:
    return int(model.num_classes)  # type: ignore[arg-type]


def _start(own: TrainOptions, pretrained: bool, classes: int) -> nn.Module:
    """The float net: out of a file, timm's, or as the seed draws it."""
    if own.start is None:
        if pretrained:
            return create_pretrained(own.arch, classes)
        theirs = own.command == TINY and own.arch == NETS["tiny"]["resnet18_imagenet"]  # torchvision's draws
        return create_model(own.arch, zero_init_last=not theirs, num_classes=classes)
    found = load.open_net(own.start, own.arch, classes)
    if found.quantizers or found.arch != own.arch:
        what = "is quantized" if found.quantizers else f"is a {found.arch}"
        raise InputError(f"--pretrain_path {own.start}: it {what}: name float weights of a {own.arch}")
    return found.model
