"""Float training, the start of conversion: SGD with momentum and steps, the recipe of the authors' float net."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD

from bsq import load, nets, record
from bsq.options import NetOptions, SgdOptions
from bsq.session import Session, figures
from lowbit.data.loader import Loader
from lowbit.data.pictures import Pictures, val_split
from lowbit.evaluate.classify import Scores
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.checkpoint import newest_good, read_checkpoint, replace_file
from lowbit.train.folder import RunFolder
from lowbit.train.log import read_metrics
from lowbit.train.loop import Result, Run, check_run, fit
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import milestones
from lowbit.train.supervised import Supervised

TRIAL_STEPS = 3  # timed by a dry run


def evaluate(options: RunOptions, net: NetOptions) -> Scores | None:
    """`bsq train --evaluate`: a float net as it is, with its own activations. None after a dry run."""
    with Session(options, net) as session:
        return _evaluate(session, options, net)


def _evaluate(session: Session, options: RunOptions, net: NetOptions) -> Scores | None:
    saved = nets.read_model(net, required=not options.pretrained)
    session.open_data()
    model = nets.create(session, saved)
    recipe = session.recipes(model, nets.pictures_of(model, session, saved))[1]
    if saved is not None:
        load.load_float_(model, saved, str(net.model))
    if session.planned(model, recipe):
        return None
    sizes = session.batch_sizes()
    with session.folder("train", **sizes) as folder:
        session.say(*record.parameters(model))
        scores = session.scores(model, recipe)
        session.say(record.accuracy(scores), record.test_line(scores))
        session.write_result(folder, {**figures(scores), **sizes})
    return scores


def train(options: RunOptions, net: NetOptions, sgd: SgdOptions) -> Result | None:
    """`bsq train`: from a seeded start, `--pretrained` or `--model`. None after a dry run."""
    with Session(options, net) as session:
        return _train(session, options, net, sgd)


def _train(session: Session, options: RunOptions, net: NetOptions, sgd: SgdOptions) -> Result | None:
    saved = nets.read_model(net)
    resume = _resumed(options)
    session.open_data()
    model = nets.create(session, saved)
    pictures = nets.pictures_of(model, session, saved)
    recipe, eval_recipe = session.recipes(model, pictures)
    if saved is not None:
        load.load_float_(model, saved, str(net.model))
    kept, held = _split(session)
    common = {**session.loader_options(), "dtype": session.dtype}
    loader = Loader(kept, recipe, global_batch=sgd.train_batch, seed=options.seed, **common)
    stage = _stage(session, model, sgd)
    run = Run(
        accelerator=session.accelerator,
        seed=options.seed,
        max_steps=options.max_steps,
        save_every=options.save_every,
        accumulate=options.accumulate,
        clip_grad=options.clip_grad,
        compile=options.compile,
        resume=resume,
        header=session.head(model, pictures, eval_recipe),
        prefixes={"student.": load.PREFIX},
        best="top1" if held is None else "val_top1",
    )
    check_run([stage], loader, run)
    if options.dry_run:
        _say_plan(session, stage, loader, run)
        return None
    sizes = session.batch_sizes(sgd.train_batch)
    with session.folder("train", sgd, **sizes) as folder:
        session.say(*record.parameters(model))
        probe = partial(_probe, session, folder, stage, eval_recipe, held)
        result = fit([stage], loader, dataclasses.replace(run, folder=folder, probes=(probe,)))
        _finish(session, folder, result, stage, {**sizes, "pictures": len(kept)})
    return result


def _resumed(options: RunOptions) -> Mapping[str, Any] | None:
    """The checkpoint that `--resume` names; None: a fresh start."""
    if options.resume is None:
        return None
    if options.resume != "auto":
        return read_checkpoint(options.resume)
    found = None if options.output is None else newest_good(options.output)
    return None if found is None else found[1]


def _split(session: Session) -> tuple[Pictures, Pictures | None]:
    """Training pictures, and those held out by `--val-split`."""
    pictures = session.pictures("train", session.options.limit_train)
    if session.options.val_split is None:
        return pictures, None
    kept, held = val_split(pictures.labels, session.options.val_split, session.options.seed)
    session.chosen["val"] = held.tolist()
    return pictures.subset(kept), pictures.subset(held)


def _stage(session: Session, model: nn.Module, sgd: SgdOptions) -> Stage:
    """The whole training as one stage; batch norm is that of the whole batch on several processes."""
    model = session.place(model)
    if session.accelerator.num_processes > 1:
        model = sync_batchnorm_(model)

    def optimizer(student: nn.Module) -> SGD:
        return SGD(student.parameters(), lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)

    return Stage(Supervised(model, optimizer), sgd.epochs, {"main": milestones(sgd.lr, sgd.schedule, sgd.gamma)})


def _probe(
    session: Session,
    folder: RunFolder | None,
    stage: Stage,
    recipe: Any,
    held: Pictures | None,
    clock: Clock,
    objective: Objective,
) -> Mapping[str, float]:
    """Evaluate after each epoch; the record's line, and the authors' `log.txt`, made anew from the metrics."""
    student = objective.get_submodule("student")
    scores = session.evaluate(student, session.test, recipe)
    values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
    if held is not None:
        values["val_top1"] = session.evaluate(student, held, recipe).top1
    rate = stage.lr["main"](clock._replace(step=0))
    session.say(f"Epoch: [{clock.epoch + 1} | {clock.epochs}] LR: {rate:f}", record.test_line(scores))
    if folder is not None and session.accelerator.is_main_process:
        lines = read_metrics(folder.metrics)
        now: dict[str, Any] = {"event": "eval", "epoch": clock.epoch, **values}
        replace_file(folder.path / "log.txt", record.log_text([*lines, now]).encode())
    return values


def _finish(session: Session, folder: RunFolder | None, result: Result, stage: Stage, facts: Mapping[str, Any]) -> None:
    """Results of a run that is over, or that `--max-steps` ended."""
    best = result.best or {}
    if best:
        session.say("Best acc:", f"{best[session_key(best)]:.2f}")
    values = {**result.eval, "train_loss": result.train.get("loss"), "best": best or None, "steps": result.done}
    speed = {"seconds": result.seconds, "images_per_second": result.images_per_second, "finished": result.finished}
    session.write_result(folder, {**values, **speed, **facts})
    if folder is not None and result.finished and session.accelerator.is_main_process:
        student = stage.objective.get_submodule("student")
        save_backbone(student, folder.path / "backbone.safetensors", str(session.net.arch))


def session_key(best: Mapping[str, Any]) -> str:
    """What the best epoch was chosen by."""
    return "val_top1" if "val_top1" in best else "top1"


def _say_plan(session: Session, stage: Stage, loader: Loader, run: Run) -> None:
    """Train a few steps for their time, and say what the whole would be."""
    trial = fit([stage], loader, dataclasses.replace(run, max_steps=TRIAL_STEPS, save_every=None, resume=None))
    steps, pictures = stage.epochs * len(loader), stage.epochs * len(loader.pictures)
    plan: dict[str, float] = {"steps": steps, "steps per epoch": len(loader), "training pictures": len(loader.pictures)}
    seconds = pictures / trial.images_per_second
    session.say_plan(stage.objective.get_submodule("student"), {**plan, "estimated seconds": seconds})
