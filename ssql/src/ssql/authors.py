"""The layout of the authors' checkpoints: read by content, and written back.

Without a quantized branch their keys are ours: `encoder_q.<timm key>`, `predictor.*`, `encoder_k.*`, `queue`. With one
the encoder is `encoder_q.model.<layer>`; the batch norm behind a layer is its `bn_function`, a shortcut's convolution
has the name of its branch (`downsample`), each layer has an alias of its weight, layers and blocks have ranges.

Their files do not say which net they are of: the keys say it. Only ResNets are read and written.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from timm import is_model
from torch import Tensor, nn

from lowbit.checkpoint.check import behind, check_kinds, unwrapped_state
from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.heads import end_like_
from lowbit.models.layouts import blocks_of, resnet_of
from lowbit.quant.bitwidths import activations
from ssql.bit_policy import derive_policy, quantize_encoder_, short
from ssql.config import Quant

ENCODER, WRAPPED, LINEAR = "encoder_q.", "encoder_q.model.", "model."
OUTPUT = ".output_quantizer.observer."
NETS = ["cifar_resnet18", "cifar_resnet34", "cifar_resnet50", "resnet18", "resnet34", "resnet50", "resnet101"]


class Theirs(NamedTuple):
    """An encoder of theirs: `state` with timm's keys, the last `ranges` by layer or block, `wrapped`: with bits."""

    state: dict[str, Tensor]
    ranges: dict[str, dict[str, Tensor]]
    wrapped: bool


def parse(checkpoint: Mapping[str, Any]) -> Theirs | None:
    """The encoder of a checkpoint of theirs (of `ssl`, or of `linear` with its classifier); None if it is none."""
    state, arch = unwrapped_state(checkpoint), checkpoint.get("arch")
    if isinstance(arch, str) and not is_model(arch):
        return None  # their names are timm's or this house's; `us_resnet18` is another method's
    if state is None:
        return None
    for prefix in (WRAPPED, ENCODER, LINEAR):
        inner = behind(state, prefix)
        if "conv1.weight" in inner:
            break
    else:
        return None
    wrapped = any(".bn_function." in key for key in inner)
    if not wrapped:
        return Theirs(inner, {}, False) if prefix == ENCODER else None
    found, ranges = Theirs({}, {}, True), dict[str, dict[str, Tensor]]()
    for key, value in inner.items():
        if OUTPUT in key:
            name, _, end = key.partition(OUTPUT)
            ranges.setdefault(name, {})[end] = value
        elif ".weight_quantizer." not in key:
            found.state[_timm_key(key)] = value
    return found._replace(ranges=ranges)


def _timm_key(key: str) -> str:
    """`layer1.0.conv1.bn_function.bias` -> `layer1.0.bn1.bias`."""
    layer, _, rest = key.rpartition(".")
    of_norm = layer.endswith(".bn_function")
    layer = layer.removesuffix(".bn_function")
    layer = f"{layer}.0" if layer.endswith("downsample") else layer
    return f"{norm_of(layer) if of_norm else layer}.{rest}"


def norm_of(layer: str) -> str:
    """The batch norm behind a layer of a ResNet or of a projector: `conv2` -> `bn2`, `fc.3` -> `fc.4`."""
    head, dot, last = layer.rpartition(".")
    return head + dot + (str(int(last) + 1) if last.isdigit() else last.replace("conv", "bn"))


def arch_of(state: Mapping[str, Tensor]) -> str:
    """The ResNet whose keys these are.

    Raises:
        InputError: none that is known.
    """
    arch = resnet_of(state)
    if arch not in NETS:
        raise InputError(f"the checkpoint's net has {blocks_of(state)} blocks, which is none of the authors' ResNets")
    return arch


def build(theirs: Theirs) -> nn.Module:
    """Their encoder as a timm net, its projector (or classifier) in place; quantized layers where theirs has them.

    Raises:
        InputError: none of their nets, or tensors that do not fit.
    """
    state, arch = theirs.state, arch_of(theirs.state)
    size = (3, 32, 32) if arch.startswith("cifar") else (3, 224, 224)
    try:
        encoder = end_like_(create_model(arch, num_classes=1), state)
        if theirs.wrapped:
            follows = derive_policy(encoder, size).follows
            quantize_encoder_(encoder, Quant(), size)
            state = state | dict(_observed(encoder, theirs.ranges, follows))
        check_kinds(state, encoder.state_dict())
        encoder.load_state_dict(state)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the checkpoint's tensors are not those of a {arch} of SSQL's authors: {reason}") from error
    return encoder


def _observed(
    encoder: nn.Module, ranges: Mapping[str, Mapping[str, Tensor]], follows: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """The entries of our observers: theirs where the file has them, else as they are."""
    for name, activation in activations(encoder).items():
        own = {key: value.clone() for key, value in activation.observer.state_dict().items()}
        given = ranges.get(follows[name], {})
        if {"min_val", "max_val"} <= set(given):
            own |= {"low": given["min_val"].float(), "high": given["max_val"].float()}
            own["seen"].fill_(1)
        yield from ((f"{name}.observer.{key}", value) for key, value in own.items())


def follows_of(arch: str, size: tuple[int, int, int]) -> dict[str, str]:
    """{activation module: the layer or block that it is called by} of a net, for `to_authors`."""
    return dict(derive_policy(create_model(arch, num_classes=1), size).follows)


def to_authors(state: Mapping[str, Tensor], follows: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """A `state_dict` of our checkpoints in the authors' layout.

    Args:
        state: keys as in the file.
        follows: of `follows_of`; None: no ranges of activations are written but zeros, which theirs makes again anyway.

    Raises:
        InputError: a quantized net that is no ResNet, whose layout is not known.
    """
    inner = behind(state, ENCODER)
    others = {k: v for k, v in state.items() if not k.startswith(ENCODER) and ".observer." not in k}
    if not any(".observer." in key for key in inner):
        return {ENCODER + key: value for key, value in inner.items()} | others
    ranges = {called: f"{module}.observer" for module, called in (follows or {}).items()}
    layers = [
        key.removesuffix(".weight") for key, value in inner.items() if value.dim() > 1 and key.endswith(".weight")
    ]
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for number, layer in enumerate(layers):
        for key in (f"{layer}.weight", f"{layer}.bias", *(k for k in inner if k.startswith(f"{norm_of(layer)}."))):
            if key in inner:
                used.add(key)
                of_norm = "" if key.startswith(f"{layer}.") else ".bn_function"
                out[f"{short(layer)}{of_norm}.{key.rpartition('.')[2]}"] = inner[key]
        rows = inner[f"{layer}.weight"].flatten(1)
        out[f"{short(layer)}.weight_quantizer.weight"] = inner[f"{layer}.weight"]
        out[f"{short(layer)}.weight_quantizer.observer.min_val"] = rows.amin(1)
        out[f"{short(layer)}.weight_quantizer.observer.max_val"] = rows.amax(1)
        out |= _range(short(layer), ranges, inner, rows)
        block = ".".join(layer.split(".")[:2])
        later = layers[number + 1] if number + 1 < len(layers) else ""
        if layer.startswith("layer") and not later.startswith(f"{block}."):
            out |= _range(block, ranges, inner, rows)
    left = [key for key in inner if key not in used and ".observer." not in key]
    if left or "conv1.weight" not in inner:
        raise InputError(f"the authors' layout is known for ResNets alone, and this net has {(left or layers)[0]!r}")
    return {WRAPPED + key: value for key, value in out.items()} | others


def _range(
    name: str, ranges: Mapping[str, str], inner: Mapping[str, Tensor], like: Tensor
) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in (("low", "min_val"), ("high", "max_val")):
        yield f"{name}{OUTPUT}{theirs}", inner.get(f"{ranges.get(name, '')}.{ours}", like.new_zeros(()))
