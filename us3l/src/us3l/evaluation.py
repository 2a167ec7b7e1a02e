"""Backbones to evaluate: slimmable nets read from any file by its content, and batch-norm statistics at a width.

The authors' program skips tensors that do not fit, evaluates nets without statistics as if each channel had mean 0 and
variance 1, and knows the width of a file from the config alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from lowbit.checkpoint.header import PictureSize, read_header
from lowbit.data.fixed import FixedPictures
from lowbit.data.pictures import Pictures
from lowbit.errors import InputError, naming
from lowbit.evaluate.batchnorm import check_pictures
from lowbit.models.pretrained_cfg import ENTRY, Cfg, checked_cfg
from lowbit.models.weight_file import Weights, read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.slim.layers import at_width
from lowbit.slim.statistics import channels_of, width_of_statistics
from lowbit.slim.widths import Width, show_width, widths_in
from lowbit.train.bn_statistics import batchnorms
from lowbit.train.session import Session
from us3l import authors
from us3l.config import Config, Ofa
from us3l.load import FORMAT, Us3lHeader
from us3l.names import Net, net_of
from us3l.network import network

QUARTERS = (0.25, 0.5, 0.75, 1.0)
LEAST = 0.01  # width of a net of which nobody says what was trained
SAME = 1e-6  # widths that differ by less are one: six digits are shown
CALIBRATION = "MODEL.OFA.CALIBRATION_PICTURES"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A slimmable net, and what its file says."""

    model: nn.Module  # a timm net, slimmable unless `net.kind` is plain, in evaluation mode
    net: Net
    size: PictureSize  # of the pictures that it was trained on; where the file does not say, timm's for the net
    states_size: bool = False  # the file says it
    config: Config | None = None  # that the checkpoint was trained with; None: the file does not say
    widths: tuple[float, ...] | None = None  # trained: one, a list, or both ends of a range; None: not said
    width: Width | None = None  # that the batch-norm statistics are of; None: of none, or each width has its own
    classes: int = 0  # of its last layer; 0: it has none
    shown: Cfg | None = None  # how pictures are shown to it, and its classes' names; None: not said

    @property
    def trained(self) -> tuple[tuple[float, ...], bool]:
        """The widths that may be evaluated, and whether they are a list, not both ends of a range."""
        widths = self.widths or ((1.0,) if self.net.kind == "plain" else (LEAST, 1.0))
        listed = self.config is not None and set(self.config.sampling.fixed) == set(widths)
        return tuple(sorted(widths)), listed or self.net.kind != "universal" or len(widths) != 2

    @property
    def listed(self) -> tuple[float, ...]:
        """What is evaluated by default: the list that was trained, else quarters of the range."""
        widths, is_list = self.trained
        return widths if is_list else tuple(w for w in QUARTERS if widths[0] <= w <= widths[1]) or widths[1:]

    def chosen(self, ofa: Ofa) -> Width:
        """What a config says is evaluated; where it says nothing, the width of the file's statistics."""
        width = ofa.WIDTH_MULT if "WIDTH_MULT" in ofa.model_fields_set else self.width
        return ofa.WIDTH_BY_LAYER or width or ofa.WIDTH_MULT

    def has_statistics(self, width: Width) -> bool:
        """Whether its batch-norm statistics are those of the sub-network of a width, if it has batch norm."""
        if not batchnorms(self.model):
            return True
        if self.net.kind != "universal" or self.width is None:
            return self.net.kind != "universal"
        with at_width(self.model, width):
            wanted = channels_of(self.model)
        with at_width(self.model, self.width):
            return channels_of(self.model) == wanted

    def check_width(self, width: Width, option: str) -> None:
        """Refuse a width that was not trained, which `option` says.

        Raises:
            InputError: it is outside the range, or not in the list.
        """
        widths, is_list = self.trained
        shown = (", " if is_list else " to ").join(map(show_width, widths))
        which = "one of these" if is_list else "a width between"
        for one in widths_in(width):
            between = not is_list and widths[0] <= one <= widths[-1]
            if not (between or any(abs(one - known) <= SAME for known in widths)):
                raise InputError(f"{option} {show_width(one)} was not trained, only {shown}: give {which}")


def open_pretrained(
    path: Path | str, arch: str | None = None, size: PictureSize | None = None, *, classifier: bool = False
) -> Pretrained:
    """Read any file (`lowbit.models.weights`): ours, the authors', a state dict of timm or torchvision.

    Args:
        path: the file.
        arch: the authors' name or timm's; needed where the file does not say.
        size: (C, H, W) of the pictures; None: what the file or timm says.
        classifier: keep the last layer of a classifier of ours.

    Raises:
        InputError: it cannot be read, nobody says which net it is, or its tensors are not all those of the net.
    """
    with naming(path):
        weights, wanted = read_weights(path), None if arch is None else net_of(arch)
        said = read_header(weights.content, "us3l", FORMAT, Us3lHeader)
        theirs = None if "package" in weights.content else authors.parse(weights.content)
        shown = said.net if said else theirs.net if theirs else None
        name = weights.choose_arch(wanted and wanted.name, shown and shown.name, "MODEL.ARCH or --arch")
        certain = shown if said or (theirs and theirs.certain) else wanted
        net = Net(name, certain.kind if certain else "universal")
        if wanted is not None and wanted.kind not in ("plain", net.kind):
            raise InputError(f"it is {net.kind}, and MODEL.ARCH or --arch says {wanted.kind}: name it as it is")
        classes = (said.classes or 0) if said and classifier else 0
        widths = tuple(said.widths) if said else authors.S_NETS if net.kind == "switchable" else None
        guess = (said and said.input_size) or size or (3, 32, 32)
        model = network(net, guess, widths or (), classes)
        if theirs:
            weights = Weights(weights.name, theirs.state)
        lacking = authors.is_statistic if theirs else lambda key: False
        load_(model, weights, branch_of(weights, model), may_lack=lacking)
        if said and said.width:  # is one of this net
            with at_width(model, said.width):
                pass
        width = said.width if said else 1.0 if net.kind == "universal" else None  # ordinary nets have all channels'
        if theirs and net.kind == "universal":
            try:
                width = width_of_statistics(model)
            except InputError:  # of a mixture, or damaged: they can be re-estimated
                width = None
        shows = weights.said.get(ENTRY) if weights.ours else None
        cfg = None if shows is None else checked_cfg(shows)
        stated: Any = (said and said.input_size) or (cfg and tuple(cfg["input_size"]))
        return Pretrained(
            model=model.eval(), net=net, size=size or stated or resolve_model_data_config(model)["input_size"],
            states_size=bool(stated), config=said.config if said else None, widths=widths, width=width,
            classes=classes, shown=cfg,
        )  # fmt: skip


def fixed_pictures(ofa: Ofa, train: Pictures, session: Session, net: nn.Module) -> FixedPictures:
    """Training pictures that batch-norm statistics are re-estimated on, chosen by the seed.

    Raises:
        InputError: a net with batch norm, and one picture.
    """
    count = ofa.CALIBRATION_PICTURES
    described = f"{CALIBRATION}={count} of {len(train)} training pictures (--calibration, --limit-train)"
    check_pictures(net, min(count, len(train)), described)
    return FixedPictures(train, count, session.options.seed, session.loader_options())
