"""Projectors and predictors of self-supervised methods.

| method | projector | predictor |
|---|---|---|
| SimSiam (Chen, He, CVPR 2021) | three layers of max(features, dim), batch norm also at the end | yes |
| BYOL (Grill et al., NeurIPS 2020) | three layers of `hidden`, none at the end | yes |
| SimCLR (Chen et al., ICML 2020), MoCo v2 (Chen et al., 2020) | two layers, no batch norm | no |

The last batch norm has no weight or bias, and the bias of the linear layer before it is frozen (it has no effect).

Deviation: BYOL's projector has two layers in its paper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowbit.checkpoint.check import behind
from lowbit.errors import InputError
from lowbit.models.surgery import replace_


@dataclass(frozen=True)
class HeadPlan:
    """What a method's heads look like.

    Attributes:
        layers: linear layers of the projector: 3 with batch norm, 2 without.
        wide: the projector's hidden layers have max(features, dim) units, not `hidden`.
        output_bn: whether the projector ends in a batch norm.
        predictor: whether there is one.
        bias: of each hidden layer of the projector; None: of both where there is no batch norm after them.
    """

    layers: int
    wide: bool
    output_bn: bool
    predictor: bool
    bias: tuple[bool, ...] | None = None


_CONTRASTIVE = HeadPlan(2, wide=False, output_bn=False, predictor=False)
HEADS = {  # by method
    "SimSiam": HeadPlan(3, wide=True, output_bn=True, predictor=True),
    "BYOL": HeadPlan(3, wide=False, output_bn=False, predictor=True),
    "SimCLR": _CONTRASTIVE,
    "MoCo": _CONTRASTIVE,
}


def linear_classifier(net: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of a timm net's last layer, whose place a projector or another classifier takes.

    Raises:
        InputError: the net does not end in one linear layer.
    """
    layer = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]  # timm's
    name = next((name for name, module in net.named_modules() if module is layer), "")
    if not isinstance(layer, nn.Linear) or not name:
        of = (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__
        raise InputError(f"{of} has no linear classifier (one linear layer at its end): use another net")
    return name, layer


class Heads(NamedTuple):
    """A method's heads: `projector` (B, features) -> (B, dim), `predictor` (B, dim) -> (B, dim) or None."""

    projector: nn.Sequential
    predictor: nn.Sequential | None


def projector(
    features: int, hidden: int, dim: int, layers: int = 3, output_bn: bool = False,
    bias: tuple[bool, ...] | None = None,
) -> nn.Sequential:  # fmt: skip
    """Linear layers with ReLU between them, (B, features) -> (B, dim).

    Args:
        features: units in.
        hidden: units of the hidden layers.
        dim: units out.
        layers: 3, batch norm in place of biases before each ReLU; 2 (or 1), biases and no batch norm.
        output_bn: end in a batch norm without parameters.
        bias: of each hidden layer; None: as `layers` says.
    """
    parts: list[nn.Module] = []
    for number in range(layers - 1):
        parts.append(nn.Linear(features, hidden, bias=layers < 3 if bias is None else bias[number]))
        parts += [nn.BatchNorm1d(hidden)] if layers == 3 else []
        parts.append(nn.ReLU())
        features = hidden
    return nn.Sequential(*parts, *_last(features, dim, output_bn))


def projector_like(state: Mapping[str, Tensor]) -> nn.Sequential:
    """A projector with the layers of another, by its tensors (`0.weight`, ...): what has none is a ReLU.

    Raises:
        InputError: they are those of no projector of linear layers and batch norms.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        place, _, name = key.partition(".")
        layers.setdefault(int(place) if place.isdecimal() and len(place) < 3 else -1, {})[name] = value
    parts = [_layer_like(layers.get(number, {})) for number in range(max(layers, default=-1) + 1)]
    if -1 in layers or not parts or None in parts:
        raise InputError(f"{', '.join(list(state)[:3]) or 'nothing'} is no projector of linear layers")
    return nn.Sequential(*(part for part in parts if part is not None))


def _layer_like(own: Mapping[str, Tensor]) -> nn.Module | None:
    """The layer whose tensors these are; files may lack batch norm's statistics. None: another kind of layer."""
    weight, mean = own.get("weight"), own.get("running_mean")
    if not own:
        return nn.ReLU()
    if weight is not None and weight.dim() == 2:
        return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in own)
    of = weight if mean is None else mean
    return None if of is None or of.dim() != 1 else nn.BatchNorm1d(len(of), affine=weight is not None)


def predictor(dim: int, hidden: int, output_bn: bool = False) -> nn.Sequential:
    """Two layers with batch norm between them, (B, dim) -> (B, dim); it may end in one without parameters."""
    first = [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*first, *_last(hidden, dim, output_bn))


def _last(hidden: int, dim: int, output_bn: bool) -> list[nn.Module]:
    """A head's last layer."""
    layer = nn.Linear(hidden, dim)
    layer.bias.requires_grad_(not output_bn)
    return [layer, nn.BatchNorm1d(dim, affine=False)] if output_bn else [layer]


def build_heads(
    plan: HeadPlan, features: int, dim: int, hidden: int, output_bn: bool | None = None, mlp: bool = True
) -> Heads:
    """The heads of a method.

    Args:
        plan: of `HEADS`, or another.
        features: width of the backbone.
        dim: units out.
        hidden: units of the hidden layers.
        output_bn: whether the projector ends in a batch norm; None: as in `plan`.
        mlp: False leaves a projector of two layers one linear layer, as in MoCo v1.
    """
    inner = max(features, dim) if plan.wide else hidden
    ends = plan.output_bn if output_bn is None else output_bn
    layers = plan.layers if mlp or plan.layers == 3 else 1
    made = projector(features, inner, dim, layers, ends, plan.bias)
    return Heads(made, predictor(dim, hidden) if plan.predictor else None)


def attach_projector_(encoder: nn.Module, build: Callable[[int], Heads]) -> Heads:
    """Put a projector in the classifier's place of a timm net; `build` is given the width of the features.

    Raises:
        InputError: a net without a linear classifier.
    """
    name, classifier = linear_classifier(encoder)
    heads = build(classifier.in_features)
    replace_(encoder, {name: heads.projector})
    return heads


def end_like_(net: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """Let a timm net end as a file has it: in a classifier, a projector in its place, or neither.

    Args:
        net: with a linear classifier; in place.
        state: tensors of the file by the net's keys; their shapes count.

    Raises:
        InputError: tensors of no such end, or a net without a linear classifier.
    """
    name, _ = linear_classifier(net)
    inner = behind(state, f"{name}.")
    weight = inner.get("weight")
    if not inner or (weight is not None and weight.dim() == 2):
        net.reset_classifier(0 if weight is None else len(weight))
        return net
    return replace_(net, {name: projector_like(inner)})
