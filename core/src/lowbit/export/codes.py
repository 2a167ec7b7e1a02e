"""A file of codes: quantized tensors at their own bits, float tensors, and a head that says how to read them.

A safetensors file with two entries, `codes` (uint8, all bit streams one after the other, each on a byte border) and
`floats` (scales, then what stays float), and one metadata key, the head as a JSON string. One entry per tensor would
cost 3 % of the file at 8 bits and 12 % at 1; several metadata keys are written in random order.

Format 2 writes zero points of halves, and one number where all are equal. Format 1 (release 0.1.0) is read, too.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lowbit.checkpoint.budget import parse_json
from lowbit.checkpoint.check import kind
from lowbit.checkpoint.read import METADATA, read_safetensors
from lowbit.errors import InputError
from lowbit.export.bitstream import pack, packed_bytes, unpack
from lowbit.files import replace_file
from lowbit.models.weight_file import PACKED
from lowbit.quant.layers import Codes, Grid

KEY, FORMAT = PACKED, 2
MAX_STORED = 32  # bits of a code
Tensors = Mapping[str, Tensor]


def write_codes(path: Path, head: Mapping[str, Any], coded: Mapping[str, Codes], floats: Tensors) -> int:
    """Write or replace a file; returns its bytes.

    Args:
        path: of the file.
        head: plain values, without the entries `format`, `coded` and `crc`.
        coded: quantized tensors; those without scales of their own share nothing with each other.
        floats: the others, of the scales' dtype.

    Raises:
        InputError: codes beyond their bits, zero points that are no multiples of 1/2, or several float types.
    """
    said, streams, values = {}, [], []
    for key, tensor in coded.items():
        said[key], scale = _describe(key, tensor)
        values.append(scale.flatten())
        try:
            streams.append(pack(tensor.codes, tensor.grid.bits, tensor.grid.signed))
        except ValueError as error:
            raise InputError(f"{key}: {error}: this layer's bits or its sign are wrong") from error
    values += [t.flatten() for t in floats.values()]
    if len({t.dtype for t in values}) > 1:
        raise InputError("the net's tensors have several float types; give them one (model.float()) before packing")
    if not all(bool(torch.isfinite(t).all()) for t in values):
        raise InputError("the net holds NaN or infinity: that run diverged; pack another")
    stream = b"".join(streams)
    tensors = {
        "codes": torch.from_numpy(np.frombuffer(bytearray(stream), dtype=np.uint8)),
        "floats": torch.cat(values).cpu() if values else torch.zeros(0),
    }
    full = {"format": FORMAT, **head, "coded": said}
    full["crc"] = checksum(full, tensors)
    data = save(tensors, {KEY: json.dumps(full, separators=(",", ":"))})
    replace_file(path, data)
    return len(data)


def read_codes(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The head and the two entries of a file, for `decode`.

    Raises:
        InputError: no such file, another one, or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a packed file")
    content = read_safetensors(path)
    if KEY not in content[METADATA]:
        raise InputError(f"{path} is not a packed file of lowbit: it lacks the entry {KEY}; give another file")
    try:
        tensors = {name: _row(content["state_dict"][name], name) for name in ("codes", "floats")}
        head = parse_json(content[METADATA][KEY])
        if type(head["format"]) is not int or head["format"] not in range(1, FORMAT + 1):
            raise InputError(
                f"{path} has packed format {head['format']}; this version reads 1 to {FORMAT}: update lowbit"
            )
        if head["crc"] != checksum(head, tensors):
            raise ValueError("its checksum is wrong")
        if not isinstance(head["coded"], dict) or not all(isinstance(said, dict) for said in head["coded"].values()):
            raise TypeError("its codes are not described by name")
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no packed file: {reason}; export it again") from error
    return head, tensors


def _row(tensor: Tensor, name: str) -> Tensor:
    """One of the two entries of a file.

    Raises:
        ValueError: of another shape or kind, or not finite.
    """
    right = tensor.dtype == torch.uint8 if name == "codes" else kind(tensor) in ("floats", "half-precision floats")
    if tensor.dim() != 1 or not right or (name == "floats" and tensor.element_size() < 2):
        raise ValueError(f"its {name} are {tensor.dtype} in {tensor.dim()} dimensions")
    if name == "floats" and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"its {name} hold NaN or infinity")
    return tensor


def decode(head: Mapping[str, Any], tensors: Tensors, like: Tensors) -> dict[str, Tensor]:
    """The tensors of a file of `read_codes`, quantized ones as the values of their codes.

    Args:
        head: of the file.
        tensors: of the file.
        like: {key: tensor} of the shapes to read, in the order of the file.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the file does not hold what it says.
    """
    floats, stream = tensors["floats"], tensors["codes"].numpy().tobytes()
    found: dict[str, Tensor] = {}
    at = 0
    for key, said in head["coded"].items():
        shape, bits, signed = said.get("scale", []), said["bits"], said.get("signed", True)
        scale, floats = _take(floats, shape)
        if type(bits) is not int or bits not in range(MAX_STORED + 1) or type(signed) is not bool:
            raise ValueError(f"{key} has {bits!r:.80} bits, signed: {signed!r:.80}")
        zero_point = torch.tensor(said.get("zero", 0.0), dtype=torch.float64)
        zero_point = zero_point.reshape(tuple(shape)) if zero_point.dim() else zero_point
        count = like[key].numel()
        length = packed_bytes(count, bits)
        codes = unpack(stream[at : at + length], count, bits, signed).reshape(like[key].shape)
        at += length
        found[key] = Codes(codes, Grid(scale, _halves(zero_point).to(scale.dtype), bits, signed)).values()
        if not bool(torch.isfinite(found[key]).all()):
            raise ValueError(f"{key} holds NaN or infinity")
    for key, old in like.items():
        if key not in found and old.is_floating_point():
            found[key], floats = _take(floats, old.shape)
    if at != len(stream) or floats.numel():
        raise ValueError("tensors are left over")
    return found


def checksum(head: Mapping[str, Any], tensors: Tensors) -> int:
    """CRC-32 of the head but its own entry `crc`, and of the tensors' bytes."""
    said = {key: value for key, value in head.items() if key != "crc"}
    crc = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for name in ("codes", "floats"):
        crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().tobytes(), crc)
    return crc


def _describe(key: str, tensor: Codes) -> tuple[dict[str, Any], Tensor]:
    """Bits, and whatever differs from a signed code with one scale and no zero point; and the scale to store."""
    grid, said = tensor.grid, dict[str, Any](bits=tensor.grid.bits)
    scale = grid.scale
    try:
        zeros = [int(z) if z.is_integer() else z for z in _halves(grid.zero_point.double()).flatten().tolist()]
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error
    if len(set(zeros)) > 1:
        scale, zero_point = torch.broadcast_tensors(scale, grid.zero_point)
        said["zero"] = [int(z) if z.is_integer() else z for z in zero_point.flatten().tolist()]
    elif zeros[0]:
        said["zero"] = zeros[0]
    if not grid.signed:
        said["signed"] = False
    if scale.dim():
        said["scale"] = list(scale.shape)
    return said, scale


def _halves(zero_point: Tensor) -> Tensor:
    """Zero points as they are.

    Raises:
        ValueError: one is no multiple of 1/2.
    """
    doubled = zero_point * 2
    if not torch.equal(doubled, doubled.round()):
        raise ValueError("a zero point is not a multiple of 1/2")
    return zero_point


def _take(floats: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
    """The next tensor of that shape, and the rest."""
    count = int(torch.Size(shape).numel())
    if count > floats.numel():
        raise ValueError("it ends too early")
    return floats[:count].reshape(tuple(shape)), floats[count:]
