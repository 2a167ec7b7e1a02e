"""Change a net by module names: select by patterns, replace; a layer like another one; whether a net takes pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, TypeVar

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lowbit.errors import InputError

MOST_PIXELS = 512 * 512  # of a blank picture whose values are computed
Kind = TypeVar("Kind", bound=nn.Module)
SHAPE = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def select(
    model: nn.Module,
    wanted: Callable[[nn.Module], bool],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Names of the modules that are `wanted`, match a pattern of `include` and none of `exclude`.

    Args:
        model: any net.
        wanted: the kind of module (usually an isinstance test).
        include: shell patterns of full module names; `*` also matches dots (`layer3.*`, `*downsample*`).
        exclude: patterns likewise.

    Returns:
        Names in the order of the modules; a module that has several names is listed once.

    Raises:
        InputError: a pattern matches no wanted module (a typing error would otherwise quantize the wrong layers).
    """
    names = [name for name, module in model.named_modules() if wanted(module)]
    for pattern in (*include, *exclude):
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise InputError(f"pattern {pattern!r} matches no layer; the names here are: {shown or '(none)'}")
    return [
        name
        for name in names
        if any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
    ]


def of_kind(model: nn.Module, kind: type[Kind]) -> dict[str, Kind]:
    """The modules of one class by name, in the order of the modules; one that has several names is listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def replace_(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Put `modules` in the places of the named ones, in the former's training mode.

    A module that is reached by several names is replaced in all of its places.

    Returns:
        The model; the replacement itself where the name is "" (the model is a single layer).
    """
    new: dict[nn.Module | None, nn.Module] = {}
    for name, module in modules.items():
        old = model.get_submodule(name)
        new[old] = module.train(old.training)
    for parent in list(model.modules()):
        for child, there in parent._modules.items():
            if there in new:
                setattr(parent, child, new[there])
    return new.get(model, model)


def conv_like(conv: nn.Module, **changes: Any) -> nn.Conv2d:
    """A convolution like `conv` whose tensors have no memory (device "meta").

    Args:
        conv: an nn.Conv2d, timm's Conv2dSame, or a layer with the attributes `SHAPE` and, for the latter, `same`.
        changes: other values of `SHAPE`.
    """
    same = isinstance(conv, Conv2dSame) or bool(getattr(conv, "same", False))
    arguments: dict[str, Any] = {name: getattr(conv, name) for name in SHAPE} | changes
    if same:
        del arguments["padding_mode"]
    kind: type[nn.Conv2d] = Conv2dSame if same else nn.Conv2d
    return kind(**arguments, bias=getattr(conv, "bias", None) is not None, device="meta")


@torch.no_grad()
def run_blank(
    model: nn.Module,
    input_size: tuple[int, int, int],
    handles: Iterable[RemovableHandle] = (),
    setting: str = "their size",
    values: bool = True,
) -> None:
    """One forward of a blank picture in evaluation mode, for the hooks of `handles`; they go, and modes come back.

    Without hooks it finds out whether the net takes such pictures. The tensors of large ones have no values, since one
    layer's output may take gigabytes.

    Args:
        model: any net.
        input_size: (C, H, W) of a picture.
        handles: of hooks on its modules.
        setting: what sets the size of pictures, for the message.
        values: whether tensors have any; without them the forward takes no time.

    Raises:
        InputError: the net does not take pictures of this size.
    """
    modes, reference = {module: module.training for module in model.modules()}, next(model.parameters())
    model.eval()
    large = not values or input_size[1] * input_size[2] > MOST_PIXELS
    device = torch.device("meta") if large else reference.device
    picture = torch.zeros(1, *input_size, device=device, dtype=reference.dtype)
    try:
        if large:
            own = {name: t.to("meta") for name, t in chain(model.named_parameters(), model.named_buffers())}
            functional_call(model, own, (picture,))
        else:
            model(picture)
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{name} cannot take pictures of {input_size[1]}x{input_size[2]} pixels ({reason}): change "
            f"{setting}, or use another net"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
