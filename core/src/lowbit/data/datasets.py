"""Datasets by name, read from the files that everyone has.

| name | on disk |
|---|---|
| cifar10, cifar100 | torchvision's own: `cifar-10-batches-py/`, `cifar-100-python/`, md5 checked |
| tiny-imagenet | `tiny-imagenet-200/` as it unpacks (`wnids.txt`, `val/val_annotations.txt`); decoded to memory |
| folder | picture files as `lowbit.data.folders` lists them; read when needed |
| digits | the 8x8 digits inside scikit-learn: every fifth is a test picture; nothing on disk |
"""

import contextlib
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.data.folders import Split, has_classes, is_folder, labelled_folder, list_pictures, unlabelled_folder
from lowbit.data.picture_file import UnreadableError, read_picture
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.errors import InputError
from lowbit.files import open_regular

LARGEST = 2**28  # bytes of a file of CIFAR or a list of Tiny-ImageNet
PIXELS = 2**20  # of a picture that is kept in memory
log = logging.getLogger(__name__)


def _reconstruct(kind: type, shape: tuple[int, ...], code: str) -> np.ndarray:
    """An empty array that the pickle fills; numpy's own function of this purpose has moved between versions."""
    return np.ndarray(shape, code)


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays; any other name in the file is refused, so no code of it can run."""

    ALLOWED = {  # noqa: RUF012  # never changed
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}") from None


def _read_pickle(path: Path, md5: str, name: str) -> dict[str, Any]:
    """One of torchvision's CIFAR files, checked."""
    hint = f"give the folder that holds {path.parent.name}/ as --data, or add --download"
    if not path.exists():
        raise InputError(f"{name}: there is no {path}; {hint}")
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST or hashlib.file_digest(file, "md5").hexdigest() != md5:
            raise InputError(f"{name}: {path} is damaged (its md5 is not {md5}); remove it and add --download")
        file.seek(0)
        try:
            content = _ArraysOnly(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{name}: {path} cannot be read ({error}); remove it and add --download") from None
    return dict(content)


def _cifar(name: str, root: Path, split: Split, download: bool) -> Pictures:
    from torchvision import datasets

    layout = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if download:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                layout(root, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{name}: the download to {root} failed ({reason}); put the files there by hand"
            ) from error
    folder = root / layout.base_folder
    names = _read_pickle(folder / layout.meta["filename"], layout.meta["md5"], name)[layout.meta["key"]]
    files = layout.train_list if split == "train" else layout.test_list
    parts = [_read_pickle(folder / file, md5, name) for file, md5 in files]
    images = torch.from_numpy(np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32))
    labels = [label for part in parts for label in part["labels" if name == "cifar10" else "fine_labels"]]
    return MemoryPictures(name, names, images, torch.tensor(labels))


def _decode_all(paths: Sequence[Path], labels: Sequence[int], max_corrupt: float, name: str) -> tuple[Tensor, Tensor]:
    """Decode pictures of one size into memory; unreadable ones are named and left out, up to a limit."""

    def decode(path: Path) -> np.ndarray | str:
        try:
            return np.array(read_picture(path, PIXELS))
        except UnreadableError as error:
            return f"{path} ({error})"

    images = np.empty((0, 0, 0, 3), dtype=np.uint8)
    kept: list[int] = []
    bad: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        for i, entry in enumerate(pool.map(decode, paths)):
            if isinstance(entry, str):
                bad.append(entry)
                continue
            if not kept:
                images = np.empty((len(paths), *entry.shape), dtype=np.uint8)
            if entry.shape != images.shape[1:]:
                raise InputError(
                    f"{name}: {paths[i]} is {entry.shape[1]}x{entry.shape[0]}, others are "
                    f"{images.shape[2]}x{images.shape[1]}; use the dataset `folder` for pictures of mixed sizes"
                )
            images[len(kept)] = entry
            kept.append(labels[i])
    for entry in bad:  # now that no thread decodes: one may have closed stderr to libtiff
        log.warning("unreadable picture %s; it is left out", entry)
    if len(bad) > max_corrupt * len(paths) or not kept:
        raise InputError(
            f"{len(bad)} of {len(paths)} pictures of {name} are unreadable, the last {bad[-1]}; at most "
            f"{max_corrupt:g} of them may be: repair the data or raise --max-corrupt"
        )
    return torch.from_numpy(images[: len(kept)].transpose(0, 3, 1, 2).copy()), torch.tensor(kept)


def _lines(path: Path, name: str) -> list[str]:
    if not path.exists():
        raise InputError(f"{name}: there is no {path}; give the folder that holds tiny-imagenet-200/ as --data")
    with open_regular(path) as file:
        text = file.read(LARGEST)
    try:
        return text.decode().split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{name}: {path} is no text; unpack the set again") from None


def _tiny_imagenet(root: Path, split: Split, max_corrupt: float) -> Pictures:
    name = "tiny-imagenet"
    folder = root if (root / "wnids.txt").exists() else root / "tiny-imagenet-200"
    classes = [line.strip() for line in _lines(folder / "wnids.txt", name) if line.strip()]
    number = {wnid: i for i, wnid in enumerate(classes)}
    if split == "train":
        found = _training_pictures(folder / "train", number, name)
    else:
        rows = [line.split("\t") for line in _lines(folder / "val" / "val_annotations.txt", name) if line.strip()]
        unknown = next((row for row in rows if len(row) < 2 or row[1] not in number), None)
        if unknown is not None:
            raise InputError(f"{name}: val_annotations.txt names {unknown[:2]}, which is not a class of wnids.txt")
        found = [(folder / "val" / "images" / row[0], number[row[1]]) for row in rows]
    if not found:
        raise InputError(f"{name}: {folder} lists no {split} pictures; unpack it again")
    return MemoryPictures(name, classes, *_decode_all([p for p, _ in found], [i for _, i in found], max_corrupt, name))


def _training_pictures(folder: Path, number: Mapping[str, int], name: str) -> list[tuple[Path, int]]:
    """Files and labels of the class folders, class by class."""
    missing = next((wnid for wnid in number if not is_folder(folder / wnid)), None)
    if missing is not None:
        raise InputError(f"{name}: there is no {folder / missing}; each class is a folder of pictures")
    listed = list_pictures([folder / wnid for wnid in number])
    return [(path, i) for i, paths in zip(number.values(), listed, strict=True) for path in paths]


def _folder(root: Path, split: Split, labels: bool) -> Pictures:
    return labelled_folder(root, split) if labels or has_classes(root) else unlabelled_folder(root, split)


def _digits(split: Split) -> Pictures:
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.target)) % 5 == 0) == (split == "test")
    images = torch.from_numpy(data.images[chosen].astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    return MemoryPictures(
        "digits", [str(c) for c in data.target_names], images, torch.from_numpy(data.target[chosen]).long(), 16
    )


def load_dataset(
    name: str,
    root: Path,
    split: Split,
    *,
    download: bool = False,
    max_corrupt: float = 0.001,
    labels: bool = True,
) -> Pictures:
    """Read a dataset.

    Args:
        name: one of `lowbit.options.DATASETS`.
        root: the folder of `--data`.
        split: "train" or "test" (the evaluation set, whatever it is called on disk).
        download: let torchvision fetch CIFAR files that are not there; by one process of a machine.
        max_corrupt: fraction of unreadable pictures that are left out when a dataset is decoded to memory.
        labels: whether they are needed; if not, a folder of pictures without classes is taken too.

    Raises:
        InputError: an unknown name; a file that is missing, truncated or not the original; folders that do not fit or
            may not be read.
    """
    readers: dict[str, Callable[[], Pictures]] = {
        "cifar10": lambda: _cifar("cifar10", root, split, download),
        "cifar100": lambda: _cifar("cifar100", root, split, download),
        "tiny-imagenet": lambda: _tiny_imagenet(root, split, max_corrupt),
        "folder": lambda: _folder(root, split, labels),
        "digits": lambda: _digits(split),
    }
    if name not in readers:
        raise InputError(f"dataset {name!r} is not known; choose one of {', '.join(readers)}")
    if download and not name.startswith("cifar"):
        raise InputError(f"--download: only cifar10 and cifar100 can be downloaded; put {name} into {root} by hand")
    try:
        return readers[name]()
    except OSError as error:
        raise InputError(
            f"{name}: {error.filename or root} cannot be read ({error.strerror or error}); correct that or its rights, "
            "or give another --data"
        ) from error
