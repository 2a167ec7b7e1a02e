"""A pretraining without labels, from the checks of its job to its results, with figures on the way.

Log lines of an epoch come to stdout at its end; labels are read for k-NN alone; copies by epoch hold the weights alone.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Channels, Recipe
from lowbit.data.views import side_of, view_recipes
from lowbit.evaluate.monitor import monitor_pretraining, monitored_pictures, report_collapse
from lowbit.train.copies import Copies, keep_copies
from lowbit.train.epochs import print_epoch_lines
from lowbit.train.folder import RunFolder
from lowbit.train.job import Job
from lowbit.train.protocol import Clock
from lowbit.train.run import Probe, Result
from lowbit.train.session import Session

Context = Callable[[nn.Module], AbstractContextManager[Any]]

log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """Pictures of a pretraining, and how they are shown.

    Attributes:
        train, test: the sets; None: without figures.
        size: (C, H, W) of what the net sees.
        views: of a training picture, each drawn anew.
        plain: the picture that is evaluated.
    """

    train: Pictures
    test: Pictures | None
    size: tuple[int, int, int]
    views: Recipe
    plain: Recipe

    @property
    def facts(self) -> dict[str, int]:
        """That there are no classes, where there are none."""
        return {} if self.train.classes else {"classes": 0}


def open_pictures(
    session: Session, dataset: str, side: int | None, channels: Channels | None = None, *, figures: bool
) -> Shown:
    """The sets of a pretraining. A `folder` need not be sorted by class.

    Args:
        session: of the command.
        dataset: its name in the config.
        side: height and width of what the net sees, in pixels; None: see `lowbit.data.views.side_of`.
        channels: of the normalisation; None: the dataset's.
        figures: whether the test set is needed.

    Raises:
        InputError: a set is missing.
    """
    labels = dataset != "folder"
    train = session.pictures("train", labels=labels)
    test = monitored_pictures(session, labels) if figures else None
    side = side_of(train, side)
    return Shown(train, test, (3, side, side), *view_recipes(dataset, train, side, channels))


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What a pretraining is monitored by.

    Attributes:
        encoder: the objective's submodule: a net with its projector.
        dim: entries of its output.
        pictures: the training set is the bank of k-NN.
        every: epochs between two figures.
        contexts: of each variant of the net that is evaluated, a context manager around its forwards; the variant's
            name, which its figures carry: "" for the net that the run's own figures are of.
    """

    encoder: str
    dim: int
    pictures: Shown
    every: int
    contexts: Mapping[str, Context] = field(default_factory=lambda: {"": nullcontext})

    def probes(self, session: Session) -> list[Probe]:
        """For `Run.probes`, one per variant."""
        train, test = self.pictures.train, self.pictures.test
        if test is None:
            return []
        bank, queries = (session.eval_loader(pictures, self.pictures.plain) for pictures in (train, test))
        return [
            monitor_pretraining(self.encoder, bank, queries, session, every=self.every, variant=name, context=context)
            for name, context in self.contexts.items()
        ]


def run_pretraining(
    job: Job, monitored: Monitored, *, facts: Mapping[str, Any], lines: Mapping[str, str], copies: Copies,
    finish: Callable[[RunFolder, Result], object],
) -> Result | None:  # fmt: skip
    """Check, train with figures on the way, write the results. None after a dry run.

    Args:
        job: of a session with a folder.
        monitored: the figures.
        facts: the command's own in a dry run.
        lines: {name in the epoch's log lines: key of the metrics}.
        copies: of the weights.
        finish: called last, on all processes: what the command makes of its net.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    session, train = job.session, monitored.pictures.train
    job.check()
    if job.planned(facts):
        return None
    with job.open() as folder:
        if folder is None:
            raise ValueError("a pretraining needs a folder")
        if not train.classes and session.accelerator.is_main_process:
            log.info("%s: %d pictures, no classes, so no figure of k-NN", train.name, len(train))
        copy = keep_copies(folder, session.accelerator, copies, job.run.header, job.run.prefixes)
        result = job.fit(folder, [print_epoch_lines(session, folder, lines), *monitored.probes(session), copy])
        if copies.unfinished and not result.finished:
            stage, steps = job.stages[0], len(job.loader)
            epoch, step = divmod(result.done - 1, steps)
            copy(Clock(0, epoch, stage.epochs, step + 1, steps, job.run.seed, done=result.done), stage.objective)
        collapse = report_collapse(result.eval, monitored.dim, session)
        job.write_result(folder, result, {"loss": result.train.get("loss"), **collapse})
        finish(folder, result)
    return result
