"""The pictures from which batch norm's statistics are estimated anew at the bits (`sweep`, probes of `linear`)."""

from collections.abc import Iterator

from torch import nn

from lowbit.data.batch import Batch
from lowbit.data.loader import Loader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import norms
from lowbit.train.session import Session
from ssql.config import Calibration
from ssql.evaluation import BATCH, calibration_pictures


def norm_batches(calibration: Calibration, train: Pictures, views: Recipe, session: Session) -> Iterator[Batch]:
    """The pictures of the calibration as training sees them, in full batches, the same for every process.

    Args:
        calibration: section QUANT.CALIBRATION.
        train: the training set.
        views: the recipe of training; the first view is for batch norm.
        session: of the command.
    """
    pictures = calibration_pictures(calibration, train)
    common = {**session.loader_options(), "rank": 0, "world": 1}
    size = min(BATCH, len(pictures))
    seed = calibration.SEED
    return Loader(pictures, views, global_batch=size, seed=seed, drop_last=True, labels=False, **common).epoch(0)


def check_norm(net: nn.Module, calibration: Calibration, train: Pictures) -> None:
    """Refuse an estimation from one picture, of which batch norm has no variance.

    Raises:
        InputError: the net has batch norm, and there is one picture.
    """
    if norms(net) and min(calibration.PICTURES, len(train)) < 2:
        raise InputError(
            f"batch norm is estimated anew from QUANT.CALIBRATION.PICTURES={calibration.PICTURES} of {len(train)} "
            "training pictures: give 2 or more of both (--calibration, --limit-train)"
        )
