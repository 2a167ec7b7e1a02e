"""Backbones to be judged: read from any file by its content, quantized, with ranges from fixed training pictures.

Which net a file holds is told by what it says and by its keys, never by its name or folder (the authors' program went
by letters of the path, and judged a random net where they misled it). Every tensor of the net has to be in the file.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lowbit.checkpoint.check import check_kinds, first_bad
from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.batch import Batch
from lowbit.data.fixed import in_order, seeded_subset, shuffled
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Channels, Recipe
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import check_pictures
from lowbit.evaluate.features import AsEvaluated
from lowbit.export.backbone import KEY
from lowbit.models.create import create_model
from lowbit.quant.bitwidths import calibrate_ranges_
from lowbit.train.process import until_stopped
from lowbit.train.session import Session
from ssql import authors
from ssql.config import Calibration, Config, Quant
from ssql.load import told
from ssql.methods import quantize_
from ssql.pictures import channels_of

PREFIXES = ("", "encoder_q.", "model.", "backbone.")  # of a net's own keys: bare (of `linear` too), of `ssl`, others'
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A net without its last layer, and what its file says.

    Attributes:
        model: a timm net of 0 classes, float, in evaluation mode: `lowbit.evaluate.features.pooled` takes features.
        arch: its timm name.
        size: (C, H, W) of the pictures that it was trained on (where the file does not say: timm's for the net).
        config: that the checkpoint was trained with; None where the file does not say.
    """

    model: nn.Module
    arch: str
    size: Size
    config: Config | None

    @property
    def normalization(self) -> Channels | None:
        """Mean and std of the pictures that it was trained on; None where the file does not say."""
        return None if self.config is None else channels_of(self.config)

    @property
    def quant(self) -> Quant | None:
        """The section QUANT that it was trained with; None where the file does not say."""
        return None if self.config is None else self.config.QUANT


class _File(NamedTuple):
    """The tensors of a file, and what it says of its net."""

    state: Mapping[str, Tensor]
    arch: str | None = None
    size: Size | None = None
    config: Config | None = None


def open_backbone(path: Path | str, arch: str | None = None, size: Size | None = None) -> Backbone:
    """Read a checkpoint of ours (`ssl`, `linear`), of the authors, a `backbone.safetensors`, or a plain state dict.

    Args:
        path: the file.
        arch: timm name; needed where the file does not say.
        size: (C, H, W) of the pictures; None: what the file or timm says.

    Raises:
        InputError: damaged, of another package, or its tensors are not all those of the net.
    """
    path = Path(path)
    try:
        file = _read(path, arch)
        if file.arch is None:
            raise InputError("it does not say which net it holds: name timm's, as --arch or MODEL.ARCH")
        if arch is not None and arch != file.arch:
            raise InputError(f"it holds a {file.arch}, not a {arch}")
        with torch.random.fork_rng(devices=[]):
            model = create_model(file.arch, num_classes=0)
        _fill_(model, file)
    except InputError as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from error
    shown = size or file.size or resolve_model_data_config(model)["input_size"]
    return Backbone(model=model.eval(), arch=file.arch, size=shown, config=file.config)


def _read(path: Path, arch: str | None) -> _File:
    if _is_safetensors(path):
        return _read_safetensors(path, arch)
    checkpoint = read_checkpoint(path)
    package = checkpoint.get("package", "ssql")
    if package != "ssql":
        raise InputError(f"it is a checkpoint of {package}, not of ssql")
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError("it holds no state_dict of tensors; name another file")
    state = {str(key).removeprefix(authors.PREFIX): value for key, value in state.items()}
    if "package" in checkpoint:
        config, size = told(checkpoint)
        return _File(state, config.MODEL.ARCH, size, config)
    theirs = authors.parse(state)
    if theirs is None:
        return _File(state, arch)
    return _File(theirs.state, arch or authors.arch_of(theirs.state))


def _is_safetensors(path: Path) -> bool:
    """A length of 8 bytes, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # `read_checkpoint` says what is wrong


def _read_safetensors(path: Path, arch: str | None) -> _File:
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        file_arch = arch if said is None else json.loads(said)["arch"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"it is damaged ({' '.join(str(error).split())[:200]}); name another file") from error
    found = first_bad(state)
    if found is not None:
        raise InputError(f"it holds NaN or infinity in {found}: that run diverged; name another file")
    return _File(state, file_arch)


def _fill_(model: nn.Module, file: _File) -> None:
    """Give the net its tensors, all of them; those of heads and of ranges are left out.

    Raises:
        InputError: tensors that are missing, of another shape, or that the net does not have.
    """
    own = model.state_dict()
    inside = [
        {key.removeprefix(prefix): value for key, value in file.state.items() if key.startswith(prefix)}
        for prefix in PREFIXES
    ]
    state = max(inside, key=lambda found: len(found.keys() & own.keys()))
    head: Any = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]  # timm's
    heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    given = {k: v for k, v in state.items() if not (k.startswith(heads) or ".observer." in k) or k in own}
    if not given.keys() & own.keys():
        first = next(iter(file.state), "none")
        raise InputError(f"none of its tensors ({first}, ...) is one of a {file.arch} ({next(iter(own))}, ...)")
    try:
        check_kinds(given, own)
        model.load_state_dict(given)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"its tensors are not those of a {file.arch}: {reason}") from error


def quantize(backbone: Backbone, quant: Quant) -> nn.Module:
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
    return quantize_(backbone.model, quant.model_copy(update={"BIT_CONFIG": listed}), backbone.size)


def calibrate(model: nn.Module, calibration: Calibration, pictures: Pictures, recipe: Recipe, session: Session) -> int:
    """Set the ranges of activations from training pictures drawn by `calibration.SEED`; returns how many there were.

    Every process sees all of them, so that several give the ranges of one. Bits have to be set already: one of the
    observers needs them.

    Args:
        model: of `quantize`, on the device.
        calibration: section QUANT.CALIBRATION.
        pictures: the training set.
        recipe: how evaluation shows a picture.
        session: of the command.

    Raises:
        Stopped: a stop signal came.
    """
    chosen = seeded_subset(pictures, calibration.PICTURES, calibration.SEED)
    loader = until_stopped(in_order(chosen, recipe, session.loader_options()), session.accelerator)
    calibrate_ranges_(AsEvaluated(model, session.accelerator), (batch.views[0] for batch in loader))
    return len(chosen)


def statistics_batches(
    calibration: Calibration, pictures: Pictures, views: Recipe, session: Session
) -> Iterator[Batch]:
    """The pictures of the calibration as training sees them, for batch-norm statistics at the bits.

    Args:
        calibration: section QUANT.CALIBRATION.
        pictures: the training set.
        views: the recipe of training; the first view is for batch norm.
        session: of the command.
    """
    chosen = seeded_subset(pictures, calibration.PICTURES, calibration.SEED)
    return shuffled(chosen, views, session.loader_options(), seed=calibration.SEED)


def check_statistics(net: nn.Module, calibration: Calibration, pictures: Pictures) -> None:
    """Refuse batch-norm statistics of one picture.

    Raises:
        InputError: the net has batch norm, and there is one picture.
    """
    described = f"QUANT.CALIBRATION.PICTURES={calibration.PICTURES} of {len(pictures)} training pictures"
    count = min(calibration.PICTURES, len(pictures))
    check_pictures(net, count, f"{described} (--calibration, --limit-train)")
