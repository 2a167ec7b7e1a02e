"""A linear evaluation as a command with a YAML config: what is refused, the tensors, the training, the results."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.config.keys.root import LINEAR_EVAL, PRETRAINED, WARMUP_FC, Root
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.evaluate.linear import LinearEvaluation
from lowbit.evaluate.pretrained import load_pretrained_, matching_classifier
from lowbit.options import LinearOptions, OptimOptions, RunOptions
from lowbit.train.configured import batch_of, job_of, refuse
from lowbit.train.epochs import Due
from lowbit.train.run import Result
from lowbit.train.schedule import Schedule
from lowbit.train.session import Session

EVAL_BATCH = 256  # pictures, the authors' largest
CONTENT = f"content of {PRETRAINED}"  # among the options of a run, which a resumed one has to share


class Evaluated(NamedTuple):
    """What is evaluated.

    Attributes:
        net: the classifier, on the device; its ranges or statistics are still to be found, or to be resumed.
        content: of `give_pretrained_`.
        train, test, held: the sets; the last is held out of the first.
        views, shown: the recipes of training and of evaluation.
        facts: entries of `config.json` and `result.json`.
        unused: the config's keys without effect.
    """

    net: nn.Module
    content: str | None
    train: Pictures
    test: Pictures
    held: Pictures | None
    views: Recipe
    shown: Recipe
    facts: Mapping[str, Any]
    unused: set[str]


def check_linear(command: str, options: RunOptions, config: Root, own: LinearOptions, keeps_best: bool = False) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that the command does not have.
    """
    config.check_evaluation(options.resume is not None)
    refuse({"--pretrained": options.pretrained}, f"in {command}, which starts from {PRETRAINED}=PATH")
    if not keeps_best:
        refuse({"--val-split": options.val_split}, f"in {command}, which keeps no best")
    train = config.TRAIN
    if not train.LINEAR_EVAL:
        refuse({"--cache-features": own.cache_features}, f"where the whole net is trained ({LINEAR_EVAL}=False)")


def give_pretrained_(
    net: nn.Module, given: Mapping[str, Tensor] | None, session: Session, config: Root, other: Callable[[], nn.Module]
) -> str | None:
    """Give the classifier its pretrained tensors; a digest of them, which a resumed run may leave out.

    Args:
        net: in place.
        given: the tensors by its keys; None: no file is named.
        session: of the command.
        config: of the run.
        other: makes the net whose last layer is taken where the config says so.

    Raises:
        InputError: no file where a probe needs one, or one without such a last layer.
    """
    model, train = config.MODEL, config.TRAIN
    if given is None and session.resumed() is None and train.LINEAR_EVAL:
        config.check_stated(PRETRAINED)
    if given is not None and train.WARMUP_FC:
        given = {**given, **matching_classifier(net, other(), f"{WARMUP_FC}: {model.PRETRAINED}")}
    return load_pretrained_(net, given, session.resumed(), CONTENT)


def run_linear(
    session: Session, command: str, config: Root, name: str, own: LinearOptions, optim: OptimOptions, of: Evaluated, *,
    header: Mapping[str, Any], optimizer: Callable[[nn.Module], Optimizer], rates: Mapping[str, Schedule], due: Due,
    prepare: Callable[[], object], best: str | None = None,
    figures: Callable[[LinearEvaluation], Mapping[str, float]] = lambda task: {},
    export: Callable[[Path], object] | None = None,
) -> Result | None:  # fmt: skip
    """Check, then train, with evaluations on the way, and write the results. None after a dry run.

    Args:
        session: of the command.
        command: its name.
        config: resolved.
        name: of the config, for the record.
        own: of this command.
        optim: what replaces the authors' optimizer and schedule.
        of: what is evaluated.
        header: entries of every checkpoint.
        optimizer: builds the optimizer of what is trained.
        rates: its learning rates.
        due: after which epochs it is evaluated.
        prepare: finds ranges or statistics of the net; not called in a resumed run.
        best: as in `Job`.
        figures: further ones, of a finished training.
        export: writes into the run's folder what the command makes of a net that was trained.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; what was trained is saved.
    """
    train = config.TRAIN
    task = LinearEvaluation(
        session, of.net, frozen=train.LINEAR_EVAL, train=of.train, test=of.test, held=of.held,
        views=of.shown if own.cache_features else of.views, shown=of.shown,
        batch=min(EVAL_BATCH, 2 * train.BATCH_SIZE),
    )  # fmt: skip
    batch, facts = batch_of(train, session, own.keep_global_batch), {**task.facts, **of.facts}
    job = job_of(
        session, command, config, task.objective(optimizer), rates, session.loader(of.train, task.views, batch), batch,
        header=header, unused=of.unused, name=name, own=own, optim=optim, facts=facts, best=best,
        also={"cache_features": own.cache_features, CONTENT: of.content},
        prefixes={"student.net." if train.LINEAR_EVAL else "student.": ""},
    )  # fmt: skip
    export = None if train.LINEAR_EVAL else export
    return task.run(job, train.DATASET, due, prepare=prepare, figures=lambda: figures(task), export=export)
