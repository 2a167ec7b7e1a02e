"""One picture file as RGB: of the formats that are meant, within a budget, whatever else the file may hold.

Files are recognised by their content. Asked for any format, Pillow tries all its plugins, one of which starts an
external interpreter; so formats are named. The budgets are those of files that are small and expand when they are
decoded.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from lowbit.errors import one_line
from lowbit.files import open_regular

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
PIXELS = 178_956_970  # of one picture: Pillow's own limit, 683 MiB as RGB
RUN_LENGTH_PIXELS = 2**24  # of a run-length coded BMP, which Pillow decodes in Python
SCANNED_PIXELS = 2**32  # of a progressive JPEG, over all its scans (a usual one has ten)
FILE_BYTES = 2**30
AT_ONCE = 2**22  # pixels of 16 bits converted at a time
_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 322, 323, 339  # tags of TIFF
_quiet = Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr, beside our own line


class UnreadableError(Exception):
    """A file gives no picture; the text is the reason, in one line."""


def read_picture(path: Path, pixels: int = PIXELS) -> Image.Image:
    """Decode a file to RGB (grey, palette and CMYK pictures are converted; of several pictures the first).

    Args:
        path: the file; anything but a regular file is refused unopened.
        pixels: the most that a picture may have.

    Raises:
        UnreadableError: missing, truncated, no picture, too large, or of values whose range is not known.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not matter here
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > FILE_BYTES:
                    raise UnreadableError(f"the file is larger than {FILE_BYTES:,} bytes")
                with Image.open(file, formats=FORMATS) as image:
                    _check(image, file, pixels)
                    with _no_lines_of_libraries() if image.format == "TIFF" else nullcontext():
                        return _rgb(image)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError(f"it is none of {', '.join(FORMATS)}, or damaged") from None
    except Image.DecompressionBombError:
        raise UnreadableError(f"it has more than {pixels:,} pixels") from None
    except Exception as error:  # whatever a plugin raises, NotImplementedError and MemoryError among it
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableError(one_line(said, 200) or type(error).__name__) from None


def _check(image: ImageFile.ImageFile, file: BinaryIO, pixels: int) -> None:
    """Whether decoding stays within the budgets and the values have a known range, by the header alone."""
    count, tags = image.width * image.height, getattr(image, "tag_v2", {})
    if image.format == "WEBP" or image.mode == "CMYK":  # take half as much memory again: up to 2 GiB at the limit
        pixels = pixels * 2 // 3
    if count > pixels:
        raise UnreadableError(f"it has {count:,} pixels, more than {pixels:,}")
    if image.format == "BMP" and count > RUN_LENGTH_PIXELS and image.tile[0][0] == "bmp_rle":
        raise UnreadableError(f"it is run-length coded and has {count:,} pixels, more than {RUN_LENGTH_PIXELS:,}")
    if image.info.get("progressive"):
        where = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(where)
        if scans * count > SCANNED_PIXELS:
            raise UnreadableError(f"it has {scans:,} scans of {count:,} pixels, more than {SCANNED_PIXELS:,} in all")
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    if tile > pixels:
        raise UnreadableError(f"it has tiles of {tile:,} pixels, more than {pixels:,}")
    if image.mode == "F":
        raise UnreadableError("its pixels are floats of unknown range")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two hold 16 bits so
        raise UnreadableError("its pixels are integers of 32 bits, of unknown range")
    if image.format == "TIFF" and set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise UnreadableError("its pixels are signed, of unknown range")


def _rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    table = _grey_of(4095 if tags.get(_BITS) == (12,) else 65535, tags.get(_PHOTOMETRIC) == 0)
    flat, grey = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    for start in range(0, len(flat), AT_ONCE):
        grey[start : start + AT_ONCE] = table[flat[start : start + AT_ONCE].clip(0, 65535)]
    return Image.fromarray(grey.reshape(values.shape)).convert("RGB")


@cache
def _grey_of(white: int, inverted: bool) -> NDArray[np.uint8]:
    """The byte for each value of 16 bits, (65536,), which Pillow would clip; `inverted` where 0 is white."""
    value = np.arange(65536.0)
    grey = (white - value if inverted else value) / (white / 255)
    return grey.clip(0, 255).round().astype(np.uint8)


@contextmanager
def _no_lines_of_libraries() -> Iterator[None]:
    """Keep what libtiff itself writes to stderr about a damaged file, which has its line in our log, out of there."""
    with _quiet:
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
