"""Picture files of every kind, good and bad: what is read, what is refused, and that nothing else happens."""

import io
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from lowbit.data import picture_file
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.picture_file import FORMATS, PIXELS, UnreadableError, read_picture
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import imagenet_eval
from lowbit.errors import InputError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ""])
def test_formats_are_told_by_content(tmp_path: Path, kind: str, suffix: str) -> None:
    path = saved(tmp_path / f"x{suffix}", Image.fromarray(RAMP).convert("RGB"), kind)
    with Image.open(path) as image:
        assert np.array_equal(np.array(read_picture(path)), np.array(image.convert("RGB")))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) =\n%%EOF\n"


def test_nothing_external_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS text in a .jpg is no picture, whatever interpreters are installed."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_bytes(EPS)
    with Image.open(tmp_path / "x.jpg") as image:  # what Pillow takes it for
        assert image.format == "EPS"
    with pytest.raises(UnreadableError, match="none of JPEG, PNG"):
        read_picture(tmp_path / "x.jpg")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "SGI", "DDS", "ICNS", "JPEG2000", "PDF", "MSP", "XBM"])
def test_other_formats_are_unreadable(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(RAMP).convert("1" if kind in ("MSP", "XBM") else "RGB").resize((32, 32))
    with pytest.raises(UnreadableError):
        read_picture(saved(tmp_path / "x.png", image, kind))


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("no such\nfilter"), MemoryError(), SyntaxError("broken"), IndexError(3), struct.error("4"),
     RecursionError(), AttributeError("size"), ZeroDivisionError(), OSError(5, "Input/output error")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_plugin_raises_counts_as_unreadable(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception, workers: int
) -> None:
    paths = sorted((write_folder(4, 32) / "train").rglob("*.png"))
    saved(paths[2], Image.fromarray(RAMP), "JPEG")

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    with pytest.raises(UnreadableError) as caught:
        read_picture(paths[2])
    assert "\n" not in str(caught.value) and str(caught.value)
    if workers and not isinstance(error, MemoryError | NotImplementedError):
        return  # two kinds show it
    pictures = FolderPictures("x", ["a"], paths, torch.zeros(4, dtype=torch.int64))
    shown = EvalLoader(pictures, imagenet_eval(24, 28), batch_size=4, workers=workers, max_corrupt=0.3)
    assert [batch.index.tolist() for batch in shown] == [[0, 1, 3]]
    options = {"global_batch": 4, "seed": 0, "workers": workers, "max_corrupt": 0.3}
    (batch,) = Loader(pictures, imagenet_eval(24, 28), **options).epoch(0)  # type: ignore[arg-type]
    assert len(batch.index) == 4 and 2 not in batch.index.tolist()
    with pytest.raises(InputError, match="1 of 4 pictures of x are unreadable"):
        list(EvalLoader(pictures, imagenet_eval(24, 28), batch_size=4, workers=workers, max_corrupt=0.2))


@pytest.mark.parametrize(("dtype", "said"), [("i4", "integers"), ("f4", "floats"), ("i2", "integers|signed")])
def test_values_of_unknown_range_are_refused(tmp_path: Path, dtype: str, said: str) -> None:
    """A TIFF of 32-bit integers 0..255 was read as 16 bits, that is black."""
    if dtype == "i2":  # Pillow writes none
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[339] = 2
        path = saved(tmp_path / "x.tif", Image.fromarray(RAMP.astype("u2")), "TIFF", tiffinfo=tags)
    else:
        path = saved(tmp_path / "x.tif", Image.fromarray(RAMP.astype(dtype)), "TIFF")
    with pytest.raises(UnreadableError, match=f"({said}).* unknown range"):
        read_picture(path)


def test_signed_bytes_are_refused(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2
    with pytest.raises(UnreadableError, match="signed, of unknown range"):
        read_picture(saved(tmp_path / "x.tif", Image.fromarray(RAMP), "TIFF", tiffinfo=tags))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    values = (RAMP.astype("u2") * 257 + 100).clip(0, 65535).astype("u2")
    if suffix == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    else:
        saved(path, Image.fromarray(values), "PNG" if suffix == "png" else "TIFF")
    assert np.array_equal(np.array(read_picture(path))[..., 0], (values / 257).round())


def tiff(values: bytes, bits: int, photometric: int, side: int = 16, **more: int) -> bytes:
    """A grey picture of one strip, by hand; `more` are tags by number."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: side, 279: len(values)}
    tags |= {int(name[1:]): value for name, value in more.items()}
    tags = dict(sorted(tags.items()))
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + rows + b"\0" * 4


def test_other_depths_and_white_as_zero(tmp_path: Path) -> None:
    """Twelve bits were read as sixteen (nearly black), and a negative as the positive."""
    path, wide = tmp_path / "x.tif", RAMP.astype("<u2") * 257
    path.write_bytes(tiff(wide.tobytes(), 16, 1))
    assert np.array_equal(np.array(read_picture(path))[..., 0], RAMP)
    path.write_bytes(tiff(wide.tobytes(), 16, 0))
    assert np.array_equal(np.array(read_picture(path))[..., 0], 255 - RAMP)
    a, b = np.array([4095, 0], dtype="u2").repeat(128).reshape(2, 128)
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype("u1")
    path.write_bytes(tiff(packed.tobytes(), 12, 1))
    assert set(np.unique(np.array(read_picture(path))).tolist()) == {0, 255}


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO without a writer would never return."""
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "link.jpg").symlink_to("fifo.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        for name, said in {
            "fifo": "a FIFO, not a regular file", "folder": "a folder", "socket": "a socket", "link": "a FIFO",
            "loop": "Too many levels", "missing": "No such file", "y" * 300: "name too long",
        }.items():  # fmt: skip
            with pytest.raises(UnreadableError, match=said):
                read_picture(tmp_path / f"{name}.jpg")
    with pytest.raises(UnreadableError, match="a device"):
        read_picture(Path("/dev/zero"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


BOMBS: dict[str, tuple[bytes, str]] = {
    "a PNG above Pillow's limit": (png(60000, 60000), "more than 178,956,970 pixels"),
    "a GIF above it": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\0" * 20, "178,956,970|damaged"),
    "a PPM above it": (b"P6 100000 100000 255\n", "178,956,970"),
    "a run-length coded BMP": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 1078, 40, 10**8, 1, 1, 8, 1, 20, 1, 1, 256, 0)
        + bytes(1024) + b"\1\1\0\0\0\1",
        "run-length coded",
    ),
    "a TIFF of huge tiles": (
        tiff(zlib.compress(bytes(1000)), 8, 1, t259=8, t322=2**20, t323=2**20, t324=8, t325=100), "tiles of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_expand(tmp_path: Path, name: str) -> None:
    content, said = BOMBS[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UnreadableError, match=said) as caught:
        read_picture(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 and time.monotonic() - start < 2
    assert len(str(caught.value)) <= 200


def test_scans_of_a_progressive_jpeg_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs as much as the picture and takes a few bytes."""
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    path = tmp_path / "x.jpg"
    path.write_bytes(data[:last] + 2000 * data[last:-2] + b"\xff\xd9")
    read_picture(path)  # of so few pixels it may
    monkeypatch.setattr(picture_file, "SCANNED_PIXELS", 256 * 1000)
    with pytest.raises(UnreadableError, match=r"2,\d{3} scans of 256 pixels"):
        read_picture(path)
    path.write_bytes(data)
    read_picture(path)


def test_a_limit_of_pixels_and_one_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PIXELS == 2 * (1024**3 // 4 // 3)  # Pillow's own
    path = saved(tmp_path / "x.png", Image.fromarray(RAMP), "PNG")
    with pytest.raises(UnreadableError, match="256 pixels, more than 255"):
        read_picture(path, 255)
    read_picture(path, 256)
    for kind, mode in (("WEBP", "RGB"), ("JPEG", "CMYK")):  # whose decoders hold more
        costly = saved(tmp_path / kind, Image.fromarray(RAMP).convert("RGB").convert(mode), kind)
        read_picture(costly, 384)
        with pytest.raises(UnreadableError, match="256 pixels, more than 255"):
            read_picture(costly, 383)
    with path.open("ab") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(UnreadableError, match="larger than 1,073,741,824 bytes"):
        read_picture(path)


def test_the_lines_of_libtiff_are_kept_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "x.tif", Image.fromarray(RAMP), "TIFF", compression="tiff_deflate")
    data = bytearray(path.read_bytes())
    data[20:40] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(UnreadableError):
        read_picture(path)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_the_errors_that_pillow_logs_are_kept_back(tmp_path: Path) -> None:
    """Where a program has no handler for them, Python would write them to stderr."""
    (tmp_path / "x.tif").write_bytes(tiff(bytes(256), 8, 1, t277=99))
    text = (
        "from pathlib import Path; from lowbit.data.picture_file import UnreadableError, read_picture\n"
        "try: read_picture(Path('x.tif'))\nexcept UnreadableError: print('unreadable')"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("unreadable\n", "")
