"""The authors' files, read by content: their ReActNet-A, as it was pretrained or linearly evaluated.

Keys are `module.encoder_q.<key of the net>` beside `encoder_k.*` and `queue`, or `module.<key>` with a classifier; each
block also holds the point-wise convolutions that it does not use, with batch norm. Their `arch` is always "resnet50"
and says nothing. Weights of step 1 and of step 2 have the same keys and shapes, and no file says which they are.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

NETS = ("reactnet_a", "reactnet_a_64", "reactnet_a_32")  # whose weights have equal names and shapes
PREFIX, ENCODER = "module.", "encoder_q."
FIRST = ("feature.0.conv1.weight", "feature.1.binary_3x3.weight")
UNUSED = re.compile(r"feature\.\d+\.(binary_pw|binary_pw_down[12]|bn2|bn2_[12])\.\w+")


def is_reactnet(keys: Collection[str]) -> bool:
    """Whether a file's tensors, by their dotted places, are a ReActNet's."""
    return all(any(key == first or key.endswith("." + first) for key in keys) for first in FIRST)


def used(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a net without those that its blocks do not use.

    Args:
        state: keys as the net's.
        own: the net's keys.
    """
    return {key: value for key, value in state.items() if key in own or not UNUSED.fullmatch(key)}
