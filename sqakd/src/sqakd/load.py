"""From a checkpoint of this package, of the authors' programs, or any file of weights, to the net that it holds."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field
from torch import nn

from lowbit.checkpoint.check import load_state_
from lowbit.checkpoint.header import Header, Name, read_header
from lowbit.errors import InputError
from lowbit.models.create import check_size, classifiers, create_model
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.models.weight_file import Weights, read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.quant.learned import LearnedConfig
from sqakd import authors
from sqakd.options import TrainOptions
from sqakd.quantize import Quantizers, quantize_

FORMAT = 1
METHOD = "method."  # before the keys of what a distillation method trains beside the net
Config = Annotated[LearnedConfig, BeforeValidator(lambda said: LearnedConfig(**said))]


class SqakdHeader(Header):
    """What ours say: also the quantizers, [[of weights, of inputs, layers], ...], and always the classes."""

    classes: Annotated[int, Field(strict=True, ge=1)]
    quantizers: list[tuple[Config, Config, list[Name]]]

    @property
    def by_layer(self) -> Quantizers:
        """The quantizers by layer."""
        return {name: (weight, given) for weight, given, names in self.quantizers for name in names}


def header(arch: str, classes: int, quantizers: Quantizers, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`."""
    groups: dict[tuple[LearnedConfig, LearnedConfig], list[str]] = {}
    for name, pair in quantizers.items():
        groups.setdefault(pair, []).append(name)
    said = [[asdict(weight), asdict(given), names] for (weight, given), names in groups.items()]
    facts = {"arch": arch, "classes": classes, "quantizers": said, "input_size": cfg["input_size"], ENTRY: cfg}
    return {"format": FORMAT, "package": "sqakd", **facts}


class Net(NamedTuple):
    """A net out of a file: in evaluation mode, its timm name, its quantizers, and what the file says of it."""

    model: nn.Module
    arch: str
    quantizers: Quantizers
    said: Mapping[str, Any]


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the net, or None if the checkpoint is not SQAKD's.

    Raises:
        InputError: it is, and is damaged, or does not say its levels.
    """
    said = read_header(checkpoint, "sqakd", FORMAT, SqakdHeader)
    if said is not None:
        return _ours(said)
    if "package" in checkpoint or not ("optimizer_m" in checkpoint or "best_prec1" in checkpoint):
        return None
    weights = Weights("the checkpoint", checkpoint)
    theirs = authors.parse(weights.tensors)
    return None if theirs is None else _of(weights, theirs, theirs.arch, None, None).model


def _ours(said: SqakdHeader) -> nn.Module:
    def made() -> nn.Module:
        model = create_model(said.arch, num_classes=said.classes)
        missing = next((name for name in said.by_layer if name not in dict(model.named_modules())), None)
        if missing is not None:
            raise InputError(f"the checkpoint quantizes {missing!r:.80}, which its net has not; name another file")
        return quantize_(model, said.by_layer)

    check_size(made, said.numbers)
    own = {key: value for key, value in said.state_dict.items() if not key.startswith(METHOD)}
    return load_state_(made(), own).eval()


def open_net(
    path: Path | str, arch: str | None = None, classes: int | None = None, own: TrainOptions | None = None
) -> Net:
    """Read any file.

    Args:
        path: a checkpoint of ours or the authors', or other weights.
        arch: timm name, where the file does not say.
        classes: that the net has to have; None: the file's.
        own: the bits of an authors' quantized net, which its file does not say.

    Raises:
        InputError: it cannot be read, nobody says which net it is, or it is another one.
    """
    weights = read_weights(path)
    try:
        said = read_header(weights.content, "sqakd", FORMAT, SqakdHeader)
        if said is not None:
            if classes not in (None, said.classes):
                raise InputError(f"it is a net of {said.classes} classes, and {classes} are needed: choose its data")
            return Net(_ours(said), said.arch, said.by_layer, weights.said)
        theirs = None if weights.ours else authors.parse(weights.tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _of(weights, theirs, arch, classes, own)


def _of(
    weights: Weights, theirs: authors.Theirs | None, arch: str | None, classes: int | None, own: TrainOptions | None
) -> Net:
    """Of others' files, ordinary weights among them."""
    if theirs is not None:
        weights, arch = Weights(weights.name, theirs.state), theirs.arch
    name = weights.choose_arch(arch)

    def made(classes: int) -> nn.Module:
        return create_model(name, num_classes=classes)

    check_size(lambda: made(classes or 1), sum(value.numel() for value in weights.tensors.values()))
    bare = made(1)
    branch = branch_of(weights, bare)
    head = next(
        (branch.state[k] for k in branch.state if k.startswith(classifiers(bare)) and k.endswith("weight")), None
    )
    model, quantizers = made(classes or (1 if head is None else len(head))), dict[str, Any]()
    if theirs is not None and theirs.layers:
        if own is None or not own.quantizer:
            raise InputError(
                f"{weights.name}: the authors' quantized nets do not say their levels: use sqakd train_quant "
                "--evaluate --resume FILE --weight_levels N --act_levels N"
            )
        pair = LearnedConfig("ste", own.wbits), LearnedConfig("ste", own.abits)
        quantizers = dict.fromkeys(theirs.layers, pair)
        return Net(load_state_(quantize_(model, quantizers), theirs.state).eval(), name, quantizers, {})
    load_(model, weights, branch)
    return Net(model.eval(), name, quantizers, weights.said)
