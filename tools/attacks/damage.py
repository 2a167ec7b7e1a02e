"""Bytes changed at random, and archives of torch.save whose records are changed under right checksums."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

WORDS = (b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, (1 << 31).to_bytes(4, "little"), b"PK\x03\x04")
CODE = (  # pickles that would run something: protocol 2, the opcodes by hand
    b"\x80\x02cattacks.outcome\nran\n)R.",
    b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.",
    b"\x80\x02csubprocess\nPopen\nX\x04\x00\x00\x00true\x85R.",
    b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00x\x85R.",
    b"\x80\x02cbuiltins\ngetattr\ncos\n__name__\n\x86R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00)tR.",
    b"\x80\x02ccollections\nOrderedDict\n)R(cbuiltins\nlist\n)Rcbuiltins\ndict\n)Ru.",
    b"\x80\x02(" * 3000 + b".",
    b"\x80\x02" + b"]q\x00" * 5 + b"h\x00a.",
    b"\x80\x02N.",
    b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N.",
    b"",
)


def flipped(rng: Random, data: bytes, places: int = 0) -> tuple[bytes, str]:
    """Changed bytes, and how in words; `places` above 0: in the first so many bytes alone."""
    end = min(places or len(data), len(data))
    at, way = rng.randrange(max(end, 1)), rng.randrange(9)
    if rng.random() < 0.3:
        at = max(0, end - 1 - rng.randrange(min(600, max(end, 1))))  # a zip's directory is at the end
    if way <= 2:
        bit = rng.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} flipped"
    if way == 3:
        return data[:at], f"cut off at byte {at}"
    if way == 4:
        word = rng.choice(WORDS)
        return data[:at] + word + data[at + len(word) :], f"{word.hex()} at byte {at}"
    if way == 5:
        count = rng.choice((1, 4, 64, 4096))
        return data[:at] + data[at + count :], f"{count} bytes at {at} taken out"
    if way == 6:
        more = rng.randbytes(rng.choice((1, 4, 64)))
        return data[:at] + more + data[at:], f"{len(more)} bytes put in at {at}"
    if way == 7:
        count = rng.choice((4, 64, 1024))
        return data[:at] + bytes(len(data[at : at + count])) + data[at + count :], f"{count} zeros at {at}"
    other = rng.randrange(len(data))
    return data[:at] + data[other : other + 64] + data[at + 64 :], f"64 bytes of {other} over those at {at}"


def rewritten(rng: Random, data: bytes) -> tuple[bytes, str]:
    """An archive with some of its records changed, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name, way = rng.choice([*records]), rng.randrange(8)
    pickled = next(name for name in records if name.endswith("data.pkl"))
    packing = zipfile.ZIP_STORED
    if way <= 1:
        name = pickled
        records[name], said = flipped(rng, records[name])
    elif way == 2:
        name = pickled
        records[name] = rng.choice(CODE)
        said = f"another pickle: {records[name][:40]!r}"
    elif way == 3:
        del records[name]
        said = "taken out"
    elif way == 4 and records[name]:
        records[name], said = flipped(rng, records[name])
    elif way == 5:
        folder = name.rpartition("/")[0]
        other = rng.choice(
            [f"{folder}/../{name}", "/etc/x", f"{name}\0", "a" * 3000, "code/x.py", f"{folder}/code/a.py"]
        )
        records[other] = records.pop(name) if rng.random() < 0.5 else records[name]
        said = f"under the name {other[:40]!r}"
    elif way == 6:
        packing, said = zipfile.ZIP_DEFLATED, "the archive deflated"
    else:
        other = rng.choice([*records])
        records[name], records[other] = records[other], records[name]
        said = f"changed for {other}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for record, content in records.items():
            archive.writestr(zipfile.ZipInfo(record), content, packing)
    return buffer.getvalue(), f"record {name}: {said}"


def bomb(path: Path, data: bytes, gigabytes: float = 1.25) -> str:
    """The same with one record of zeros, compressed a thousand times; what was done in words."""
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for entry in archive.infolist():
            if entry is not largest:
                new.writestr(entry.filename, archive.read(entry))
        zeros, info = bytes(1 << 24), zipfile.ZipInfo(largest.filename)
        info.compress_type = zipfile.ZIP_DEFLATED
        with new.open(info, "w", force_zip64=True) as file:
            for _ in range(int(gigabytes * (1 << 30)) // len(zeros)):
                file.write(zeros)
    return f"record {largest.filename} of {gigabytes} GB of zeros in {path.stat().st_size / 1e6:.1f} MB"


def _sparse(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.truncate(path, 1 << 36)


SPECIAL: dict[str, Callable[[Path, bytes], object]] = {
    "a FIFO": lambda path, data: os.mkfifo(path),
    "a folder": lambda path, data: path.mkdir(),
    "a link to nothing": lambda path, data: path.symlink_to("nothing"),
    "a link to itself": lambda path, data: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path, data: path.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda path, data: path.symlink_to("/dev/full"),
    "a link to its folder": lambda path, data: path.symlink_to("."),
    "64 GiB, most of them a hole": _sparse,
}


def special(rng: Random, path: Path, data: bytes) -> str:
    """Something else than a usual file at a path; what it is."""
    name = rng.choice([*SPECIAL])
    SPECIAL[name](path, data)
    return name
