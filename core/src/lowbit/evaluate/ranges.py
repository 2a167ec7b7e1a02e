"""Ranges of activations from a command's training pictures, and fixed ones in the place of each batch's."""

import logging

from torch import nn

from lowbit.data.fixed import shuffled
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.evaluate.classify import classify
from lowbit.quant.calibrate import calibrate_, fix_ranges_, has_ranges, unfixed
from lowbit.train.process import until_stopped
from lowbit.train.session import Session

BATCHES = 10
BATCH = 128  # pictures
EVAL_BATCH = 100

log = logging.getLogger(__name__)


def open_ranges(model: nn.Module, session: Session) -> None:
    """Read the training pictures if a net has ranges to set, before a folder records which were chosen."""
    if has_ranges(model):
        session.pictures("train")


def set_ranges_(model: nn.Module, session: Session, recipe: Recipe, batch: int = BATCH) -> None:
    """Set running ranges on training pictures as evaluation prepares them: the first batches of a seeded order.

    Args:
        model: placed on the device; without ranges nothing happens.
        session: of the command.
        recipe: of evaluation.
        batch: pictures.

    Raises:
        Stopped: a stop signal came.
    """
    if not has_ranges(model):
        return
    order = {"seed": session.options.seed, "batch": batch, "limit": BATCHES}
    batches = shuffled(session.pictures("train"), recipe, session.loader_options(), **order)
    shown = until_stopped(batches, session.accelerator, "calibration")
    calibrate_(session.place(model), (part.views[0].to(session.dtype) for part in shown))


class RangesToFix:
    """What of a net depends on the batch, and the pictures that will fix it; they are opened here.

    Args:
        session: of the command.
        model: with a classifier.
        recipe: of evaluation.
        keep: leave everything as it is, and open nothing.

    Attributes:
        names: of the quantizers; none where nothing is to be done.
        classes: names of the pictures' classes where they are as many as the net has, so that its top-1 says something.

    Raises:
        InputError: there are no pictures.
    """

    def __init__(self, session: Session, model: nn.Module, recipe: Recipe, keep: bool = False) -> None:
        self.session, self.model, self.recipe = session, model, recipe
        self.names = [] if keep else unfixed(model)
        self.classes = self._open() if self.names else ()

    def _open(self) -> tuple[str, ...]:
        own = getattr(self.model, "num_classes", 0)
        try:
            found = self.session.pictures("train", labels=False).classes
            tested = self.session.pictures("test").classes if len(found) == own else ()
        except InputError as error:
            hint = "its pictures set the ranges of activations; --keep-batch-ranges needs none"
            raise InputError(f"{error} ({hint})") from error
        if own and len(found) == own == len(tested):
            return tuple(found)
        log.warning("no top-1 is reported: the pictures have %d classes, the net %d", len(found), own)
        return ()

    def fix_(self) -> dict[str, float]:
        """Set the ranges; top-1 in percent after (`top1`) and before (`top1_batch_ranges`), {} without classes.

        Raises:
            Stopped: a stop signal came.
        """
        before = self._top1()
        set_ranges_(self.session.place(fix_ranges_(self.model)), self.session, self.recipe)
        after = self._top1()
        if before is None or after is None:
            return {}
        self.session.say(f"top-1 {before:.2f} % with ranges of each batch, {after:.2f} % with fixed ones")
        return {"top1": after, "top1_batch_ranges": before}

    def _top1(self) -> float | None:
        if not self.classes:
            return None
        loader = self.session.eval_loader(self.session.pictures("test"), self.recipe, EVAL_BATCH)
        return classify(self.session.place(self.model), loader, self.session.accelerator).top1
