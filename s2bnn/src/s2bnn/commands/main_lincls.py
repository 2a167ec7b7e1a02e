"""`s2bnn main_lincls`: linear evaluation of a student of any step, or of any file of weights.

The authors' protocol: the net is frozen and in evaluation mode, a classifier drawn from N(0, 0.01) is trained by SGD on
its pooled features, at a rate that falls at milestones; model_best is chosen on the evaluation set. With `--protocol
simsiam` it is that of their ResNet-50: LARS, a cosine that moves once an epoch, a rate for each 256 pictures (Chen, He,
"Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 4). After the first epoch every tensor but the
classifier's is compared with the file's.

Deviations: a net is evaluated at the step that its file says, never at another one; a missing file is refused; each
process evaluates its share of the pictures, not all; features are taken once where every epoch shows the same pictures.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.checkpoint.header import read_header
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Channels, Recipe, dataset_channels, flip_share, from_timm
from lowbit.data.views import labelled_views, side_of
from lowbit.errors import InputError
from lowbit.evaluate.linear import LinearEvaluation, figures_of
from lowbit.evaluate.pretrained import check_unchanged, load_pretrained_
from lowbit.models.create import create_model, create_pretrained, picture_settings
from lowbit.models.heads import linear_classifier
from lowbit.models.pretrained_cfg import ENTRY, pretrained_cfg
from lowbit.models.surgery import run_blank
from lowbit.options import RunOptions
from lowbit.quant.binary import binarize_
from lowbit.train.batch import per_node
from lowbit.train.configured import refuse
from lowbit.train.epochs import after_every
from lowbit.train.job import Job
from lowbit.train.process import local_processes
from lowbit.train.protocol import Stage
from lowbit.train.run import Result
from lowbit.train.session import Session
from s2bnn import load
from s2bnn.commands import FILES
from s2bnn.load import Student, open_student
from s2bnn.optim import optimizer, rate
from s2bnn.options import LinclsOptions

EVAL_BATCH = 256  # pictures, the authors'
CONTENT = "content of --pretrained"  # among the options of a run, which a resumed one has to share


def main_lincls(options: RunOptions, own: LinclsOptions) -> Result | dict[str, float] | None:
    """Train and evaluate, or with `own.evaluate` only evaluate. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; what was trained is saved.
    """
    if own.evaluate:
        return _evaluate(options, own)
    with Session("s2bnn", options, own.dataset, [own.weights], files=FILES) as session:
        world, parts = session.accelerator.num_processes, options.accumulate
        batch = per_node(own.batch_size, world, local_processes(), accumulate=parts)
        train, held = session.train_and_held()
        student, given = _starting(options, own, session.resumed())
        side, classes = side_of(train, own.image_size), len(train.classes)
        net = _new_classifier_(student.model, classes, options.seed)
        run_blank(net, (3, side, side), setting="--image-size", values=False)
        content = load_pretrained_(net, given, session.resumed(), CONTENT)
        views, shown = recipes(own, train, side, student, options.pretrained)
        task = LinearEvaluation(
            session, session.place(net), frozen=True, train=train, test=session.pictures("test"), held=held,
            views=shown if own.cache_features else views, shown=shown, batch=EVAL_BATCH,
        )  # fmt: skip
        lr = own.lr * batch.total / 256 if own.protocol == "simsiam" else own.lr
        rates = {"main": rate(own, own.sched or "step", lr)}
        stage = Stage(task.objective(partial(optimizer, own, "sgd")), own.epochs, rates)
        cfg = pretrained_cfg(shown, (3, side, side), train.classes)
        compared = {**own.compared, "--student": student.arch, "--step": student.step, CONTENT: content}
        job = Job(
            session, "main_lincls", [stage], session.loader(train, task.views, batch), batch,
            header=load.header(student.arch, student.step, cfg, "classifier", classes), shared=compared,
            facts={**task.facts, "student": student.arch, "step": student.step}, described=asdict(own),
            prefixes={"student.net.": ""}, log_every=own.print_freq, best="top1" if held is None else "val_top1",
        )  # fmt: skip
        return task.run(job, own.dataset, after_every(1), probes=[check_unchanged(session, content)])


def _starting(
    options: RunOptions, own: LinclsOptions, resumed: Mapping[str, Any] | None
) -> tuple[Student, dict[str, Tensor] | None]:
    """The net that is evaluated, and its tensors; a resumed run may leave out the file, no other may."""
    if options.pretrained:
        refuse({"--pretrained": own.weights, "--step": own.step}, "beside --timm-pretrained")
        if own.student is None:
            raise InputError("--timm-pretrained needs the net's name: give --student")
        model = create_pretrained(own.student, 0, flag="--timm-pretrained")
        return Student(model, own.student, 0, {}), model.state_dict()
    if own.weights is not None:
        found = open_student(own.weights, own.student, own.step)
        return found, found.model.state_dict()
    said = None if resumed is None else read_header(resumed, "s2bnn", load.FORMAT, load.S2bnnHeader)
    if said is None:
        raise InputError("--pretrained is missing: name the checkpoint to evaluate, --pretrained FILE")
    bare = binarize_(create_model(said.arch, num_classes=0), said.binarization)
    return Student(bare, said.arch, said.binarization, dict(resumed or {})), None


def _new_classifier_(net: Any, classes: int, seed: int) -> nn.Module:
    """The net with a last layer of weights from N(0, 0.01) and biases 0."""
    net.reset_classifier(classes)
    head = linear_classifier(net)[1]
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return net


def recipes(own: LinclsOptions, pictures: Pictures, side: int, student: Student, timm: bool) -> tuple[Recipe, Recipe]:
    """(training, evaluation): normalised as the student's file says, else as the dataset's name; `timm`: its own."""
    if timm:
        cfg = {**picture_settings(student.model), "input_size": (3, side, side)}
        return from_timm(cfg, flip_share(own.dataset))
    said = student.said.get(ENTRY)
    channels = Channels(tuple(said["mean"]), tuple(said["std"])) if said else dataset_channels(own.dataset)
    return labelled_views(own.dataset, pictures, side, channels)


def _evaluate(options: RunOptions, own: LinclsOptions) -> dict[str, float] | None:
    """Top-1, top-5 and loss of a classifier of a linear evaluation, ours or the authors'."""
    path = options.resume or own.weights
    if path in (None, "auto"):
        raise InputError("--evaluate needs a net with its classifier: name the checkpoint, --resume FILE")
    refuse({"--timm-pretrained": options.pretrained}, "with --evaluate, which trains no classifier")
    options = replace(options, resume=None)
    with Session("s2bnn", options, own.dataset, [Path(path)], resumes=False, files=FILES) as session:
        test = session.pictures("test")
        side, classes = side_of(test, own.image_size), len(test.classes)
        student = open_student(path, own.student, own.step, classes)
        run_blank(student.model, (3, side, side), setting="--image-size", values=False)
        shown = recipes(own, test, side, student, False)[1]
        facts = {"student": student.arch, "step": student.step, "classes": classes, "global_batch": EVAL_BATCH}
        if options.dry_run:
            session.say_facts({**facts, "dataset": own.dataset, "pictures": len(test)})
            return None
        with session.open_folder("main_lincls", asdict(own), facts) as folder:
            loader = session.eval_loader(test, shown, EVAL_BATCH)
            values = figures_of(session, session.place(student.model), loader)
            session.write_result(folder, {**values, **facts})
    return values
