"""What a user needs to run a net, under the names of timm's `pretrained_cfg`: pictures, classes, normalisation.

`timm.data.resolve_model_data_config(model)` reads it off a net that `lowbit.load` gives, and
`timm.data.create_transform(**config)` makes evaluation's transform of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lowbit.data.geometry import ResizedCenterCrop
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.options import MAX_SIDE

ENTRY = "pretrained_cfg"  # of checkpoints, of a packed file's recipe, of a backbone's metadata
NAMES = "label_names"
Cfg = dict[str, Any]  # plain values


def pretrained_cfg(recipe: Recipe, size: Sequence[int], classes: Sequence[str] = ()) -> Cfg:
    """As plain values.

    Args:
        recipe: how evaluation prepares a picture.
        size: (C, H, W) of what the net is shown.
        classes: their names; none of a net without a classifier.
    """
    geometry, mean, std = recipe.geometry, recipe.channels.mean, recipe.channels.std
    shown: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    if isinstance(geometry, ResizedCenterCrop):
        share = geometry.side / geometry.resize
        if math.floor(geometry.side / share) != geometry.resize:  # timm divides and rounds down
            share = math.nextafter(share, 0)
        mode = "squash" if geometry.squash else "center"
        shown = {"crop_pct": share, "crop_mode": mode, "interpolation": geometry.interpolation}
    facts = {"input_size": list(size), "mean": list(mean), "std": list(std), **shown}
    return facts | ({NAMES: list(classes)} if classes else {})


def without_head(said: Mapping[str, Any]) -> Cfg:
    """The same of the net's backbone."""
    return {key: value for key, value in said.items() if key != NAMES}


def set_pretrained_cfg_(model: nn.Module, said: Any) -> nn.Module:
    """Give a net what its file says, beside what timm's own entry has; files of release 0.1.0 say nothing (None).

    Raises:
        InputError: it is not what we write.
    """
    if said is None:
        return model
    said = checked_cfg(said)
    own = getattr(model, "pretrained_cfg", None) or {}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    if hasattr(model, "num_classes"):
        values["num_classes"] = model.num_classes
    model.pretrained_cfg = {**own, **values}  # type: ignore[assignment]
    return model


def checked_cfg(said: Any) -> Cfg:
    """What a file says, as it is.

    Raises:
        InputError: it is not what we write.
    """
    if not isinstance(said, Mapping) or not _is_right(said):
        raise InputError(f"its {ENTRY} is damaged ({said!r:.80}); name another file")
    return dict(said)


def _is_right(said: Mapping[str, Any]) -> bool:
    size, names, share = said.get("input_size"), said.get(NAMES, []), said.get("crop_pct", 0)
    floats = [said.get(name) for name in ("mean", "std")]
    return (
        all(isinstance(row, list) and len(row) == 3 and all(_is_number(x) for x in row) for row in floats)
        and all(x > 0 for x in said["std"])
        and isinstance(size, list)
        and len(size) == 3
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
        and _is_number(share)
        and 0 < share <= 1
        and all(isinstance(said.get(name), str) for name in ("crop_mode", "interpolation"))
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
