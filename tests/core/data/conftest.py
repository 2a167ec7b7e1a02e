"""Made-up pictures, in memory and on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowbit.data.pictures import FolderPictures, MemoryPictures


@pytest.fixture
def memory() -> MemoryPictures:
    """101 pictures of three classes, 32 x 32; the last batch of most sizes is ragged."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (101, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return MemoryPictures("made-up", ["a", "b", "c"], images, torch.arange(101) % 3)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a tree of pictures: train/ and val/ with three classes, of different sizes."""

    def write(n: int = 30, side: int | None = None) -> Path:
        draw = np.random.default_rng(0)
        for i in range(n):
            size = (side, side, 3) if side else (*draw.integers(30, 60, 2), 3)
            for split in ("train", "val"):
                path = tmp_path / "set" / split / "abc"[i % 3] / f"{i:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, size).astype(np.uint8)).save(path)
        return tmp_path / "set"

    return write


@pytest.fixture
def folder(write_folder: Callable[..., Path]) -> FolderPictures:
    """30 picture files of three classes, different sizes."""
    paths = sorted((write_folder() / "train").rglob("*.png"))
    return FolderPictures("made-up", ["a", "b", "c"], paths, torch.tensor(["abc".index(p.parent.name) for p in paths]))
