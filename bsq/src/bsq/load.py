"""Nets out of checkpoints of BSQ, ours and the authors': floats, bits, the quantizers of activations."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bsq.activation import quantize_bsq_activations_
from bsq.checkpoint import Saved, parse
from bsq.network import load_bits_, to_bits_
from lowbit.errors import InputError
from lowbit.models.create import check_size, create_model
from lowbit.models.surgery import of_kind, replace_
from lowbit.models.weight_file import Weights
from lowbit.models.weights import branch_of, load_
from lowbit.quant.activations import QuantActivation

NUMBERS = 8  # of a net for each of its file: layers of 0 bits hold none
DEFAULT_ACT = 4  # of the authors' programs; their files do not say


def load_float_(model: nn.Module, saved: Saved, new_head: bool = False) -> nn.Module:
    """Load float weights; alphas and ranges of activations that the file lacks stay the net's own.

    Args:
        model: a timm net with its classifier, activations quantized or not.
        saved: of the file.
        new_head: a classifier that the file lacks, or has for other classes, stays as the net has it.

    Raises:
        InputError: bits instead of floats, another net, or activations that the net does not have.
    """
    if saved.form != "float":
        name = f"{saved.weights.name} is in {saved.form} form"
        raise InputError(f"{name}, and float weights are needed: use cifar_finetune --evaluate")
    branch = branch_of(saved.weights, model)
    _check_alphas(branch.state, model, saved.weights.name, may_lack=True)
    branch = branch._replace(state=with_ranges(branch.state, model))

    def may_lack(key: str) -> bool:
        return key.endswith((".alpha", ".largest"))

    load_(model, saved.weights, branch, new_head=new_head, may_lack=may_lack)
    return model


def need_bits(saved: Saved) -> None:
    """Refuse float weights.

    Raises:
        InputError: what to do with them.
    """
    if saved.form == "float":
        raise InputError(f"{saved.weights.name} holds float weights, and bits are needed: run convert on it first")


def load_planes_(model: nn.Module, saved: Saved) -> nn.Module:
    """Load bit or finetune form into a float net (activations already quantized), which takes over the form.

    Raises:
        InputError: floats instead of bits, another net, or activations of another type.
    """
    need_bits(saved)
    _check_alphas(saved.state, model, saved.weights.name)
    missing = [name for name in saved.widths if name not in dict(model.named_modules())]
    if missing:
        raise InputError(f"{saved.weights.name} does not fit the net, which has no layer {missing[0]!r}; check --arch")
    to_bits_(model, 1, include=list(saved.widths), exclude=())
    try:
        return load_bits_(model, with_ranges(saved.state, model), saved.widths)
    except InputError as error:
        raise InputError(f"{saved.weights.name}: {error}; check --arch and --dataset") from error


def with_ranges(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` with exactly the calibrated ranges that `model` has; where it lacks one, the model's own (0: not set)."""
    room = {key: value for key, value in model.state_dict().items() if key.endswith(".largest")}
    kept = {key: value for key, value in state.items() if not key.endswith(".largest") or key in room}
    return {**room, **kept}


def _check_alphas(state: Mapping[str, Tensor], model: nn.Module, name: str, may_lack: bool = False) -> None:
    """Refuse a net whose PACT activations are not those of the file."""
    theirs = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    ours = {name for name, quantizer in of_kind(model, QuantActivation).items() if quantizer.alpha is not None}
    if theirs - ours:
        which = f"{min(theirs - ours)}.alpha"
        raise InputError(f"{name} was made with PACT activations ({which}): use --act 1 to 3, or --act-clip pact")
    if ours - theirs and not may_lack:
        raise InputError(
            f"{name} was not made with PACT activations (no {min(ours - theirs)}.alpha): use --act 4 or more (or "
            "--act-clip 6), or run convert with this --act on the float net first"
        )


def check_activations(saved: Saved, model: nn.Module) -> None:
    """Refuse to evaluate bits behind other activation functions than those they were made with.

    Raises:
        InputError: the first quantizer that differs, and what to do.
    """
    _check_alphas(saved.state, model, saved.weights.name)
    if saved.activations is None:
        return
    ours = {name: quantizer.config.function for name, quantizer in of_kind(model, QuantActivation).items()}
    theirs = {name: config.function for name, config in saved.activations.items()}
    for name in [*theirs, *ours]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"{saved.weights.name} was made with activation {theirs.get(name, 'float')} at {name}, this run has "
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
    unknown = set(saved.activations) - set(dict(model.named_modules()))
    if unknown:
        raise InputError(f"the checkpoint quantizes {min(unknown)!r}, which its net does not have; name another file")
    return replace_(model, {name: QuantActivation(config) for name, config in saved.activations.items()})


def build(saved: Saved, arch: str | None = None) -> nn.Module:
    """The net of a checkpoint, in evaluation mode.

    Raises:
        InputError: it does not say which net it is, or the weights do not fit it.
    """
    size: dict[str, Any] = {} if saved.classes is None else {"num_classes": saved.classes}
    name = saved.weights.choose_arch(arch, saved.arch)
    numbers = sum(value.numel() for value in saved.weights.tensors.values())
    check_size(lambda: create_model(name, **size), NUMBERS * numbers)
    model = restore_activations_(create_model(name, **size), saved)
    load = load_float_ if saved.form == "float" else load_planes_
    return load(model, saved).eval()


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
