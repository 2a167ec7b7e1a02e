"""From a method's name to its parts of the objective, and to the stages of a run.

A method of two stages trains first, for `--init_epochs` epochs, by SGD at a constant rate, on its own loss alone: FSP
and AB the student (at its rates, AB also its connectors), FT its paraphraser (at 0.01, the student left as it is). The
second stage is the run that the command line describes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD

from lowbit.errors import InputError
from lowbit.train.protocol import Stage
from lowbit.train.schedule import constant
from sqakd.kd import maps, regress, relations
from sqakd.kd.contrast import ContrastLoss, ContrastLosses, Negatives, Weights, features
from sqakd.kd.features import FeatureLoss, blocks_of, pooled, shapes_of, stages_of
from sqakd.kd.svd import kdsvd
from sqakd.objective import Sqakd
from sqakd.optim import optimizers, rates
from sqakd.options import TrainOptions

PARAPHRASER_RATE = 0.01
IN_PAIRS = ("fsp", "kdsvd")  # compare what lies between two places, channel by channel


class Side(NamedTuple):
    """Student or teacher: its net, and the shapes (1, C, H, W) of its maps, the stem's first."""

    net: nn.Module
    shapes: Mapping[str, torch.Size]

    def at(self, places: slice) -> tuple[list[str], list[torch.Size]]:
        """Names and shapes of some maps."""
        return list(self.shapes)[places], list(self.shapes.values())[places]


def make_stages(
    own: TrainOptions, student: nn.Module, teacher: nn.Module | None, labels: Tensor, side: int
) -> list[Stage]:
    """The stages of a run.

    Args:
        own: of the command.
        student: quantizers set, on the device.
        teacher: None without a method.
        labels: of the training pictures.
        side: of pictures, in pixels.

    Raises:
        InputError: modules that are not there, or maps that the method cannot compare.
    """
    first, method = (None, None) if teacher is None else make_methods(own, student, teacher, labels, side)
    weight = 1.0 if own.distill == "crdst" else own.kd_beta  # CKTF weights its terms itself
    objective = Sqakd(
        student, partial(optimizers, own), teacher, alpha=own.kd_alpha, gamma=own.kd_gamma, temperature=own.kd_t,
        smoothing=own.smoothing, hessian_every=own.hessian_every, method=method, beta=weight,
    )  # fmt: skip
    main = Stage(objective, own.epochs, rates(own))
    if first is None:
        return [main]
    begin = replace(own, optimizer_m="sgd", optimizer_q="sgd", nesterov=False)
    build, lr = partial(optimizers, begin), {"main": constant(own.lr_m), "quantizer": constant(own.lr_q)}
    if own.distill == "factor":
        build, lr = partial(_paraphraser_optimizer, begin, first.loss), {"main": constant(PARAPHRASER_RATE)}
    before = Sqakd(student, build, teacher, alpha=0.0, method=first, beta=1.0)
    before.frozen = () if first.students else ("student",)
    return [Stage(before, own.init_epochs, lr), main]


def _paraphraser_optimizer(own: TrainOptions, paraphraser: Any, trained: nn.Module) -> dict[str, Any]:
    return {"main": SGD(paraphraser.parameters(), PARAPHRASER_RATE, own.momentum, weight_decay=own.weight_decay)}


def make_methods(
    own: TrainOptions, student: nn.Module, teacher: nn.Module, labels: Tensor, side: int
) -> tuple[FeatureLoss | None, FeatureLoss | None]:
    """What the first stage and the second one add, None for nothing; arguments and errors as in `make_stages`."""
    if own.distill == "kd":
        return None, None
    sides = [
        Side(net, shapes_of(net, stages_of(net, given, flag), side, flag))
        for net, given, flag in (
            (student, own.features, "--features"), (teacher, own.teacher_features, "--teacher_features"),
        )
    ]  # fmt: skip
    if own.method.negatives:
        return None, _contrast(own, sides[0], sides[1], labels, side)
    where = slice(own.hint_layer, own.hint_layer + 1) if own.distill == "hint" else PLACES.get(own.distill, INNER)
    (names, shapes), (theirs, there) = (each.at(where) for each in sides)
    if own.distill == "hint" and not (names and theirs):
        count = min(len(each.shapes) for each in sides)
        raise InputError(f"--hint_layer {own.hint_layer}: the nets have the maps 0 to {count - 1}: name one of them")
    _check(own.distill, dict(zip(names, shapes, strict=True)), dict(zip(theirs, there, strict=True)))
    if own.distill in POOLED:
        loss = POOLED[own.distill](own, shapes[0], there[0])
        return None, FeatureLoss(names, theirs, loss, reduce=pooled, together=True)
    try:
        return _on_maps(own.distill, names, theirs, shapes, there)
    except ValueError as error:
        raise InputError(f"--distill {own.distill}: {error}: name other modules, --features MODULE...") from error


LAST, ALL, INNER = slice(-1, None), slice(None), slice(1, None)  # maps; INNER: all but the stem's
Loss = Callable[..., Any]
PLAIN: dict[str, Loss] = {
    "attention": maps.attention, "nst": maps.nst, "similarity": relations.similarity, "kdsvd": kdsvd,
}  # fmt: skip
POOLED: dict[str, Callable[..., Loss]] = {
    "rkd": lambda own, s, t: relations.rkd,
    "pkt": lambda own, s, t: relations.pkt,
    "correlation": lambda own, s, t: relations.Correlation((s[1], t[1]), own.feat_dim),
}
PLACES = {"fsp": ALL} | dict.fromkeys(("similarity", "factor", *POOLED), LAST)  # of those that do not read INNER


def _on_maps(
    name: str, names: Sequence[str], theirs: Sequence[str], s: Sequence[Any], t: Sequence[Any]
) -> tuple[FeatureLoss | None, FeatureLoss | None]:
    """Of a method that reads maps, of these modules and shapes."""
    made = partial(FeatureLoss, names, theirs)
    if name in PLAIN:
        return None, made(PLAIN[name], together=name == "similarity")
    if name == "fsp":
        return made(maps.fsp), None
    if name == "abound":
        return made(regress.ActivationBoundaries(s, t)), None
    if name == "vid":
        return None, made(regress.Variational(s, t))
    if name == "hint":
        return None, made(regress.Hint(s[0], t[0]))
    paraphraser = regress.Paraphraser(t[0][1])
    transfer = regress.FactorTransfer((s[0][1], t[0][1]), paraphraser)
    return FeatureLoss((), theirs, paraphraser), made(transfer)


def _check(name: str, student: Mapping[str, Sequence[int]], teacher: Mapping[str, Sequence[int]]) -> None:
    """Refuse maps, by name their shapes, that cannot be compared."""
    if not student or len(student) != len(teacher):
        said = [
            f"{len(maps)} of the {of}'s ({', '.join(maps)})"
            for of, maps in (("student", student), ("teacher", teacher))
        ]
        raise InputError(
            f"--distill {name} compares maps one by one, and {said[0]} stand beside {said[1]}: name as many, "
            "--features MODULE... --teacher_features MODULE..."
        )
    if name in IN_PAIRS and len(student) < 2:
        raise InputError(f"--distill {name} compares places two by two: name one module more, --features MODULE...")
    channels = [[shape[1] for shape in maps.values()] for maps in (student, teacher)]
    if name in IN_PAIRS and channels[0] != channels[1]:
        raise InputError(
            f"--distill {name} needs maps of equal channels, and the student's have {channels[0]}, the teacher's "
            f"{channels[1]}: name other modules, --features MODULE... --teacher_features MODULE..."
        )


def _contrast(own: TrainOptions, student: Side, teacher: Side, labels: Tensor, side: int) -> FeatureLoss:
    """CRD, or CKTF."""
    negatives = Negatives(labels, own.nce_k, own.mode == "relax")

    def loss(*widths: int) -> ContrastLoss:
        return ContrastLoss(widths, own.feat_dim, len(labels), own.nce_t, own.nce_m)

    if own.distill == "crd":
        (names, s), (theirs, t) = student.at(LAST), teacher.at(LAST)
        return FeatureLoss(names, theirs, loss(s[0][1], t[0][1]), reduce=pooled, negatives=negatives)
    (names, s), (theirs, t) = student.at(ALL), teacher.at(ALL)
    _check(own.distill, student.shapes, teacher.shapes)
    stages = [blocks_of(teacher.net, name) for name in theirs[1:]]
    blocks = [block for stage in stages for block in stage]
    found = shapes_of(teacher.net, blocks, side, "--teacher_features")
    if own.st_method in ("Smallest", "Largest"):
        pairs = zip(s[1:], stages, strict=True)
        if any(shape != found[block] for shape, stage in pairs for block in stage):
            raise InputError(f"--st_method {own.st_method} needs stages of equal shapes in both nets: give Last")
    chosen = [found[stage[0 if own.st_method == "First" else -1]] for stage in stages]
    widths = [
        [f.shape[1] for f in features([torch.empty(shape, device="meta") for shape in shapes])]
        for shapes in (s, [t[0], *chosen])
    ]
    losses = [loss(*pair) for pair in zip(*widths, strict=True)]
    together = ContrastLosses(
        losses, Weights(own.kd_beta, own.kd_theta), [len(stage) for stage in stages], own.st_method
    )
    return FeatureLoss(names, [theirs[0], *blocks], together, negatives=negatives)
