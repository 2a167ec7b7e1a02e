"""What every command opens: the session, `--model`, the data, and the network of `--arch`."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bsq import checkpoint, load
from bsq.activation import quantize_bsq_activations_
from bsq.checkpoint import Saved
from bsq.options import FLOAT_BITS, MAX_BITS, ActOptions, NetOptions
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import Recipe, flip_share, from_timm
from lowbit.data.supervised import supervised_recipes
from lowbit.errors import InputError
from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.create import check_arch, create_model, create_pretrained, picture_settings
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.models.surgery import replace_, run_blank
from lowbit.options import RunOptions
from lowbit.quant.activations import QuantActivation
from lowbit.train.session import Session

STATES = ("best_bin.pth.tar", "best_float.pth.tar", "requantized-*.pth.tar")
FILES = ("log.txt", "report.json", "report.png", "table.md", "demo.png", *STATES)  # beside those of every method

log = logging.getLogger(__name__)


def open_session(options: RunOptions, net: NetOptions, *inputs: Path | None) -> Session:
    """The command's devices and data; `inputs`: files that it reads beside `--model`.

    Raises:
        InputError: see `lowbit.train.session`.
    """
    dtype = torch.float64 if net.float64 else torch.float32
    return Session("bsq", options, net.dataset, (net.model, *inputs), dtype, files=FILES)


def described(net: NetOptions, *groups: Any) -> dict[str, Any]:
    """Entries of `config.json`: `net`, and other option dataclasses under their names."""
    return {**asdict(net), **{type(group).__name__.removesuffix("Options").lower(): asdict(group) for group in groups}}


class Opened(NamedTuple):
    """A command's float net before its weights are loaded.

    Attributes:
        model: the net, with activation quantizers where the command has them.
        saved: what `--model` holds.
        recipes: preparation of pictures for training and evaluation.
        facts: what checkpoints say of the net and its pictures.
    """

    model: nn.Module
    saved: Saved | None
    recipes: tuple[Recipe, Recipe]
    facts: dict[str, Any]

    def header(self, model: nn.Module) -> dict[str, Any]:
        """The entries of every checkpoint of a net that came of this one."""
        return checkpoint.header(model, **self.facts)


def open_net(session: Session, net: NetOptions, acts: ActOptions | None = None, required: bool = False) -> Opened:
    """Read `--model`, open the evaluated set (with `--download` both are fetched), make the net.

    Raises:
        InputError: see `read_model`, `create` and `quantize_chosen_activations_`; the dataset cannot be read, a limit
            is larger than it, or the net does not take pictures of --image-size.
    """
    saved = read_model(net, required)
    test = session.pictures("test")
    model = create(session, net, saved, len(test.classes))
    pictures = None if saved is None else saved.pictures
    if pictures is None and session.options.pretrained:
        pictures = picture_settings(model)
    recipes = recipes_of(net, pictures, model)
    shown = recipes[1].geometry.size(*(test.size if isinstance(test, MemoryPictures) else (0, 0)))
    if net.image_size not in (None, shown[0]):
        shown = (net.image_size, net.image_size)
        run_blank(model, (3, *shown), setting="--image-size", values=False)
        pictures = pretrained_cfg(recipes[1], (3, *shown))
        recipes = recipes_of(net, pictures, model)
    if acts is not None:
        quantize_chosen_activations_(model, acts, saved)
    facts = {"arch": net.arch, "classes": len(test.classes), "dataset": net.dataset, "pictures": pictures}
    facts["pretrained_cfg"] = pretrained_cfg(recipes[1], [3, *shown], test.classes)
    return Opened(model, saved, recipes, {**facts, "input_size": [3, *shown]})


def recipes_of(net: NetOptions, pictures: dict[str, Any] | None, model: nn.Module) -> tuple[Recipe, Recipe]:
    """Training's and evaluation's pictures: by timm's configuration `pictures`, else the data set's, else the net's."""
    own = supervised_recipes(net.dataset) if pictures is None else None
    return own or from_timm(pictures or picture_settings(model), flip_share(net.dataset))


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


def create(session: Session, net: NetOptions, saved: Saved | None, classes: int) -> nn.Module:
    """The float net of `--arch`; timm's weights with `--pretrained`, else as the session's seed draws it.

    Raises:
        InputError: another number of classes than the checkpoint's, or timm's weights cannot be fetched.
    """
    arch, pretrained = str(net.arch), session.options.pretrained and saved is None
    if saved is not None and saved.form != "float" and saved.classes not in (None, classes):
        both = f"{net.model} is a net of {saved.classes} classes, --dataset {net.dataset} has {classes}"
        raise InputError(f"{both}: choose the dataset it was trained on")
    return create_pretrained(arch, classes) if pretrained else create_model(arch, num_classes=classes)


def quantize_chosen_activations_(model: nn.Module, acts: ActOptions, saved: Saved | None = None) -> nn.Module:
    """The activation quantizers of the options.

    A net that the authors never had keeps those of its checkpoint, at the bits and range of the options, unless the
    options say which.

    Raises:
        InputError: a pattern that matches nothing.
    """
    if acts.bits > MAX_BITS:
        log.info("--act %d: activations stay float, as with 0 (%d to %d bits)", acts.bits, MAX_BITS + 1, FLOAT_BITS)
    elif acts.bits and acts.range == "batch":
        log.info("activation ranges are each batch's, the authors' way (--act-range batch); bsq export fixes them")
    silent = acts.clip is None and not acts.include and not acts.exclude and not isinstance(model, CifarResNet)
    made = saved.activations if saved is not None and silent else None
    if made or (made is not None and saved is not None and saved.form != "float"):
        bits = acts.bits if acts.bits <= MAX_BITS else 0
        return replace_(model, {n: QuantActivation(replace(c, bits=bits, range=acts.range)) for n, c in made.items()})
    places: dict[str, Any] = {"include": acts.include or None, "exclude": acts.exclude}
    return quantize_bsq_activations_(model, acts.bits, clip=acts.clip, range=acts.range, **places)


def read_bits(net: NetOptions) -> tuple[nn.Module, Saved, dict[str, Any]]:
    """The net in bits that `report` and `export` are given, and how to build it again (`lowbit.export.packed`).

    Raises:
        InputError: not a checkpoint of bits, or of another net.
    """
    saved = read_model(net, required=True)
    assert saved is not None
    load.need_bits(saved)
    model: Any = load.build(saved, net.arch)
    size = saved.input_size or picture_settings(model)["input_size"]
    told = {"pretrained_cfg": saved.weights.said["pretrained_cfg"]} if "pretrained_cfg" in saved.weights.said else {}
    facts = {"args": {"num_classes": model.num_classes}, "pictures": saved.pictures, "input_size": list(size), **told}
    return model, saved, {"method": "bsq", "arch": net.arch or saved.arch, **facts}
