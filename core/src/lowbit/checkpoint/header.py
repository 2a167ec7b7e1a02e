"""What a checkpoint of ours says of itself beside its weights, checked on reading."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lowbit.errors import InputError
from lowbit.options import MAX_SIDE


def is_of(checkpoint: Mapping[str, Any], package: str, newest: int) -> bool:
    """Whether a method's package wrote a checkpoint; `arch` and `state_dict` are then what they should be.

    Args:
        checkpoint: its content.
        package: its import name.
        newest: the latest format that this version reads.

    Raises:
        InputError: it did, in a later format, or the file is damaged.
    """
    if checkpoint.get("package") != package:
        return False
    check_format(checkpoint, newest, package)
    state, arch = checkpoint.get("state_dict"), checkpoint.get("arch")
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError("the checkpoint holds no state_dict of tensors; name another file")
    if not isinstance(arch, str):
        raise InputError(f"the checkpoint says that its net is {arch!r:.80}, which is no name; name another file")
    return True


def check_format(checkpoint: Mapping[str, Any], newest: int, package: str) -> None:
    """Refuse a file of a later version.

    Args:
        checkpoint: its content.
        newest: the latest format that this version reads.
        package: of the method.

    Raises:
        InputError: it is later, or no number.
    """
    version = checkpoint.get("format")
    if type(version) is not int or version > newest:
        raise InputError(f"the checkpoint has format {version}, this version reads {newest}: update lowbit-{package}")


def picture_size(said: Any) -> tuple[int, int, int]:
    """(C, H, W) of the pictures, as a file says it.

    Raises:
        ValueError: it is none.
    """
    if len(said) != 3 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in said):
        raise ValueError(f"input_size {said}")
    channels, height, width = said
    return channels, height, width


@contextmanager
def description() -> Iterator[None]:
    """Within it a value that is not what we write becomes one line.

    Raises:
        InputError: whatever is wrong.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint's description of its net is damaged ({reason}); name another file") from error
