"""What a pickle may hold beside tensors: harmless values of numpy and of Python; classes that it would import."""

import logging
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

log = logging.getLogger(__name__)

LONGEST = 100_000  # numbers of a range that becomes a list
LEGACY_HEADER = 3  # pickles before the object in a file of torch before 1.6: magic number, protocol, system


def _list(items: Iterable[Any] = (), _maxlen: int | None = None) -> list[Any]:
    return list(_short(items))


def _tuple(items: Iterable[Any] = ()) -> tuple[Any, ...]:
    return tuple(_short(items))


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(_short(items))


def _short(items: Iterable[Any]) -> Iterable[Any]:
    """Items that are in the file themselves; a range holds as many as it likes."""
    if isinstance(items, range | slice) and len(items) > LONGEST:
        raise ValueError(f"a range of {len(items)} numbers")
    return items


def _empty_array(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """An array as pickles begin one: its values follow."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise ValueError("an array that is not read from the file")
    return np.ndarray(shape, code)


def _dict(_factory: Any = None, *_: Any) -> dict[Any, Any]:
    return {}


def _path(*parts: str) -> str:
    return "/".join(parts)


def _numpy() -> Iterator[tuple[Callable[..., Any], str]]:
    """Scalars and arrays, under the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield scalar, f"{module}.scalar"  # type: ignore[misc]
        yield _empty_array, f"{module}._reconstruct"
    yield np.ndarray, "numpy.ndarray"
    yield np.dtype, "numpy.dtype"
    for kind in {type(np.dtype(code)) for code in (*np.typecodes["All"], "S", "U")}:
        yield kind, f"numpy.dtypes.{kind.__name__}"


# (what is built, the name in the file); deques become lists, default dicts dicts, paths strings
HARMLESS: list[tuple[Callable[..., Any], str]] = [
    *_numpy(),
    (_list, "collections.deque"),
    (_dict, "collections.defaultdict"),
    *((_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in
      ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *((kind, f"{module}.{kind.__name__}") for module in ("builtins", "__builtin__") for kind in
      (dict, int, float, bool, str, range, slice)),
    *((build, f"{module}.{build.__name__[1:]}") for module in ("builtins", "__builtin__") for build in
      (_list, _tuple, _frozenset)),
]  # fmt: skip
_KNOWN = {name for _, name in HARMLESS} | {
    "collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set", "builtins.complex",
    "__builtin__.complex", "builtins.bytearray", "__builtin__.bytearray", "_codecs.encode", "copyreg._reconstructor",
}  # fmt: skip


def protocol(path: Path) -> int:
    """Pickle protocol of a file of `torch.save`, 0 of any other; torch's safe reader knows 2, the default."""
    return next((int(value) for code, value in _instructions(path) if code == "PROTO"), 0)


def foreign(path: Path) -> list[str]:
    """Names of the classes and functions that a file of `torch.save` would import and that are never imported here.

    The pickle's instructions are read, not run. Empty where it is no such file, or of a protocol above 2.
    """
    found = dict.fromkeys(str(value).replace(" ", ".") for code, value in _instructions(path) if code == "GLOBAL")
    return [name for name in found if name not in _KNOWN and (name.startswith("torch.nn.") or name[:6] != "torch.")]


def _instructions(path: Path) -> list[tuple[str, Any]]:
    """(name, argument) of each instruction; those before the damage where there is some."""
    found = []
    try:
        with _opened(path) as file:
            for code, argument, _ in pickletools.genops(file):
                found.append((code.name, argument))
    except Exception:  # damage of any kind: the caller knows more
        log.debug("%s: the pickle is cut off", path)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The pickle of the object itself."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    else:
        with path.open("rb") as file:
            for _ in range(LEGACY_HEADER):
                list(pickletools.genops(file))
            yield file
