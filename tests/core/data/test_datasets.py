"""Datasets by name: what is read, and every way in which a folder can be wrong."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from lowbit.data.datasets import load_dataset
from lowbit.data.pictures import FolderPictures, MemoryPictures
from lowbit.errors import InputError


@pytest.mark.data
def test_cifar10_is_torchvisions(cifar10_root: Path) -> None:
    ours = load_dataset("cifar10", cifar10_root, "test")
    theirs = torchvision.datasets.CIFAR10(cifar10_root, train=False)
    assert isinstance(ours, MemoryPictures) and list(ours.classes) == theirs.classes
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets and ours.images.is_contiguous()
    assert len(load_dataset("cifar10", cifar10_root, "train")) == 50000


@pytest.mark.data
def test_tiny_imagenet_in_its_raw_layout(tiny_imagenet_root: Path) -> None:
    train, test = (load_dataset("tiny-imagenet", tiny_imagenet_root, split) for split in ("train", "test"))
    folder = tiny_imagenet_root / "tiny-imagenet-200"
    assert train.classes == tuple((folder / "wnids.txt").read_text().split())
    assert train.labels.bincount().tolist() == [200] * 20 and test.labels.bincount().tolist() == [50] * 20
    assert isinstance(train, MemoryPictures) and train.images.shape == (4000, 3, 64, 64)
    name, wnid = (folder / "val" / "val_annotations.txt").read_text().split("\n")[7].split("\t")[:2]
    image = torchvision.io.decode_image(folder / "val" / "images" / name, "RGB")
    assert test.classes[test.labels[7]] == wnid
    assert (test.images[7].int() - image.int()).abs().max() <= 2  # two JPEG decoders
    grey = (train.images[:, 0] == train.images[:, 1]).flatten(1).all(1)
    assert grey.sum() >= 47  # so many files are grey
    assert len(load_dataset("tiny-imagenet", folder, "test")) == 1000


def make_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, payload: object = None) -> Path:
    """The layout of CIFAR-100 with 20 made-up pictures a file, its md5 sums made known."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    sums = {}
    for name, content in {
        "train": payload
        or {"data": np.arange(20 * 3072).reshape(20, 3072).astype(np.uint8), "fine_labels": [*range(20)]},
        "test": {"data": np.zeros((20, 3072), dtype=np.uint8), "fine_labels": [5] * 20, "coarse_labels": [1] * 20},
        "meta": {"fine_label_names": [f"class {i}" for i in range(100)]},
    }.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["meta"]})
    return folder


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar100(tmp_path, monkeypatch)
    train, test = (load_dataset("cifar100", tmp_path, split) for split in ("train", "test"))
    assert isinstance(train, MemoryPictures) and len(train.classes) == 100 and train.labels.tolist() == [*range(20)]
    assert train.images[1].flatten()[:3].tolist() == [0, 1, 2] and test.labels.tolist() == [5] * 20


def test_damaged_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_cifar100(tmp_path, monkeypatch)
    (folder / "train").write_bytes((folder / "train").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cifar-100-python/train is damaged"):
        load_dataset("cifar100", tmp_path, "train")
    assert len(load_dataset("cifar100", tmp_path, "test")) == 20
    (folder / "train").unlink()
    with pytest.raises(InputError, match=r"there is no .*cifar-100-python/train; give the folder that holds"):
        load_dataset("cifar100", tmp_path, "train")
    with pytest.raises(InputError, match="cifar-10-batches-py"):
        load_dataset("cifar10", tmp_path, "test")


class Bomb:
    """A pickle that writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_no_code_of_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the md5 sum were right."""
    make_cifar100(tmp_path, monkeypatch, Bomb(tmp_path / "ran"))
    with pytest.raises(InputError, match="the file asks for"):
        load_dataset("cifar100", tmp_path, "train")
    assert not (tmp_path / "ran").exists()


def test_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: object) -> None:
        print("Downloading ...")
        raise URLError("no route")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"the download to .* failed .*no route"):
        load_dataset("cifar10", tmp_path, "train", download=True)
    assert capsys.readouterr().out == ""  # stdout carries the original's record


def test_image_folder(write_folder: Callable[..., Path]) -> None:
    root = write_folder(30)
    (root / "train" / "a" / "notes.txt").write_text("no picture")
    train, test = (load_dataset("folder", root, split) for split in ("train", "test"))
    assert isinstance(train, FolderPictures) and train.classes == ("a", "b", "c") == test.classes
    assert train.labels.bincount().tolist() == [10, 10, 10] and len(test) == 30
    assert all(path.parent.name == train.classes[label] for path, label in zip(train.paths, train.labels, strict=True))
    (root / "val").rename(root / "test")
    assert len(load_dataset("folder", root, "test")) == 30


def test_wrong_image_folders(write_folder: Callable[..., Path]) -> None:
    root = write_folder(6)
    (root / "val" / "b").rename(root / "val" / "other")
    with pytest.raises(InputError, match=r"holds the class other, which .*train does not"):
        load_dataset("folder", root, "test")
    (root / "val").rename(root / "validation")
    with pytest.raises(InputError, match=r"neither val/ nor test/"):
        load_dataset("folder", root, "test")
    (root / "train").rename(root / "training")
    for split in ("train", "test"):
        with pytest.raises(InputError, match=r"there is no .*train; pictures are expected as train/<class>"):
            load_dataset("folder", root, split)
    (root / "train" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no picture"):
        load_dataset("folder", root, "train")


def tiny(root: Path, source: Path) -> Path:
    """The raw layout of Tiny-ImageNet around made-up pictures."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("c\na\nb\n")
    rows = []
    for path in sorted((source / "val").rglob("*.png")):
        path.rename(folder / "val" / "images" / path.name)
        rows.append(f"{path.name}\t{path.parent.name}\t0\t0\t9\t9\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (source / "train").rename(folder / "train")
    return root


def test_tiny_imagenet_made_up(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = tiny(tmp_path, write_folder(9, 16))
    folder = root / "tiny-imagenet-200"
    train, test = (load_dataset("tiny-imagenet", root, split) for split in ("train", "test"))
    assert train.classes == ("c", "a", "b") and len(train) == 9 == len(test)
    assert test.labels.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    (folder / "val" / "images" / "000.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 9 pictures of tiny-imagenet are unreadable, the last .*000.png"):
        load_dataset("tiny-imagenet", root, "test")
    assert load_dataset("tiny-imagenet", root, "test", max_corrupt=0.2).labels.tolist() == [1, 1, 2, 2, 2, 0, 0, 0]
    with (folder / "val" / "val_annotations.txt").open("a") as file:
        file.write("x.png\tunknown\n")
    with pytest.raises(InputError, match="unknown"):
        load_dataset("tiny-imagenet", root, "test")
    (folder / "wnids.txt").unlink()
    with pytest.raises(InputError, match=r"there is no .*wnids.txt"):
        load_dataset("tiny-imagenet", root, "train")


def test_tiny_imagenet_of_mixed_sizes(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = tiny(tmp_path, write_folder(9))
    with pytest.raises(InputError, match="use the dataset `folder` for pictures of mixed sizes"):
        load_dataset("tiny-imagenet", root, "train")


def test_digits() -> None:
    train, test = (load_dataset("digits", Path("nowhere"), split) for split in ("train", "test"))
    assert isinstance(train, MemoryPictures) and isinstance(test, MemoryPictures)
    assert (len(train), len(test), train.white, train.size) == (1437, 360, 16, (8, 8))
    assert train.images.max() == 16 and torch.equal(test.images[:, 0], test.images[:, 2])
    assert sorted(train.labels.unique().tolist()) == list(range(10))


def test_unknown_names_and_useless_downloads() -> None:
    with pytest.raises(InputError, match="'mnist' is not known; choose one of cifar10"):
        load_dataset("mnist", Path(), "train")
    with pytest.raises(InputError, match="only cifar10 and cifar100 can be downloaded"):
        load_dataset("digits", Path(), "train", download=True)
