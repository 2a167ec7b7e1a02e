"""Numbers recorded from an original program: a folder of arrays and JSON files; not a test itself."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Recorded:
    """One set of recorded numbers: `recorded["layers"]["conv/x"]` is an array of layers.npz, `json("keys")` a file.

    What pictures and nets are filled with is each recording's own (its README is beside the specification).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019
    def __getitem__(self, file: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{file}.npz") as arrays:
            return {name: torch.as_tensor(arrays[name]) for name in arrays.files if arrays[name].dtype.kind != "U"}

    @cache  # noqa: B019
    def json(self, file: str) -> Any:
        return json.loads((self.folder / f"{file}.json").read_text())
