"""Pictures: files of all formats changed, others under their names, and folders of them."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tools.attacks.damage import flipped, special
from tools.attacks.method import Seeds, run
from tools.attacks.outcome import Attempt, Kind

from lowbit.data.picture_file import PIXELS, UnreadableError, read_picture
from lowbit.errors import InputError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
FORMATS: dict[str, tuple[str, str, dict[str, object]]] = {  # name: (mode, format, options)
    "a.jpg": ("RGB", "JPEG", {}),
    "grey.jpg": ("L", "JPEG", {}),
    "cmyk.jpg": ("CMYK", "JPEG", {}),
    "progressive.jpg": ("RGB", "JPEG", {"progressive": True}),
    "a.png": ("RGB", "PNG", {}),
    "palette.png": ("P", "PNG", {"transparency": 0}),
    "alpha.png": ("RGBA", "PNG", {}),
    "16.png": ("I;16", "PNG", {}),
    "1.png": ("1", "PNG", {}),
    "a.bmp": ("RGB", "BMP", {}),
    "p.bmp": ("P", "BMP", {}),
    "a.ppm": ("RGB", "PPM", {}),
    "a.pgm": ("L", "PPM", {}),
    "a.webp": ("RGB", "WEBP", {"lossless": True}),
    "animated.webp": ("RGBA", "WEBP", {"save_all": True, "append_images": [Image.new("RGBA", (16, 12))]}),
    "a.gif": ("P", "GIF", {}),
    "animated.gif": ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (16, 12), 1)]}),
    "a.tif": ("RGB", "TIFF", {}),
    "lzw.tif": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("RGB", "TIFF", {"compression": "jpeg"}),
    "deflate.tif": ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "group4.tif": ("1", "TIFF", {"compression": "group4"}),
    "16.tif": ("I;16", "TIFF", {}),
    "32.tif": ("I", "TIFF", {}),
    "float.tif": ("F", "TIFF", {}),
    "lab.tif": ("LAB", "TIFF", {}),
}
UNKNOWN = ("32.tif", "float.tif", "lab.tif", "1.png", "group4.tif")  # of other values, or of an unknown range
LOSSY = (
    "a.jpg",
    "grey.jpg",
    "cmyk.jpg",
    "progressive.jpg",
    "jpeg.tif",
    "1.png",
    "group4.tif",
    "a.webp",
    "animated.webp",
)
OTHERS = (
    "EPS",
    "PDF",
    "ICO",
    "TGA",
    "SGI",
    "PCX",
    "XBM",
    "IM",
    "MSP",
    "DDS",
    "JPEG2000",
    "ICNS",
    "SPIDER",
    "BLP",
    "QOI",
)


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """Those of pictures."""

    def picture(rng: Random, folder: Path) -> Attempt:
        way = rng.random()
        if way < 0.1:
            return unharmed(rng, folder)
        if way < 0.7:
            name = rng.choice([*FORMATS])
            data, said = flipped(rng, good(name), places=rng.choice((0, 64, 400)))
            shown = f"{name}, {said}"
        else:
            name, data, shown = rng.choice(CRAFTED)()
        odd = rng.random() < 0.1
        if odd:
            name, shown = (
                rng.choice((f"é😀 \n{name}", f"-{name}", f"{'a' * 240}{name}"[-255:], f"%s{name}")),
                f"odd name, {shown}",
            )
        data_folder = folder / "data"
        path = data_folder / "train" / "a" / name if rng.random() < 0.4 else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if rng.random() < 0.05:
            shown = f"{name}: {special(rng, path, data)}"
        else:
            path.write_bytes(data)
        if path.parent == folder:
            return Attempt(lambda: opened(path), f"read_picture {shown}", len(data), wrong_picture)
        return in_folder(rng, data_folder, shown, len(data))

    def in_folder(rng: Random, root: Path, shown: str, size: int) -> Attempt:
        for place in ("train/a/1.png", "train/b/1.png", "train/b/2.png", "val/a/1.png", "val/b/1.png"):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(good("a.png"))
        method, text = rng.choice([(method, line) for method in seeds.methods for line in method.folders])
        line = seeds.line(text, DATA=root)
        corrupt = rng.choice(("0", "0.5", "1"))
        line += ["--max-corrupt", corrupt]
        shown = f"{method.program} {line[0]} --max-corrupt {corrupt}, among good ones {shown}"
        return Attempt(lambda: run(method, line), shown, size, writes=False, late=True)

    def unharmed(rng: Random, folder: Path) -> Attempt:
        name = rng.choice([name for name in FORMATS if name not in UNKNOWN])
        path = folder / name
        path.write_bytes(good(name))
        exact = name not in LOSSY
        return Attempt(
            lambda: opened(path),
            f"read_picture {name}, a good one",
            path.stat().st_size,
            lambda image: other_picture(image, 0 if exact else 40),
            must="accept",
        )

    return (Kind("picture", picture),)


def other_picture(image: Image.Image, tolerance: int) -> str | None:
    """What is wrong with the picture of `good`: grey values from 0 to 191."""
    grey = np.arange(192, dtype=np.int16).reshape(12, 16, 1)
    off = int(np.abs(np.asarray(image, dtype=np.int16) - grey).max()) if image.size == (16, 12) else 255
    return f"values that are {off} off" if off > tolerance else None


def opened(path: Path) -> Image.Image:
    """A picture, or the error of bad input."""
    try:
        return read_picture(path)
    except UnreadableError as error:
        raise InputError(f"{path.name!r}: {error}") from error


def wrong_picture(image: Image.Image) -> str | None:
    """What is wrong with a picture that was read."""
    if image.mode != "RGB" or not 0 < image.width * image.height <= PIXELS:
        return f"a picture of mode {image.mode} and size {image.size}"
    return None if len(image.resize((2, 2)).tobytes()) == 12 else "it has no pixels"


@cache
def good(name: str) -> bytes:
    """The bytes of a good picture of 16x12."""
    mode, form, options = FORMATS[name]
    values = np.arange(192, dtype=np.uint8).reshape(12, 16)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", [image] * 3)
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"", kind: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that says any size, with right checksums."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def other(form: str) -> bytes:
    """A good picture of a format that is not meant."""
    buffer = io.BytesIO()
    try:
        Image.new("RGB" if form not in ("XBM", "MSP") else "1", (16, 16)).save(buffer, form)
    except Exception:
        return b"\0" * 64
    return buffer.getvalue()


def crafted(name: str, data: Callable[[], bytes], said: str = "") -> Callable[[], tuple[str, bytes, str]]:
    """A picture by hand: its name, its bytes, and what it is."""
    return lambda: (name, data(), said or name)


CRAFTED = (
    *(crafted(f"eps{ending}", lambda: EPS, f"EPS text as {ending}") for ending in (".jpg", ".png", ".tif", ".bmp")),
    *(crafted(f"{form}.jpg", lambda form=form: other(form), f"{form} as .jpg") for form in OTHERS),  # type: ignore[misc]
    crafted("wide.png", lambda: png(2**31 - 1, 1), "2^31 pixels wide"),
    crafted("none.png", lambda: png(0, 0), "no pixel"),
    crafted("huge.png", lambda: png(60_000, 60_000), "60,000 x 60,000 of nothing"),
    crafted("large.png", lambda: png(13_000, 13_000, bytes(13_000 * 100)), "13,000 x 13,000, cut off"),
    crafted("thin.png", lambda: png(1, 30_000, bytes(4 * 30_000)), "1 x 30,000"),
    crafted("flat.png", lambda: png(30_000, 1, bytes(90_001)), "30,000 x 1"),
    crafted("grey.png", lambda: png(9000, 9000, bytes(9001 * 9000), kind=0), "9,000 x 9,000 of grey in 79 kB"),
    crafted("kind.png", lambda: png(4, 4, bytes(52), kind=7), "an unknown kind of colours"),
    crafted("text.png", lambda: png(4, 4, bytes(52), extra=b"\0\0\0\4zTXt" + b"a\0\0x" * 2), "a damaged text"),
    crafted("a.jpg", lambda: b"", "an empty file"),
    crafted("a.png", lambda: b"\x89PNG\r\n\x1a\n", "a signature"),
    crafted("a.ppm", lambda: b"P6 99999 99999 255\n", "P6 99999 99999"),
    crafted("a.ppm", lambda: b"P6 4 4 70000\n" + bytes(48), "P6 of more than 16 bits"),
    crafted("a.ppm", lambda: b"P3 4 4 255\n" + b"9" * 5000, "P3 of a long number"),
    crafted("a.ppm", lambda: b"Pf 4 4 -1.0\n" + bytes(64), "PFM"),
    crafted("a.pgm", lambda: b"P5 " + b"#" * 100_000, "P5 and a long comment"),
    crafted("a.bmp", lambda: good("a.bmp")[:18] + struct.pack("<ii", -(2**31), 2**31 - 1) + good("a.bmp")[26:], "2^31"),
    crafted("a.gif", lambda: b"GIF89a\xff\xff\xff\xff\0\0\0," + bytes(4) + b"\xff\xff\xff\xff\0\x0c", "65,535^2"),
    crafted("a.webp", lambda: b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 30, "RIFF of 2^32 bytes"),
    crafted("a.tif", lambda: b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\3\0\xff\xff\xff\xff\xff\xff\xff\xff" * 9, "many tags"),
    crafted("a.tif", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "a directory that follows itself"),
    crafted("a.tif", lambda: b"MM\0+\0\x08\0\0" + b"\xff" * 64, "BigTIFF of nothing"),
    crafted("a.jpg", lambda: b"\xff\xd8" + b"\xff\xda\0\x08\1\1\0\0?\0" * 2000, "2,000 scans without a frame"),
    crafted("a.jpg", lambda: b"\xff\xd8\xff\xe1\xff\xffExif\0\0MM\0*" + b"\xff" * 65_500 + good("a.jpg")[2:], "Exif"),
)  # fmt: skip
