"""Folders of pictures: hidden names, links, loops, rights, and folders without classes."""

import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowbit.data.datasets import load_dataset
from lowbit.data.folders import EVALUATED
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import FolderPictures, Pictures, balanced_subset
from lowbit.data.recipe import imagenet_eval
from lowbit.errors import InputError


def fill(root: Path, *names: str) -> Path:
    """Write a small picture for each name."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(path, "PNG")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two and three pictures."""
    names = ("a/0.png", "a/1.png", "b/0.png", "b/sub/1.png", "b/sub/deep/2.png")
    return fill(tmp_path / "D", *(f"{split}/{name}" for split in ("train", "val") for name in names))


def listed(root: Path, split: str = "train", labels: bool = True) -> list[tuple[str, str]]:
    pictures = load_dataset("folder", root, split, labels=labels)  # type: ignore[arg-type]
    assert isinstance(pictures, FolderPictures)
    classes = (*pictures.classes, "none")
    return [
        (classes[i], str(path.relative_to(root)))
        for i, path in zip(pictures.labels.tolist(), pictures.paths, strict=True)
    ]


def test_hidden_names_are_left_out(root: Path) -> None:
    before = listed(root)
    fill(root, "train/a/._0.png", "train/a/.thumbs/0.png", "train/.trash/0.png", "train/b/sub/.x/y/0.png")
    (root / "train" / "a" / ".link").symlink_to(root / "val" / "a")
    assert listed(root) == before and len(before) == 5


LOOPS = {
    "to itself": ("val/a/loop", "."),
    "to its parent": ("val/a/l", ".."),
    "to the root": ("val/a/l", "../.."),
    "to another class": ("val/a/l", "../b"),
    "to a part of another class": ("val/a/l", "../b/sub"),
    "to the other split": ("val/a/l", "../../train"),
    "from deep inside": ("val/b/sub/deep/l", "../../.."),
    "as a class, to itself": ("val/l", "."),
    "as a class, to the root": ("val/l", ".."),
    "as a class, to the root of all": ("val/l", "/"),
    "as a class, to another": ("val/l", "a"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_real_folder_counts_once(root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Link loops made 16 pictures 640, showed the pictures of one class as another's, or never ended."""
    before = listed(root, "test")
    path, target = LOOPS[name]
    (root / path).symlink_to(target)
    with caplog.at_level(logging.WARNING):
        found = listed(root, "test")
    assert found == before
    assert "left out" in caplog.text or name == "to a part of another class"


def test_two_loops_end(root: Path) -> None:
    before = listed(root)
    for name in ("x", "y"):
        (root / "train" / "a" / name).symlink_to(".")
        (root / "train" / "b" / "sub" / name).symlink_to("..")
    assert listed(root) == before


def test_links_lead_to_other_folders_and_files(root: Path, tmp_path: Path) -> None:
    """A class may be a link, so may a folder inside one, and any file; two links to one folder count once."""
    before = listed(root)
    fill(tmp_path / "store", "c/0.png", "c/more/1.png", "d/0.png")
    (root / "train" / "c").symlink_to(tmp_path / "store" / "c")
    assert listed(root) == [*before, ("c", "train/c/0.png"), ("c", "train/c/more/1.png")]
    (root / "train" / "a" / "far").symlink_to(tmp_path / "store" / "d")
    (root / "train" / "b" / "far").symlink_to(tmp_path / "store" / "d")
    (root / "train" / "b" / "9.png").symlink_to(root / "train" / "a" / "0.png")
    found = [(c, path) for c, path in listed(root) if "far" in path or "9" in path]
    assert found == [("a", "train/a/far/0.png"), ("b", "train/b/9.png")]
    (root / "val").rename(tmp_path / "old")
    (root / "val").symlink_to("train")  # evaluated on what was trained on: each split counts for itself
    assert len(listed(root, "test")) == len(listed(root))


def test_where_a_folder_lies_comes_before_links_to_it(root: Path) -> None:
    (root / "train" / "a" / "link").symlink_to("../b/sub/deep")
    assert listed(root)[-1] == ("b", "train/b/sub/deep/2.png") and len(listed(root)) == 5


def test_links_to_nowhere(root: Path) -> None:
    """Files are named when they are read; what may be a folder is none."""
    for name, target in {"loop.png": "loop.png", "gone.png": "nothing", "long.png": "x" * 300, "self": "self"}.items():
        (root / "train" / "a" / name).symlink_to(target)
    (root / "train" / "c").symlink_to("c")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    found = [path for _, path in listed(root) if "/a/" in path]
    assert [Path(path).name for path in found] == ["0.png", "1.png", "gone.png", "long.png", "loop.png", "pipe.png"]
    pictures = load_dataset("folder", root, "train")
    (batch,) = EvalLoader(pictures, imagenet_eval(8, 8), batch_size=99, max_corrupt=0.5)
    assert len(batch.index) == 5 and isinstance(pictures, FolderPictures) and pictures.unreadable.add(0)[1] == 5


def test_a_thousand_levels(tmp_path: Path) -> None:
    (tmp_path / "D").mkdir()
    where = os.open(tmp_path / "D", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("x", dir_fd=where)
        where, above = os.open("x", os.O_RDONLY, dir_fd=where), where
        os.close(above)
    fill(tmp_path / "D", "0.png")
    os.close(where)
    try:
        assert listed(tmp_path / "D", labels=False) == [("none", "0.png")]
    finally:  # pytest's own way recurses
        subprocess.run(["rm", "-r", str(tmp_path / "D")], check=True)


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet", "folder"])
@pytest.mark.parametrize("labels", [True, False])
def test_names_that_cannot_be(tmp_path: Path, name: str, labels: bool) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for root in (tmp_path / ("x" * 300), tmp_path / "loop", tmp_path / "file", tmp_path / "nothing", Path("x\0y")):
        for split in ("train", "test"):
            with pytest.raises(InputError, match="--data"):
                load_dataset(name, root, split, labels=labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet", "folder"])
def test_folders_that_may_not_be_searched(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Root may search everything, so the refusal is made up."""
    stat = Path.stat

    def refused(self: Path, **options: bool) -> os.stat_result:
        if self.is_relative_to(root) and self != root:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        load_dataset(name, root, "train")


def test_a_class_folder_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left out without a word."""
    scandir = os.scandir

    def refused(path: Path) -> object:
        if path.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"train/b/sub cannot be read \(Permission denied\); correct that"):
        load_dataset("folder", root, "train")


def test_special_files_in_the_place_of_data(tmp_path: Path) -> None:
    """A FIFO in the place of CIFAR's or Tiny-ImageNet's files is recognised before it is opened."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    os.mkfifo(tmp_path / "cifar-10-batches-py" / "batches.meta")
    os.mkfifo(tmp_path / "wnids.txt")
    for name in ("cifar10", "tiny-imagenet"):
        with pytest.raises(InputError, match="it is a FIFO, not a regular file"):
            load_dataset(name, tmp_path, "train")
    (tmp_path / "wnids.txt").unlink()
    (tmp_path / "wnids.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match=r"wnids.txt is no text"):
        load_dataset("tiny-imagenet", tmp_path, "train")


FLAT = tuple(f"{i}.png" for i in range(7))
UNLABELLED = {
    "flat": FLAT,
    "nested": tuple(f"trip/day{i % 2}/{name}" for i, name in enumerate(FLAT)),
    "flat in train": tuple(f"train/{name}" for name in FLAT),
    "nested in train": tuple(f"train/day{i % 2}/{name}" for i, name in enumerate(FLAT)),
    "mixed": tuple(name if i % 2 else f"more/{name}" for i, name in enumerate(FLAT)),
}


@pytest.mark.parametrize("layout", UNLABELLED)
def test_pictures_without_classes(tmp_path: Path, layout: str) -> None:
    root = fill(tmp_path / "D", *UNLABELLED[layout])
    train, test = (load_dataset("folder", root, split, labels=False) for split in ("train", "test"))  # type: ignore[arg-type]
    assert isinstance(train, FolderPictures) and isinstance(test, FolderPictures)
    assert train.classes == () and len(train) == 7 and train.paths == sorted(root.rglob("*.png")) == test.paths
    (batch,) = Loader(train, imagenet_eval(8, 8), global_batch=7, seed=0).epoch(0)
    (shown,) = EvalLoader(test, imagenet_eval(8, 8), batch_size=7)
    assert batch.label is None and shown.label is None
    for split in ("train", "test")[layout == "nested in train" :]:  # which may be classes
        with pytest.raises(InputError, match=r"train/<class>/\* and val/<class>/\*|neither val/ nor test/"):
            load_dataset("folder", root, split)  # type: ignore[arg-type]


def test_evaluation_pictures_without_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "D", *(f"train/{name}" for name in FLAT), "test/x/0.png", "test/1.png")
    assert listed(root, "test", labels=False) == [("none", "test/1.png"), ("none", "test/x/0.png")]
    (root / "val").mkdir()  # empty
    assert len(listed(root, "test", labels=False)) == 7


def test_a_folder_with_classes_keeps_them(root: Path) -> None:
    for split in ("train", "test"):
        assert listed(root, split, labels=False) == listed(root, split)
    fill(root, "val/other/0.png")
    with pytest.raises(InputError, match="holds the class other"):
        load_dataset("folder", root, "test", labels=False)


def test_loops_and_hidden_names_without_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "D", *FLAT, ".hidden/0.png", "sub/._1.png", "sub/1.png")
    for path, target in {"l": ".", "sub/l": "..", "sub/m": ".", "again": "sub"}.items():
        (root / path).symlink_to(target)
    assert len(listed(root, labels=False)) == 8


def test_no_pictures_at_all(tmp_path: Path) -> None:
    (tmp_path / "D" / "train").mkdir(parents=True)
    for split in ("train", "test"):
        with pytest.raises(InputError, match=r"no picture was found in .*train; known are .bmp"):
            load_dataset("folder", tmp_path / "D", split, labels=False)  # type: ignore[arg-type]


def test_a_limit_without_labels_is_chosen_by_the_seed_alone(tmp_path: Path) -> None:
    def chosen(layout: str) -> list[int]:
        pictures: Pictures = load_dataset("folder", fill(tmp_path / layout, *UNLABELLED[layout]), "train", labels=False)
        return balanced_subset(pictures.labels, 4).tolist()

    assert chosen("flat") == chosen("nested") == chosen("nested in train")
    assert chosen("flat") == balanced_subset(torch.zeros(7, dtype=torch.int64), 4).tolist()


def test_evaluation_takes_some_training_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EVALUATED == 1000
    monkeypatch.setattr("lowbit.data.folders.EVALUATED", 3)
    assert len(listed(fill(tmp_path / "D", *FLAT), "test", labels=False)) == 3
