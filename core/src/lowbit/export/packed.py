"""Packed files: codes at their own bits, scales and what stays float, in one safetensors file that rebuilds the net.

The file has two entries, `codes` (uint8, all bit streams one after the other, each on a byte border) and `floats`
(scales, then the plain net's other float tensors), and one metadata key, a JSON string. One entry per tensor would
cost 3 % of the file at 8 bits and 12 % at 1; several metadata keys are written in random order.
Integer buffers (batch norm's step counter) are not kept.
"""

import json
import zlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.export.bitstream import pack, packed_bytes, unpack
from lowbit.files import replace_file
from lowbit.models.create import create_model
from lowbit.models.surgery import replace_
from lowbit.quant.activations import ActivationConfig, QuantActivation, quantizers
from lowbit.quant.layers import Codes, quantized_layers, to_plain_

KEY, FORMAT = "lowbit.packed", 1
MAX_STORED = 32  # bits of a code
ARGUMENTS = {"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"}


@torch.no_grad()
def save_packed(model: nn.Module, path: Path | str, recipe: Mapping[str, Any]) -> int:
    """Write a net of quantized layers (any method's) to one file.

    Args:
        model: as evaluated; unchanged.
        path: file to write or replace.
        recipe: plain values; `arch` (timm name) and `args` (of timm.create_model, such as num_classes) rebuild the net,
            the rest is kept for the reader (preparation of pictures, method, accuracy).

    Returns:
        Bytes written.

    Raises:
        InputError: nothing is quantized, the recipe does not rebuild this net, or the file cannot be written.
    """
    coded = _coded(model)
    if not coded:
        raise InputError("the net has no quantized layer, so there is nothing to pack: convert it first")
    plain = to_plain_(deepcopy(model)).state_dict()
    floats = {key: t for key, t in plain.items() if t.is_floating_point() and key not in coded}
    values = [tensor.scale.flatten() for tensor in coded.values()] + [t.flatten() for t in floats.values()]
    if len({t.dtype for t in values}) > 1:
        raise InputError("the net's tensors have several float types; give them one (model.float()) before packing")
    streams = b"".join(pack(tensor.codes, tensor.bits) for tensor in coded.values())
    tensors = {
        "codes": torch.frombuffer(bytearray(streams), dtype=torch.uint8)
        if streams
        else torch.zeros(0, dtype=torch.uint8),
        "floats": torch.cat(values).cpu(),
    }
    head = {
        "format": FORMAT,
        "recipe": dict(recipe),
        "coded": {key: _describe(tensor) for key, tensor in coded.items()},
        "activations": _activations(model),
        "shapes": _digest({key: t for key, t in plain.items() if t.is_floating_point()}),
    }
    head["crc"] = _checksum(head, tensors)
    _rebuild(head, path)  # a recipe that does not lead back here is found now
    data = save(tensors, {KEY: json.dumps(head, separators=(",", ":"))})
    replace_file(Path(path), data)
    return len(data)


@torch.no_grad()
def load_packed(path: Path | str) -> nn.Module:
    """The net of a packed file, in evaluation mode: plain layers holding exactly the packed net's weights.

    Raises:
        InputError: not a packed file, damaged, or of a net that is not known here.
    """
    head, tensors = _read(Path(path))
    model = _rebuild(head, path).to(tensors["floats"].dtype)
    state = model.state_dict()
    floats, streams = tensors["floats"], tensors["codes"].numpy().tobytes()
    try:
        at = 0
        codes: dict[str, Codes] = {}
        for key, said in head["coded"].items():
            shape = said.get("scale", [])
            scale, floats = _take(floats, shape)
            zero = torch.tensor(said.get("zero", 0), dtype=torch.int32).reshape(shape or ())
            bits, signed, count = said["bits"], said.get("signed", True), state[key].numel()
            if bits not in range(MAX_STORED + 1):
                raise ValueError(f"{key} has {bits} bits")
            length = packed_bytes(count, bits)
            flat = unpack(streams[at : at + length], count, bits, signed)
            at += length
            codes[key] = Codes(flat.reshape(state[key].shape), scale, zero, bits, signed)
        for key, old in state.items():
            if key in codes:
                old.copy_(codes[key].values())
            elif old.is_floating_point():
                value, floats = _take(floats, old.shape)
                old.copy_(value)
        if at != len(streams) or floats.numel():
            raise ValueError("tensors are left over")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; export it again") from error
    return model.eval()


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe of a packed file.

    Raises:
        InputError: not a packed file, or damaged.
    """
    recipe: dict[str, Any] = _read(Path(path))[0]["recipe"]
    return recipe


def _coded(model: nn.Module) -> dict[str, Codes]:
    """{key in the plain net's state dict: codes}."""
    coded: dict[str, Codes] = {}
    for name, layer in quantized_layers(model):
        prefix, bias = f"{name}." if name else "", layer.bias_codes()
        coded[f"{prefix}weight"] = layer.weight_codes()
        if bias is not None:
            coded[f"{prefix}bias"] = bias
    return coded


def _describe(tensor: Codes) -> dict[str, Any]:
    """Bits, and whatever differs from a signed code with one scale and no zero point."""
    said: dict[str, Any] = {"bits": tensor.bits}
    if not tensor.signed:
        said["signed"] = False
    if tensor.scale.dim():
        said["scale"] = list(tensor.scale.shape)
    if bool(tensor.zero_point.any()):
        said["zero"] = tensor.zero_point.expand_as(tensor.scale).flatten().tolist()
    return said


def _activations(model: nn.Module) -> list[list[Any]]:
    """[[configuration, [names]], ...]: most nets have one configuration for all."""
    groups: dict[ActivationConfig, list[str]] = {}
    for name, quantizer in quantizers(model).items():
        groups.setdefault(quantizer.config, []).append(name)
    return [[asdict(config), names] for config, names in groups.items()]


def _digest(floats: Mapping[str, Tensor]) -> str:
    """Of the float tensors' names and shapes: two nets of one arch name may differ (another timm)."""
    text = json.dumps([[key, list(t.shape)] for key, t in floats.items()])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _checksum(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    said = {key: value for key, value in head.items() if key != "crc"}
    crc = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for name in ("codes", "floats"):
        crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().tobytes(), crc)
    return crc


def _take(floats: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
    """The next tensor of that shape, and the rest."""
    count = int(torch.Size(shape).numel())
    if count > floats.numel():
        raise ValueError("it ends too early")
    return floats[:count].reshape(tuple(shape)), floats[count:]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a packed file")
    try:
        with safe_open(str(path), "pt") as file:
            said = (file.metadata() or {}).get(KEY)
            if said is None:
                raise InputError(f"{path} is not a packed file of lowbit: it lacks the entry {KEY}; give another file")
            tensors = {name: file.get_tensor(name) for name in ("codes", "floats")}
        head = json.loads(said)
        if head["format"] != FORMAT:
            raise InputError(f"{path} has packed format {head['format']}; this version reads {FORMAT}: update lowbit")
        if head["crc"] != _checksum(head, tensors):
            raise ValueError("its checksum is wrong")
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no packed file: {reason}; export it again") from error
    return head, tensors


def _rebuild(head: Mapping[str, Any], path: Path | str) -> nn.Module:
    """The plain net of the recipe with its activation quantizers, weights not yet set."""
    try:
        recipe = head["recipe"]
        arch, arguments = recipe["arch"], dict(recipe.get("args", {}))
        unknown = set(arguments) - ARGUMENTS
        if unknown or not isinstance(arch, str):
            raise InputError(f"recipe of {path}: {sorted(unknown) or arch!r} is not allowed; {sorted(ARGUMENTS)} are")
        model = create_model(arch, **arguments)
        for config, names in head["activations"]:
            replace_(model, {name: QuantActivation(ActivationConfig(**config)) for name in names})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"recipe of {path} is damaged: {type(error).__name__} {error}; export it again") from error
    if _digest({key: t for key, t in model.state_dict().items() if t.is_floating_point()}) != head["shapes"]:
        raise InputError(
            f"the recipe of {path} builds another net than the one packed: check arch {arch} and {arguments}"
        )
    return model
