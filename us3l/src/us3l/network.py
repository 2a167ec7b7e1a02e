"""From the authors' name of a net to the net: plain, slimmable, or with a batch norm for each width of a list."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lowbit.checkpoint.header import PictureSize
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_, slim_inputs_
from us3l.names import Kind, Net


def network(of: Net, size: PictureSize, widths: tuple[float, ...], classes: int) -> nn.Module:
    """A net with a linear classifier of `classes` (0: none), drawn by torch's generator; arguments of `slimmable_`.

    The last batch norm of each block of timm's ResNets starts at 1, as the authors' does.
    """
    return slimmable_(create_model(of.name, zero_init_last=False, num_classes=classes), of, size, widths)


def slimmable_(net: nn.Module, of: Net, size: PictureSize, widths: tuple[float, ...]) -> nn.Module:
    """Make timm's net, in place and whatever stands at its end, what the authors' name of it and its widths say.

    Args:
        net: of timm.
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
