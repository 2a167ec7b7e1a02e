"""Integer codes as a stream of bits: each code takes exactly its own bits, two's complement where signed."""

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # codes at a time; a multiple of 8, so that chunks end on whole bytes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int, signed: bool) -> bytes:
    """Codes of any shape, in C order, least significant bit first.

    Raises:
        ValueError: a code is beyond the signed, or else the unsigned, numbers of `bits` bits.
    """
    flat = codes.detach().cpu().flatten().to(torch.int64).numpy()
    lowest, above = (-(1 << bits) // 2, (1 << bits) // 2) if signed and bits else (0, 1 << bits)
    if flat.size and not lowest <= flat.min() <= flat.max() < above:
        kind = "signed" if signed else "unsigned"
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit {bits} bits, {kind}")
    shifts = np.arange(bits)
    chunks = (flat[i : i + CHUNK, None] >> shifts & 1 for i in range(0, flat.size, CHUNK))
    return b"".join(np.packbits(chunk.astype(np.uint8), bitorder="little").tobytes() for chunk in chunks)


def unpack(data: bytes, count: int, bits: int, signed: bool) -> Tensor:
    """The inverse of `pack`: int32, (count,)."""
    if not bits:
        return torch.zeros(count, dtype=torch.int32)
    stream, place = np.frombuffer(data, dtype=np.uint8), 1 << np.arange(bits)
    out = np.empty(count, dtype=np.int64)
    for i in range(0, count, CHUNK):
        size = min(CHUNK, count - i)
        part = stream[i * bits // 8 : packed_bytes(i + size, bits)]
        out[i : i + size] = np.unpackbits(part, bitorder="little")[: size * bits].reshape(size, bits) @ place
    if signed:
        out -= (out >> (bits - 1)) << bits
    return torch.from_numpy(out.astype(np.int32))
