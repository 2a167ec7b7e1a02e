"""What a method reads inside student and teacher, by module name, and the method as a part of the objective."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.losses.ranks import Ranks, gather_rows, ranks_of
from lowbit.models.captured import Captured, captured, module_of
from lowbit.models.surgery import run_blank
from lowbit.train.protocol import Clock
from sqakd.kd.contrast import Negatives
from sqakd.kd.maps import Maps

STEMS = ("relu", "act1")  # that timm's list of stages may leave out


def stages_of(net: nn.Module, given: Sequence[str], flag: str) -> tuple[str, ...]:
    """Names of the modules whose outputs are a net's maps, the stem's first: `given`, else timm's `feature_info`.

    Raises:
        InputError: the net has none of its own.
    """
    info = getattr(net, "feature_info", None) or ()
    names = tuple(given) or tuple(stage["module"] for stage in info)
    if not names:
        raise InputError(f"{type(net).__name__} does not say its stages: name modules of maps, {flag} MODULE...")
    first = next((name for name in STEMS if isinstance(getattr(net, name, None), nn.ReLU)), names[0])
    return names if given or first in names else (first, *names)


def shapes_of(net: nn.Module, names: Sequence[str], side: int, flag: str) -> dict[str, torch.Size]:
    """Shapes of the outputs, (1, C, H, W), for pictures of that side.

    Raises:
        InputError: no such module, or its output is no map.
    """
    with captured(net, names) as found:
        run_blank(net, (3, side, side), setting="--image-size")
    for name, outputs in found.items():
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].dim() != 4:
            raise InputError(f"{flag} {name}: its output is not one map (B, C, H, W): name other modules")
    return {name: outputs[0].shape for name, outputs in found.items()}


def blocks_of(net: nn.Module, stage: str) -> list[str]:
    """Names of a stage's blocks; itself where its parts are single layers, or it is no sequence."""
    module = module_of(net, stage)
    is_stage = isinstance(module, nn.Sequential) and all(list(block.children()) for block in module)
    return [f"{stage}.{name}" for name, _ in module.named_children()] if is_stage else [stage]


def layout_of(batch: Batch, clock: Clock) -> Ranks:
    """How the batch lies on the ranks that the clock names; a hook's batches are whole, its clock of one rank."""
    rows = len(batch.index)
    return ranks_of(rows, batch.share) if clock.world > 1 else Ranks((rows,))


def as_they_are(maps: Sequence[Tensor]) -> list[Tensor]:
    """No reduction."""
    return list(maps)


def pooled(maps: Sequence[Tensor]) -> list[Tensor]:
    """The mean of the last map over its positions, (B, C)."""
    return [maps[-1].mean((2, 3))]


class FeatureLoss(nn.Module):
    """A method: which features it reads, its loss with its modules, its negatives.

    Args:
        students: names of the student's modules.
        teachers: of the teacher's.
        loss: (student's features, teacher's) -> scalar; with `negatives` a `ContrastLoss`.
        reduce: maps -> features.
        together: the loss is one of the whole batch; features of all ranks are gathered.
        negatives: draws, for each picture, the rows of the memories that it is compared with.
    """

    def __init__(
        self, students: Sequence[str], teachers: Sequence[str], loss: Callable[..., Any], *,
        reduce: Callable[[Sequence[Tensor]], list[Tensor]] = as_they_are, together: bool = False,
        negatives: Negatives | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.students, self.teachers, self.loss = tuple(students), tuple(teachers), loss
        self.reduce, self.together, self.negatives = reduce, together, negatives

    def forward(self, student: Captured, teacher: Captured, batch: Batch, clock: Clock) -> tuple[Tensor, Any]:
        """The loss, in single precision at least, and what `update_` is given."""
        layout = layout_of(batch, clock)
        with torch.autocast(batch.views[0].device.type, enabled=False):
            fs, ft = (self._of(*pair, layout) for pair in ((student, self.students), (teacher, self.teachers)))
            if self.negatives is None:
                return self.loss(fs, ft), None
            rows = self.negatives(batch, clock, layout)
            return self.loss(fs, ft, rows, layout, clock)

    def _of(self, found: Captured, names: Sequence[str], layout: Ranks) -> Maps:
        maps = [found[name][0] for name in names]
        wide = (f if f.dtype == torch.float64 else f.float() for f in maps)
        features = self.reduce(list(wide)) if maps else []
        return [gather_rows(f, layout) for f in features] if self.together else features

    def update_(self, batches: Sequence[tuple[Any, Tensor, Ranks]]) -> None:
        """After a step: memories take up what was seen, as (what `forward` gave, rows, layout) of each part."""
        for seen, index, layout in batches:
            if seen is not None:
                self.loss.update_(seen, gather_rows(index, layout), layout)  # type: ignore[attr-defined]
