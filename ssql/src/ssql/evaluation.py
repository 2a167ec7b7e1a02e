"""Backbones to evaluate: read from any file by its content, quantized, with ranges from fixed training pictures.

The authors' program went by letters of the path, and evaluated a random net where they misled it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from timm.data import resolve_model_data_config
from torch import nn

from lowbit.checkpoint.header import PictureSize, read_header
from lowbit.data.fixed import FixedPictures
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Channels, Recipe
from lowbit.errors import naming
from lowbit.evaluate.batchnorm import check_pictures
from lowbit.evaluate.features import AsEvaluated
from lowbit.models.weight_file import Weights, read_weights
from lowbit.models.weights import backbone_of
from lowbit.quant.bitwidths import in_mode, set_bits_
from lowbit.quant.calibrate import calibrate_
from lowbit.train.process import until_stopped
from lowbit.train.session import Session
from ssql import authors
from ssql.bit_policy import quantize_encoder_
from ssql.bitwidths import Bits
from ssql.config import Calibration, Config, Quant
from ssql.load import FORMAT, SslHeader
from ssql.pictures import channels_of


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A net without its last layer, and what its file says.

    Attributes:
        model: a timm net of 0 classes, float, in evaluation mode: `lowbit.evaluate.features.pooled` takes features.
        arch: its timm name.
        size: (C, H, W) of the pictures that it was trained on (where the file does not say: timm's for the net).
        config: that the checkpoint was trained with; None where the file does not say.
    """

    model: nn.Module
    arch: str
    size: PictureSize
    config: Config | None

    @property
    def normalization(self) -> Channels | None:
        """Mean and std of the pictures that it was trained on; None where the file does not say."""
        return None if self.config is None else channels_of(self.config)


def open_pretrained(path: Path | str, arch: str | None = None, size: PictureSize | None = None) -> Pretrained:
    """Read any file (`lowbit.models.weights`), or a quantized net in the authors' layout.

    Args:
        path: the file.
        arch: timm name; needed where the file does not say.
        size: (C, H, W) of the pictures; None: what the file or timm says.

    Raises:
        InputError: it cannot be read, nobody says which net it is, or its tensors are not all those of the net.
    """
    with naming(path):
        weights = read_weights(path)
        said = read_header(weights.content, "ssql", FORMAT, SslHeader)
        theirs = authors.parse(weights.content) if said is None else None
        if theirs is not None:
            arch = arch or weights.arch or authors.arch_of(theirs.state)
            weights = Weights(weights.name, theirs.state) if theirs.wrapped else weights
        found = backbone_of(weights, arch)
    shown = size or (said and said.input_size) or resolve_model_data_config(found.model)["input_size"]
    return Pretrained(model=found.model, arch=found.arch, size=shown, config=said.config if said else None)


class QuantizedBackbone:
    """A backbone at any bits, its ranges found there.

    Args:
        session: of the command.
        backbone: taken over; its size is that of the pictures as they are shown.
        quant: how it is quantized.
        train: training pictures.
        shown: how evaluation prepares a picture.

    Attributes:
        net: wrapped, on the device. fixed: the pictures that set the ranges.
    """

    def __init__(self, session: Session, backbone: Pretrained, quant: Quant, train: Pictures, shown: Recipe) -> None:
        self.session, self.shown, self.keeps_pins = session, shown, quant.FP == "authors"
        self.net: nn.Module = session.place(quantize_backbone_(backbone, quant))
        self.fixed = fixed_pictures(quant.CALIBRATION, train, session)

    @contextmanager
    def at(self, bits: Bits) -> Iterator[None]:
        """The net at these bits; `QUANT.FP` says whether the pinned layers follow to 0 bits."""
        set_bits_(self.net, bits.w, bits.a, self.keeps_pins)
        if bits.w or bits.a or self.keeps_pins:
            calibrate(self.net, self.fixed, self.shown, self.session)
        with in_mode(self.net, "quantized"):
            yield


def quantize_backbone_(backbone: Pretrained, quant: Quant) -> nn.Module:
    """Wrap the backbone's net as the config says, in place, in mode `float`; returns it.

    The pins are those that the net itself has, or those of `BIT_CONFIG` but the classifier's, which is not here.

    Raises:
        InputError: a name in `BIT_CONFIG` that is not of this net.
    """
    classifier = str(backbone.model.pretrained_cfg.get("classifier"))  # type: ignore[union-attr, operator]  # timm's
    listed = tuple(
        {name: pins for name, pins in pinned.items() if name.split(".")[0] != classifier.split(".")[0]}
        for pinned in quant.BIT_CONFIG
    )
    return quantize_encoder_(backbone.model, quant.model_copy(update={"BIT_CONFIG": listed}), backbone.size)


def fixed_pictures(calibration: Calibration, train: Pictures, session: Session) -> FixedPictures:
    """Training pictures for ranges of activations and, as training shows them, for batch-norm statistics."""
    return FixedPictures(train, calibration.PICTURES, calibration.SEED, session.loader_options())


def calibrate(model: nn.Module, fixed: FixedPictures, shown: Recipe, session: Session) -> None:
    """Set the ranges of activations. Bits have to be set already: one of the observers needs them.

    Args:
        model: of `quantize_backbone_`, on the device.
        fixed: all of them, on every process, so that several give the ranges of one.
        shown: how evaluation prepares a picture.
        session: of the command.

    Raises:
        Stopped: a stop signal came.
    """
    batches = until_stopped(fixed.evaluated(shown), session.accelerator)
    calibrate_(AsEvaluated(model, session.accelerator), (batch.views[0] for batch in batches))


def check_statistics(net: nn.Module, calibration: Calibration, train: Pictures) -> None:
    """Refuse batch-norm statistics of one picture.

    Raises:
        InputError: the net has batch norm, and there is one picture.
    """
    described = f"QUANT.CALIBRATION.PICTURES={calibration.PICTURES} of {len(train)} training pictures"
    check_pictures(net, min(calibration.PICTURES, len(train)), f"{described} (--calibration, --limit-train)")
