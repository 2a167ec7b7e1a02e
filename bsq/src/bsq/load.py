"""Checkpoints of BSQ, ours and the authors', to nets and back.

Files are read by content: in bit or finetune form with or without the authors' `module.`, with or without `Nbit_dict`
(planes show their width); float weights out of any file (`lowbit.models.weights`). Ours also say which net they are of
and how its activations are quantized.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from bsq.activation import quantize_bsq_activations_
from bsq.forms import BIAS, WEIGHT
from bsq.network import bit_layers, check_widths, load_bits_, nbit_dict, to_bits_
from bsq.options import MAX_BITS
from lowbit.checkpoint.check import check_kinds
from lowbit.data.recipe import from_timm
from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.layouts import resnet_of
from lowbit.models.surgery import of_kind, replace_
from lowbit.models.weights import Weights, branch_of, load_, read_weights
from lowbit.quant.activations import ActivationConfig, QuantActivation

FORMAT = 1
PREFIX = "module."  # the authors', in files
FLOORS = "min_bits"
MAX_SIDE = 4096  # of pictures, in pixels
DEFAULT_ACT = 4  # of the authors' programs; their files do not say


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: keys as in the net (no `module.`). form: "float", "bit" or "finetune".
        widths: `Nbit_dict`; empty where there is none.
        arch: timm name, classes: size of the last layer; None where neither the file nor its keys tell.
        activations: {module: arguments of ActivationConfig}; None: the file does not say (the authors').
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
    activations: dict[str, dict[str, Any]] | None
    pictures: dict[str, Any] | None
    input_size: tuple[int, int, int] | None
    floors: dict[str, int]
    weights: Weights


def parse(weights: Weights) -> Saved | None:
    """The content of a checkpoint, or None if it is none of BSQ's (and no plain state dict).

    Raises:
        InputError: widths that are no widths, or a finetune form without its widths.
    """
    checkpoint = weights.content
    found = checkpoint.get("state_dict", checkpoint)
    if checkpoint.get("package", "bsq") != "bsq" or not isinstance(found, Mapping) or not found:
        return None
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        return None
    state = {key.removeprefix(PREFIX): value for key, value in found.items()}
    form, shown = _form(state)
    given = checkpoint.get("Nbit_dict")
    if given is None and form == "finetune":
        raise InputError("the checkpoint is in finetune form without an Nbit_dict, so its widths are unknown")
    widths = check_widths(shown if given is None else given)
    arch = weights.arch if weights.ours else _cifar_arch(state)
    classes = checkpoint.get("classes") or _classes(state)
    return Saved(state, form, widths, arch, classes, *_told(checkpoint), weights)


def _told(checkpoint: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Activations, timm's data configuration, picture size and floors, as far as the file says.

    Raises:
        InputError: of a later version, or not what we write.
    """
    version = checkpoint.get("format", FORMAT)
    if type(version) is not int or version > FORMAT:
        raise InputError(f"the checkpoint has format {version}, this version reads {FORMAT}: update lowbit-bsq")
    activations, pictures, size = (checkpoint.get(name) for name in ("activations", "pictures", "input_size"))
    floors = checkpoint.get(FLOORS) or {}
    try:
        for config in (activations or {}).values():
            ActivationConfig(**config)
        if pictures is not None:
            from_timm(pictures)
        whole = size is None or (len(size) == 3 and all(type(side) is int and 0 < side <= MAX_SIDE for side in size))
        if not whole or not all(type(bits) is int and 1 <= bits <= MAX_BITS for bits in floors.values()):
            raise ValueError(f"input_size {size}, {FLOORS} {floors}")
        return activations, pictures, None if size is None else tuple(size), floors
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint's description of its net is damaged ({reason}); name another file") from error


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


def _cifar_arch(state: Mapping[str, Tensor]) -> str | None:
    """The authors' ResNet whose keys these are."""
    arch = resnet_of(state)
    return arch if arch is not None and arch.endswith("_1x1") else None


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """Rows of `fc`, the last layer of the authors' nets and of timm's ResNets."""
    found = next((state[key] for key in (f"fc.{WEIGHT.p}", "fc.weight") if key in state), None)
    return None if found is None else found.shape[0]


def check_arch(saved: Saved, arch: str | None, path: Path | str) -> str:
    """The architecture to build.

    Raises:
        InputError: the file holds another one than asked for, or nobody says which.
    """
    if arch is None and saved.arch is None and saved.weights.arch is None:
        raise InputError(f"{path} does not say which net it is of: name it with --arch")
    if arch is not None and saved.arch is not None and arch != saved.arch:
        raise InputError(f"{path} holds a {saved.arch}, not the {arch} of --arch: give -a {saved.arch}")
    return str(arch or saved.arch or saved.weights.arch)


def load_float_(model: nn.Module, saved: Saved, path: Path | str, new_head: bool = False) -> nn.Module:
    """Load float weights; alphas and ranges of activations that the file lacks stay the net's own.

    Args:
        model: a timm net with its classifier, activations quantized or not.
        saved: of the file.
        path: the file.
        new_head: a classifier that the file lacks, or has for other classes, stays as the net has it.

    Raises:
        InputError: bits instead of floats, another net, or activations that the net does not have.
    """
    if saved.form != "float":
        raise InputError(f"{path} is in {saved.form} form, and float weights are needed: use cifar_finetune --evaluate")
    branch = branch_of(saved.weights, model)
    _check_alphas(branch.state, model, path, may_lack=True)
    branch = branch._replace(state=with_ranges(branch.state, model))

    def may_lack(key: str) -> bool:
        return key.endswith((".alpha", ".largest"))

    load_(model, saved.weights, branch, new_head=new_head, may_lack=may_lack)
    return model


def need_bits(saved: Saved, path: Path | str) -> None:
    """Refuse float weights.

    Raises:
        InputError: what to do with them.
    """
    if saved.form == "float":
        raise InputError(f"{path} holds float weights, and bits are needed: run convert on it first")


def load_planes_(model: nn.Module, saved: Saved, path: Path | str) -> nn.Module:
    """Load bit or finetune form into a float net (activations already quantized), which takes over the form.

    Raises:
        InputError: floats instead of bits, another net, or activations of another type.
    """
    need_bits(saved, path)
    _check_alphas(saved.state, model, path)
    missing = [name for name in saved.widths if name not in dict(model.named_modules())]
    if missing:
        raise InputError(f"{path} does not fit the net, which has no layer {missing[0]!r}; check --arch")
    to_bits_(model, 1, include=list(saved.widths), exclude=())
    try:
        check_kinds(saved.state, model.state_dict())
        return load_bits_(model, with_ranges(saved.state, model), saved.widths)
    except InputError as error:
        raise InputError(f"{path}: {error}; check --arch and --dataset") from error


def with_ranges(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` with exactly the calibrated ranges that `model` has; where it lacks one, the model's own (0: not set)."""
    room = {key: value for key, value in model.state_dict().items() if key.endswith(".largest")}
    kept = {key: value for key, value in state.items() if not key.endswith(".largest") or key in room}
    return {**room, **kept}


def _check_alphas(state: Mapping[str, Tensor], model: nn.Module, path: Path | str, may_lack: bool = False) -> None:
    """Refuse a net whose PACT activations are not those of the file."""
    theirs = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    ours = {name for name, quantizer in of_kind(model, QuantActivation).items() if quantizer.alpha is not None}
    if theirs - ours:
        raise InputError(
            f"{path} was made with PACT activations ({min(theirs - ours)}.alpha): use --act 1 to 3, or --act-clip pact"
        )
    if ours - theirs and not may_lack:
        raise InputError(
            f"{path} was not made with PACT activations (no {min(ours - theirs)}.alpha): use --act 4 or more (or "
            "--act-clip 6), or run convert with this --act on the float net first"
        )


def check_activations(saved: Saved, model: nn.Module, path: Path | str) -> None:
    """Refuse to evaluate bits behind other activation functions than those they were made with.

    Raises:
        InputError: the first quantizer that differs, and what to do.
    """
    _check_alphas(saved.state, model, path)
    if saved.activations is None:
        return
    ours = {name: quantizer.config.function for name, quantizer in of_kind(model, QuantActivation).items()}
    theirs = {name: config["function"] for name, config in saved.activations.items()}
    for name in [*theirs, *ours]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"{path} was made with activation {theirs.get(name, 'float')} at {name}, this run has "
                f"{ours.get(name, 'float')}: give the --act, --act-clip, --act-include and --act-exclude that it was "
                "converted with, or convert the float net again"
            )


def restore_activations_(model: nn.Module, saved: Saved) -> nn.Module:
    """The quantizers that a file describes; for the authors' files, which do not, their rule at their default --act."""
    if saved.activations is None:
        if saved.form == "float" and not any(key.endswith(".alpha") for key in saved.state):
            return model
        pact = any(key.endswith(".alpha") for key in saved.state)
        return quantize_bsq_activations_(model, DEFAULT_ACT, clip="pact" if pact else "6")
    configs = {name: ActivationConfig(**config) for name, config in saved.activations.items()}
    unknown = set(configs) - set(dict(model.named_modules()))
    if unknown:
        raise InputError(f"the checkpoint quantizes {min(unknown)!r}, which its net does not have; name another file")
    return replace_(model, {name: QuantActivation(config) for name, config in configs.items()})


def build(saved: Saved, path: Path | str = "the checkpoint", arch: str | None = None) -> nn.Module:
    """The net of a checkpoint, in evaluation mode.

    Raises:
        InputError: which net is not told, or the weights do not fit it.
    """
    size = {} if saved.classes is None else {"num_classes": saved.classes}
    model = restore_activations_(create_model(check_arch(saved, arch, path), **size), saved)
    load = load_float_ if saved.form == "float" else load_planes_
    return load(model, saved, path).eval()


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the net, or None if the checkpoint is not BSQ's."""
    weights = Weights("the checkpoint", checkpoint)
    if weights.ours:
        saved = parse(weights)
        return None if saved is None else build(saved)
    try:  # a file that does not say whose it is may be the authors', or another method's with similar keys
        saved = parse(weights)
        return None if saved is None or saved.arch is None else build(saved)
    except InputError:
        return None


def header(model: nn.Module, **facts: Any) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`: whose it is, activations, widths, and `facts`."""
    configs = {name: asdict(quantizer.config) for name, quantizer in of_kind(model, QuantActivation).items()}
    widths = {"Nbit_dict": nbit_dict(model)} if bit_layers(model) else {}
    return {"format": FORMAT, "package": "bsq", **facts, "activations": configs, **widths}


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A net's tensors for a file: on the CPU, floats in single precision, under the authors' keys."""
    tensors = {PREFIX + key: value.detach().cpu() for key, value in model.state_dict().items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
