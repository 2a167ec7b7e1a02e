"""What a checkpoint of ours says of itself beside its weights: one record, checked before anything is built.

Methods add entries of their own by subclasses; entries that a record does not name are left alone.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from lowbit.checkpoint.check import check_floats, tensors
from lowbit.errors import InputError
from lowbit.metrics import number
from lowbit.options import MAX_SIDE, MOST_CLASSES

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]  # pixels, or channels
PictureSize = tuple[Side, Side, Side]  # (C, H, W)
Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
Kind = TypeVar("Kind", bound="Header")


class Record(BaseModel):
    """Entries that are checked when it is made."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)


class Pictures(Record):
    """How timm shows pictures to a net, as `lowbit.models.create.picture_settings` has it."""

    input_size: Annotated[list[Side], Field(min_length=3, max_length=3)]
    interpolation: Name
    mean: Annotated[list[Number], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=3, max_length=3)]
    crop_pct: Annotated[Number, Field(ge=0.1, le=1)]
    crop_mode: Name | None = None


class Header(Record):
    """What every method's checkpoints say.

    Attributes:
        arch: timm name. state_dict: the weights. classes: of a classifier. input_size: of the pictures.
        pretrained_cfg: how pictures are shown to it.
    """

    arch: Name
    state_dict: Annotated[dict[str, Tensor], Field(min_length=1)]
    classes: Annotated[int, Field(strict=True, ge=1, le=MOST_CLASSES)] | None = None
    input_size: PictureSize | None = None
    pretrained_cfg: Pictures | None = None

    @property
    def numbers(self) -> int:
        """Of all tensors."""
        return sum(tensor.numel() for tensor in self.state_dict.values())


def picture_size(said: Any) -> PictureSize:
    """What any file says of its pictures, as (C, H, W).

    Raises:
        InputError: it is no such size.
    """
    try:
        return TypeAdapter(PictureSize).validate_python(said)
    except ValidationError:
        raise InputError(f"its input_size is {said!r:.80}, not (C, H, W): name another file") from None


def stated_figures(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """What a file says of the very net that it holds: its `figures`, or its top-1 in percent alone, as `acc`."""
    acc, figures = checkpoint.get("acc"), checkpoint.get("figures")
    top1 = acc.item() if isinstance(acc, Tensor) and acc.numel() == 1 else acc
    said = {**(figures if isinstance(figures, Mapping) else {}), **({} if top1 is None else {"top1": top1})}
    return {str(name): value for name, given in said.items() if (value := number(given)) is not None}


def read_header(checkpoint: Mapping[str, Any], package: str, newest: int, kind: type[Kind]) -> Kind | None:
    """The record of a checkpoint; None if another package wrote it.

    Args:
        checkpoint: its content.
        package: import name of the method's package.
        newest: the latest format that this version reads.
        kind: of the method's checkpoints.

    Raises:
        InputError: a later format, an entry that is not what is written there, or weights of another kind of numbers.
    """
    if checkpoint.get("package") != package:
        return None
    version = checkpoint.get("format", 1)  # files that state none are of the first
    if type(version) is not int or version > newest:
        raise InputError(
            f"the checkpoint has format {version!r:.80}, this version reads {newest}: update lowbit-{package}"
        )
    try:
        said = {name: checkpoint[name] for name in kind.model_fields if name in checkpoint}
        place = next((place for place, _ in tensors({**said, "state_dict": None})), None)
        if place is not None:  # pydantic takes one of one element for a number
            raise TypeError(f"{place}: a tensor")
        record = kind.model_validate(said)
        check_floats(record.state_dict)
        return record
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, value = ".".join(str(part) for part in first["loc"])[:80], first["input"]
        shown = repr(value)[:80] if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
        where = place if first["type"] == "missing" else f"{place} {shown}"
        reason = f"{where}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
    except (TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise InputError(
        f"the checkpoint's description of its net is damaged ({' '.join(reason.split())[:200]}); name another file"
    )
