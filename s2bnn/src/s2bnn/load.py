"""From a checkpoint of this package, or of the authors' program, to the net that it holds."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """The net; None: the checkpoint is none of ours."""
    return None
