"""Pictures per second of our loader against a DataLoader of PIL transforms on the same cores.

    python tools/bench_loader.py            # about 3 minutes on two cores; exits 1 below the bars

The rival has as many workers as cores, persistent, prefetch 4, and the transforms of the original programs. Both sides
deliver normalised float tensors. They take turns, one epoch each; the figure is the median of the ratios of the pairs.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.data.views import ssl_views

BATCH = 128
BARS = {"cifar": 3.0, "ssl": 6.0}


class PilPictures(Dataset[Any]):
    """What torchvision's CIFAR10 does with a transform, `views` times per picture."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Tensor], views: int) -> None:
        self.images, self.transform, self.views = images.permute(0, 2, 3, 1).contiguous().numpy(), transform, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        image = Image.fromarray(self.images[index])
        return tuple(self.transform(image) for _ in range(self.views)), index


def pil_transform(name: str) -> Callable[[Image.Image], Tensor]:
    end = [T.ToTensor(), T.Normalize(*CIFAR10)]
    if name == "cifar":
        return T.Compose([T.RandomCrop(32, 4), T.RandomHorizontalFlip(), *end])
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    crop = T.RandomResizedCrop(32, (0.2, 1.0))
    return T.Compose([crop, jitter, T.RandomGrayscale(0.2), T.RandomHorizontalFlip(), *end])


def seconds(batches: Iterable[Any]) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def compare(name: str, images: Tensor, pairs: int) -> dict[str, float]:
    views = 2 if name == "ssl" else 1
    pictures = MemoryPictures("random", ["one"], images, torch.zeros(len(images), dtype=torch.int64))
    recipe = ssl_views(32, CIFAR10, blur=False) if name == "ssl" else cifar_train()
    ours = Loader(pictures, recipe, global_batch=BATCH, seed=0, n_views=views)
    rival: DataLoader[Any] = DataLoader(
        PilPictures(images, pil_transform(name), views),
        batch_size=BATCH,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        prefetch_factor=4,
    )
    seconds(rival), seconds(ours.epoch(0))
    times = [(seconds(ours.epoch(1 + pair)), seconds(rival)) for pair in range(pairs)]
    fast, slow = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    return {"ours": len(images) / fast, "rival": len(images) / slow, "ratio": ratio, "bar": BARS[name]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--recipe", choices=sorted(BARS), action="append")
    args = parser.parse_args()
    images = torch.randint(256, (args.pictures, 3, 32, 32), dtype=torch.uint8)
    good = True
    for name in args.recipe or sorted(BARS):
        figures = compare(name, images, args.pairs)
        good &= figures["ratio"] >= figures["bar"]
        print(json.dumps({"recipe": name, **{key: round(value, 2) for key, value in figures.items()}}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
