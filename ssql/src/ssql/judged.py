"""A net that can be put at any bits, its ranges found there, and the pictures that it is shown (`sweep`, `draw`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lowbit.data.datasets import DATASETS
from lowbit.data.fixed import BATCH
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.quant.bitwidths import in_mode, set_bits_
from lowbit.train.session import Session
from ssql.bitwidths import Bits
from ssql.config import Config, Quant
from ssql.evaluation import Backbone, calibrate, quantize


def dataset_of(config: Config) -> str:
    """What `lowbit.data.datasets` calls TRAIN.DATASET: the sets that are folders of pictures have one name there."""
    return config.TRAIN.DATASET if config.TRAIN.DATASET in DATASETS else "folder"


class Judged:
    """A net under judgement.

    Args:
        session: of the command.
        backbone: taken over; its size is that of the pictures as they are shown.
        quant: how it is quantized.
        train: training pictures.
        shown: how evaluation prepares a picture.

    Attributes:
        net: wrapped, on the device. calibrated: how many pictures set the ranges.
    """

    def __init__(self, session: Session, backbone: Backbone, quant: Quant, train: Pictures, shown: Recipe) -> None:
        self.session, self.quant, self.train, self.shown = session, quant, train, shown
        self.net: nn.Module = session.place(quantize(backbone, quant))
        self.calibrated = min(quant.CALIBRATION.PICTURES, len(train))

    @contextmanager
    def at(self, bits: Bits) -> Iterator[None]:
        """The net at these bits; `QUANT.FP` says whether the pinned layers follow to 0 bits."""
        keep_pins = self.quant.FP == "authors"
        set_bits_(self.net, bits.w, bits.a, keep_pins)
        if bits.w or bits.a or keep_pins:
            calibrate(self.net, self.quant.CALIBRATION, self.train, self.shown, self.session)
        with in_mode(self.net, "quantized"):
            yield

    def loader(self, pictures: Pictures) -> EvalLoader:
        """This process's batches, as evaluation shows pictures."""
        return EvalLoader(pictures, self.shown, batch_size=BATCH, **self.session.loader_options())
