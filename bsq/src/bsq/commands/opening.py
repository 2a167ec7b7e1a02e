"""The nets that the commands work on: from `--arch`, `--pretrained`, `--model` and the activation options."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch import nn

from bsq import checkpoint, load
from bsq.activation import quantize_bsq_activations_
from bsq.checkpoint import Saved
from bsq.commands.evaluating import Session
from bsq.network import coverable
from bsq.options import HAWQ_RESNET20, ActOptions, NetOptions, WidthOptions
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.create import check_arch, create_model
from lowbit.models.surgery import replace_
from lowbit.quant.activations import ActivationConfig, QuantActivation


def read_model(net: NetOptions, required: bool = False) -> Saved | None:
    """What `--model` holds; its architecture must be that of `--arch`. Called before data is touched.

    Raises:
        InputError: see `bsq.checkpoint`; an unknown architecture; or no file although it is required.
    """
    if net.arch is not None:
        check_arch(net.arch)
    if net.model is None:
        if required:
            raise InputError("--model is missing: name the checkpoint")
        return None
    saved = checkpoint.read(net.model)
    saved.weights.choose_arch(net.arch, saved.arch, "-a")
    return saved


class Opened(NamedTuple):
    """A command's float net before its weights are loaded.

    Attributes:
        model: the net, with activation quantizers where the command has them.
        saved: what `--model` holds.
        recipes: preparation of pictures for training and evaluation.
        head: of the checkpoints that come of it.
    """

    model: nn.Module
    saved: Saved | None
    recipes: tuple[Recipe, Recipe]
    head: dict[str, Any]


def open_net(session: Session, net: NetOptions, acts: ActOptions | None = None, required: bool = False) -> Opened:
    """Read `--model`, open the data, make the net.

    Raises:
        InputError: see `read_model`, `create` and `quantize_activations_`; the dataset cannot be read.
    """
    saved = read_model(net, required)
    session.open_data()
    model = create(session, saved)
    pictures = pictures_of(model, session, saved)
    recipes = session.recipes(model, pictures)
    if acts is not None:
        quantize_activations_(model, acts, saved)
    return Opened(model, saved, recipes, session.head(model, pictures, recipes[1]))


def create(session: Session, saved: Saved | None) -> nn.Module:
    """The float net of `--arch` with the dataset's classes; timm's weights with `--pretrained`, else a seeded start.

    Raises:
        InputError: another number of classes than the checkpoint's, or timm's weights cannot be fetched.
    """
    arch, classes, pretrained = str(session.net.arch), session.classes, session.options.pretrained and saved is None
    if saved is not None and saved.form != "float" and saved.classes not in (None, classes):
        raise InputError(
            f"{session.net.model} is a net of {saved.classes} classes, --dataset {session.net.dataset} has {classes}: "
            "choose the dataset it was trained on"
        )
    torch.manual_seed(session.options.seed)
    if not pretrained:
        return create_model(arch, num_classes=classes)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry is a line; our error is to be one
    try:
        return create_model(arch, num_classes=classes, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--pretrained: timm's weights of {arch} cannot be had ({reason}); leave it out") from error


def pictures_of(model: nn.Module, session: Session, saved: Saved | None) -> dict[str, Any] | None:
    """The timm data configuration that the net's pictures need; None: the dataset's own preparation."""
    if saved is not None and saved.pictures is not None:
        return saved.pictures
    if not session.options.pretrained:
        return None
    config = resolve_model_data_config(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def quantize_activations_(model: nn.Module, acts: ActOptions, saved: Saved | None = None) -> nn.Module:
    """The activation quantizers of the options.

    A net that the authors never had keeps those of its checkpoint, at the bits and range of the options, unless the
    options say which.

    Raises:
        InputError: a pattern that matches nothing.
    """
    silent = acts.clip is None and not acts.include and not acts.exclude
    if silent and saved is not None and saved.activations and not isinstance(model, CifarResNet):
        made = {name: ActivationConfig(**config) for name, config in saved.activations.items()}
        chosen = {name: replace(config, bits=acts.bits, range=acts.range) for name, config in made.items()}
        return replace_(model, {name: QuantActivation(config) for name, config in chosen.items()})
    return quantize_bsq_activations_(
        model, acts.bits, clip=acts.clip, range=acts.range, include=acts.include or None, exclude=acts.exclude
    )


def given_widths(widths: WidthOptions, net: NetOptions, model: nn.Module, saved: Saved | None) -> Mapping[str, Any]:
    """Each layer's bits by `--dict`, `--preset`, or the float checkpoint's own `Nbit_dict`; {}: `--Nbits` for all.

    Raises:
        InputError: the file has no widths, or the preset is for another net.
    """
    if widths.scheme is not None:
        found = checkpoint.read(widths.scheme).widths
        if not found:
            raise InputError(f"--dict {widths.scheme} holds no Nbit_dict: name a checkpoint in bit representation")
        return found
    if widths.preset is not None:
        if net.arch != "cifar_resnet20_1x1":
            raise InputError(f"--preset {widths.preset} gives the widths of ResNet-20, not of {net.arch}: use --dict")
        names = coverable(model)
        return {name: (bits, 0) for p, bits in HAWQ_RESNET20.items() for name in names if fnmatchcase(name, p)}
    return {} if saved is None else saved.widths


def read_bits(net: NetOptions) -> tuple[nn.Module, dict[str, Any]]:
    """The net in bits that `report` and `export` are given, and how to build it anew (`lowbit.export.packed`).

    Raises:
        InputError: not a checkpoint of bits, or of another net.
    """
    saved = read_model(net, required=True)
    assert saved is not None
    load.need_bits(saved)
    model: Any = load.build(saved, net.arch)
    size = saved.input_size or resolve_model_data_config(model)["input_size"]
    facts = {"pictures": saved.pictures, "input_size": list(size)}
    return model, {"method": "bsq", "arch": net.arch or saved.arch, "args": {"num_classes": model.num_classes}, **facts}
