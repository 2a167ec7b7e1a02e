"""The net that MODEL.ARCH names, made slimmable as its kind says; its sub-network at a width as an ordinary net."""

from copy import deepcopy

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lowbit.models.create import create_model
from lowbit.models.surgery import of_kind
from lowbit.quant.layers import to_plain_
from us3l.config import Kind, Net
from us3l.layers import at_width
from us3l.slim import slim_, slim_inputs_
from us3l.widths import Width

Size = tuple[int, int, int]


def network(of: Net, size: Size, widths: tuple[float, ...], classes: int) -> nn.Module:
    """A net with a linear classifier of `classes` (0: none), drawn by torch's generator; arguments of `slimmable_`."""
    return slimmable_(create_model(of.name, num_classes=classes), of, size, widths)


def slimmable_(net: nn.Module, of: Net, size: Size, widths: tuple[float, ...]) -> nn.Module:
    """Make timm's net, whatever stands at its end, what the authors' name of it and its widths say.

    Args:
        net: in place.
        of: what MODEL.ARCH names.
        size: (C, H, W) of a picture.
        widths: that it is trained at: one, a list, or both ends of a range.

    Raises:
        InputError: a net that cannot be slimmed.
    """
    if kind_of(of, widths) == "plain":
        return net
    if isinstance(net, VisionTransformer):
        return slim_inputs_(net)
    return slim_(net, size, widths if of.kind == "switchable" else ())


def kind_of(of: Net, widths: tuple[float, ...]) -> Kind:
    """A net under timm's name is slimmable, too, where it runs at other widths than 1."""
    return "universal" if of.kind == "plain" and widths != (1.0,) else of.kind


def sub_network(net: nn.Module, width: Width) -> nn.Module:
    """An ordinary net that computes what a slimmable one computes at a width; its tensors are copies.

    Raises:
        InputError: a net that is not slimmable at a width below 1; a width that it cannot have.
    """
    with at_width(net, width):
        return to_plain_(deepcopy(net))


def without_statistics_(net: nn.Module) -> nn.Module:
    """Let batch norm of pictures normalise by the batch also in evaluation; returns the net."""
    for norm in of_kind(net, nn.BatchNorm2d).values():
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return net
