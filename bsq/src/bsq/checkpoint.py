"""What a checkpoint of BSQ says, ours or the authors', and what ours say.

Files are read by content: in bit or finetune form with or without the authors' `module.`, with or without `Nbit_dict`
(planes show their width); float weights out of any file (`lowbit.models.weights`). Ours also say which net they are of
and how its activations are quantized.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from bsq.bit_layer import BIAS, WEIGHT
from bsq.network import bit_layers, check_widths, nbit_dict
from bsq.options import MAX_BITS
from bsq.planes import is_dead
from lowbit.checkpoint.check import kind, unwrapped_state
from lowbit.checkpoint.header import Header, Pictures, read_header, stated_figures
from lowbit.errors import InputError
from lowbit.models.layouts import resnet_of
from lowbit.models.surgery import of_kind
from lowbit.models.weight_file import Weights, read_weights
from lowbit.quant.activations import ActivationConfig, QuantActivation

FORMAT = 2  # 2: binary planes as bits (`lowbit.checkpoint.binary`)
PREFIX = "module."  # the authors', in files
FLOORS = "min_bits"
Quantizer = Annotated[ActivationConfig, BeforeValidator(lambda said: ActivationConfig(**said))]


class BitHeader(Header):
    """What ours say: also the quantizers of activations, timm's data configuration, and floors of bits by layer."""

    activations: dict[str, Quantizer] | None = None
    pictures: Pictures | None = None
    min_bits: dict[str, Annotated[int, Field(strict=True, ge=1, le=MAX_BITS)]] | None = None


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: keys as in the net (no `module.`). form: "float", "bit" or "finetune".
        widths: `Nbit_dict`; empty where there is none.
        arch: timm name, classes: size of the last layer; None where neither the file nor its keys tell.
        activations: {module: what its quantizer does}; None: the file does not say (the authors').
        pictures: timm's data configuration the net was trained with; None: that of the dataset.
        input_size: (C, H, W) of its pictures; None: the file does not say.
        floors: fewest bits by layer, of the bit training it comes from (`--min-bits`).
        weights: the file.
    """

    state: dict[str, Tensor]
    form: str
    widths: dict[str, tuple[int, int]]
    arch: str | None
    classes: int | None
    activations: dict[str, ActivationConfig] | None
    pictures: dict[str, Any] | None
    input_size: tuple[int, int, int] | None
    floors: dict[str, int]
    weights: Weights

    @property
    def top1(self) -> float | None:
        """Accuracy of this very net, in percent; None: the file does not say it."""
        return stated_figures(self.weights.content).get("top1")


def parse(weights: Weights) -> Saved | None:
    """The content of a checkpoint, or None if it is none of BSQ's (and no plain state dict).

    Raises:
        InputError: widths that are no widths, or a finetune form without its widths.
    """
    checkpoint = weights.content
    said = read_header(checkpoint, "bsq", FORMAT, BitHeader)
    if said is None and "package" in checkpoint:
        return None
    state = unwrapped_state(checkpoint)
    if state is None:
        return None
    form, shown = _form(state)
    given = checkpoint.get("Nbit_dict")
    if given is None and form == "finetune":
        raise InputError("the checkpoint is in finetune form without an Nbit_dict, so its widths are unknown")
    widths = check_widths(shown if given is None else given)
    for name in [name for name in widths if form == "bit" and _is_dead(state, name)]:
        widths[name] = (0, widths[name][1])
    if said is None:
        arch = weights.arch if weights.ours else _cifar_arch(state)
        return Saved(state, form, widths, arch, _classes(state), None, None, None, {}, weights)
    pictures, floors = said.pictures.model_dump() if said.pictures else None, said.min_bits or {}
    facts = (said.classes, said.activations, pictures, said.input_size, floors)
    return Saved(state, form, widths, said.arch, *facts, weights)


def read(path: Path) -> Saved:
    """Read a file: a checkpoint of BSQ, or float weights of any other kind.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    weights = read_weights(path)
    try:
        saved = parse(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if saved is not None:
        return saved
    return Saved({}, "float", {}, weights.arch if weights.ours else None, None, None, None, None, {}, weights)


def _form(state: Mapping[str, Tensor]) -> tuple[str, dict[str, list[int]]]:
    """Form, and the widths that planes show."""
    names = [key.removesuffix(f".{WEIGHT.p}") for key in state if key.endswith(f".{WEIGHT.p}")]
    if names:
        width = {key: value.shape[-1] for key, value in state.items() if value.dim()}
        return "bit", {name: [width[f"{name}.{WEIGHT.p}"], width.get(f"{name}.{BIAS.p}", 0)] for name in names}
    heads = [key.removesuffix(".scale") for key in state if key.endswith(".scale")]
    latent = any(f"{name}.weight" in state and state[f"{name}.scale"].numel() == 1 for name in heads)
    return ("finetune" if latent else "float"), {}


def _is_dead(state: Mapping[str, Tensor], name: str) -> bool:
    """Whether a layer's planes hold nothing: the authors' files count one of them."""
    held = [state[key] for key in (f"{name}.{WEIGHT.p}", f"{name}.{WEIGHT.n}") if key in state]
    return len(held) == 2 and all(kind(tensor) == "floats" for tensor in held) and is_dead(*held)


def _cifar_arch(state: Mapping[str, Tensor]) -> str | None:
    """The authors' ResNet whose keys these are."""
    arch = resnet_of(state)
    return arch if arch is not None and arch.endswith("_1x1") else None


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """Rows of `fc`, the last layer of the authors' nets and of timm's ResNets."""
    found = next((state[key] for key in (f"fc.{WEIGHT.p}", "fc.weight") if key in state), None)
    return None if found is None else found.shape[0]


def header(model: nn.Module, **facts: Any) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`: whose it is, activations, widths, and `facts`."""
    configs = {name: asdict(quantizer.config) for name, quantizer in of_kind(model, QuantActivation).items()}
    widths = {"Nbit_dict": nbit_dict(model)} if bit_layers(model) else {}
    return {"format": FORMAT, "package": "bsq", **facts, "activations": configs, **widths}


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A net's tensors for a file: on the CPU, floats in single precision, under the authors' keys."""
    tensors = {PREFIX + key: value.detach().cpu() for key, value in model.state_dict().items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
