"""Folders of pictures on disk: which files are listed, and of which class they are.

`train/<class>/*` and `val/<class>/*` (or `test/`) are pictures with classes. Where no labels are needed, any other
folder of pictures serves too, flat or nested, with or without `train/`.

Hidden names (a leading dot) are left out. Links are followed, and each real folder counts once, whatever leads to it:
for the class whose folder it is, else where it lies, else for the first link to it. So link loops end.
"""

import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from lowbit.data.pictures import FolderPictures, Pictures, balanced_subset
from lowbit.errors import InputError

Split = Literal["train", "test"]
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
EVALUATED = 1000  # training pictures that are also shown in evaluation where there are no others
LAYOUT = "train/<class>/* and val/<class>/* (or test/)"
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
log = logging.getLogger(__name__)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, or a link to one.

    Raises:
        OSError: it lies where nothing may be searched.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except ValueError:  # a name with a null byte
        return False
    except OSError as error:
        if error.errno in NOWHERE:
            return False
        raise


def _entries(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Picture files, folders, and links to folders, each in the order of their names."""
    files: list[Path] = []
    folders: list[Path] = []
    links: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and is_folder(path):
                links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif path.suffix.lower() in EXTENSIONS:
                files.append(path)
    return files, folders, links


def _identity(folder: Path) -> tuple[int, int]:
    """Equal for all names of one folder."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def list_pictures(folders: Sequence[Path], others: Iterable[Path] = ()) -> list[list[Path]]:
    """Picture files below each of several folders, sorted.

    Args:
        folders: of the classes, say.
        others: folders of the set to which no link may lead, as to any folder that one of `folders` lies in.

    Raises:
        OSError: a folder may not be read.
    """
    above = {parent for folder in folders for parent in folder.resolve().parents}
    seen = {_identity(folder) for folder in (*folders, *others, *above)}
    links: deque[tuple[Path, list[Path]]] = deque()
    left_out: list[Path] = []

    def is_new(folder: Path) -> bool:
        if (identity := _identity(folder)) in seen:
            left_out.append(folder)
            return False
        seen.add(identity)
        return True

    def walk(top: Path, found: list[Path]) -> None:
        waiting = [top]
        while waiting:
            files, below, linked = _entries(waiting.pop())
            found += files
            links.extend((link, found) for link in linked)
            waiting += filter(is_new, below)

    listed: list[list[Path]] = [[] for _ in folders]
    for folder, found in zip(folders, listed, strict=True):
        walk(folder, found)
    while links:  # what lies somewhere is known by now
        link, found = links.popleft()
        if is_new(link):
            walk(link, found)
    _warn(left_out)
    return [sorted(found) for found in listed]


def _warn(left_out: Sequence[Path]) -> None:
    if left_out:
        log.warning(
            "folders that count already under another name, left out: %d, such as %s", len(left_out), left_out[0]
        )


def _classes(folder: Path) -> tuple[list[str], list[Path]]:
    """Names of the class folders, sorted, and what is left out: links to one of them, or to what they lie in."""
    _, folders, links = _entries(folder)
    seen = {_identity(parent) for parent in (folder, *folder.resolve().parents)}
    classes: list[str] = []
    left_out: list[Path] = []
    for path in (*folders, *links):
        if (identity := _identity(path)) in seen:
            left_out.append(path)
            continue
        seen.add(identity)
        classes.append(path.name)
    return sorted(classes), left_out


def _shown(root: Path) -> Path:
    """The folder of the evaluation pictures, whether it is there or not."""
    return root / "val" if is_folder(root / "val") else root / "test"


def _parts(root: Path) -> list[Path]:
    return [path for path in (root, root / "train", root / "val", root / "test") if is_folder(path)]


def has_classes(root: Path) -> bool:
    """Whether a folder holds class folders for training and for evaluation."""
    return all(is_folder(path) and bool(_classes(path)[0]) for path in (root / "train", _shown(root)))


def labelled_folder(root: Path, split: Split) -> Pictures:
    """Pictures with classes.

    Raises:
        InputError: another layout, classes that do not agree, a class without pictures.
        OSError: a folder may not be read.
    """
    name, train = f"folder {root}", root / "train"
    if not is_folder(train):
        raise InputError(
            f"folder: there is no {train}; pictures are expected as {LAYOUT}, since labels are needed: sort them so, "
            "or give another --data"
        )
    (classes, left_out), shown = _classes(train), train
    if not classes:
        raise InputError(
            f"folder: {train} holds no class folders; pictures are expected as {LAYOUT}, since labels are needed: sort "
            "them so, or give another --data"
        )
    if split == "test":
        shown = _shown(root)
        if not is_folder(shown):
            raise InputError(
                f"folder: there is neither val/ nor test/ beside {train}; evaluation pictures go there, as "
                "val/<class>/*"
            )
        found, left_out = _classes(shown)
        unknown = sorted({*found} - {*classes})
        if unknown:
            raise InputError(
                f"{name}: {shown} holds the class {unknown[0]}, which {train} does not; the classes must agree"
            )
    _warn(left_out)
    there = [c for c in classes if is_folder(shown / c)]
    listed = dict(zip(there, list_pictures([shown / c for c in there], _parts(root)), strict=True))
    empty = [c for c in classes if not listed.get(c)]
    if empty and split == "train":
        raise InputError(f"{name}: {shown / empty[0]} holds no picture: fill it or remove it")
    if empty:
        log.warning("%s: %s holds no picture of %s", name, shown, ", ".join(empty))
    pictures = [(path, i) for i, c in enumerate(classes) for path in listed.get(c, ())]
    if not pictures:
        raise InputError(f"{name}: no picture was found in {shown}/<class>/; known are {', '.join(sorted(EXTENSIONS))}")
    return FolderPictures(name, classes, [path for path, _ in pictures], torch.tensor([i for _, i in pictures]))


def unlabelled_folder(root: Path, split: Split) -> Pictures:
    """Pictures without classes: all below `train/`, or below the folder itself where it has none.

    Those of evaluation are below `val/` or `test/` beside `train/`; where there are none, they are up to `EVALUATED` of
    the training pictures, chosen by a fixed seed.

    Raises:
        InputError: there are none.
        OSError: a folder may not be read.
    """
    name = f"folder {root}"
    if not is_folder(root):
        raise InputError(f"{name}: there is no such folder; give one that holds pictures as --data")
    train = root / "train" if is_folder(root / "train") else root
    if split == "test" and train != root and is_folder(_shown(root)):
        found = _without_classes(name, _shown(root), root)
        if len(found):
            return found
    pictures = _without_classes(name, train, root)
    if not len(pictures):
        raise InputError(f"{name}: no picture was found in {train}; known are {', '.join(sorted(EXTENSIONS))}")
    if split == "train":
        return pictures
    return pictures.subset(balanced_subset(pictures.labels, min(EVALUATED, len(pictures))))


def _without_classes(name: str, folder: Path, root: Path) -> FolderPictures:
    (paths,) = list_pictures([folder], _parts(root))
    return FolderPictures(name, (), paths, torch.full((len(paths),), -1))
