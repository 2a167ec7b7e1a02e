"""What a checkpoint says of its run, as one typed record: nothing of it is put back before all of it is checked."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from lowbit.errors import InputError

SCALARS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):  # pydantic takes one of one element for a number
        raise ValueError("a tensor where a number is meant")
    return value


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Float = Annotated[float, BeforeValidator(_plain)]
Figure = Annotated[float, BeforeValidator(lambda value: float(value) if isinstance(value, bool) else _plain(value))]
Pair = Annotated[tuple[Float, Float], Field(strict=False)]  # or a list of two


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)


class Facts(_Saved):
    """What has to be the same, or is worth saying, when a run is resumed.

    Attributes:
        seed: of every draw. global_batch: pictures of a step. steps_per_epoch: of the loader. epochs: of each stage.
        processes: ranks. accumulate: parts of a batch. threads: of torch. mixed_precision: accelerate's name.
        options: of the training (`Run.options`). rebuilt: of each stage, digests of what is no part of a checkpoint.
    """

    seed: int
    global_batch: Positive
    steps_per_epoch: Positive
    epochs: list[Positive]
    processes: Positive
    accumulate: Positive
    threads: Positive
    mixed_precision: str
    options: dict[str, Any]
    rebuilt: list[dict[str, str]]


class Scalars(_Saved):
    """Scalars of one name since the last line of metrics, (N,), and their N weights."""

    values: Tensor
    weights: list[Float]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, saved: Any) -> Any:
        return dict(zip(("values", "weights"), saved, strict=True)) if isinstance(saved, list | tuple) else saved

    @model_validator(mode="after")
    def _even(self) -> "Scalars":
        if self.values.dtype not in SCALARS or self.values.shape != (len(self.weights),):
            raise ValueError("its scalars are not as many as their weights, or of another type")
        return self


class Meters(_Saved):
    """`lowbit.train.log.Meter.state`."""

    recent: dict[str, Scalars]
    epoch: dict[str, Pair]


class Rank(_Saved):
    """What differs by process."""

    buffers: dict[str, Tensor]
    meter: Meters


class Last(_Saved):
    """`lowbit.train.record.Record.last`."""

    model_config = ConfigDict(extra="forbid")

    train: dict[str, Float]
    eval: dict[str, Figure]


class SavedRun(_Saved):
    """A checkpoint's entries beside its weights (`lowbit.train.state.gather`); others are a method's own.

    Attributes:
        run: how it was started. position: where it stands (`lowbit.train.position`). optimizer: state by name.
        scaler: of fp16. ranks: of each process. lines: of metrics. seconds: spent. best, last: figures.
    """

    run: Facts
    position: dict[str, Any]
    optimizer: dict[str, dict[str, Any]]
    scaler: dict[str, Float] | None
    ranks: Annotated[list[Rank], Field(min_length=1)]
    lines: Count
    seconds: Annotated[Float, Field(ge=0, allow_inf_nan=False)]
    best: dict[str, Figure] | None
    last: Last


def read_run(state: Mapping[str, Any]) -> SavedRun:
    """The record of a checkpoint.

    Raises:
        InputError: it is of no run, or an entry is not what is written there.
    """
    if not {"run", "position"} <= state.keys():
        raise InputError("--resume: the checkpoint holds weights but no run to go on with; name one of this program")
    try:
        return SavedRun.model_validate({name: state[name] for name in SavedRun.model_fields if name in state})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        reason = f"{place}: {first['msg']}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise InputError(
        f"--resume: the checkpoint is damaged or of another run ({' '.join(reason.split())[:200]}); name another"
    )
