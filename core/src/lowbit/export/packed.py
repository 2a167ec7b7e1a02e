"""Packed files: a net's codes at their own bits, its scales and what stays float, in one file that rebuilds the net.

How tensors are stored is in `lowbit.export.codes`, how the net is built again in `lowbit.export.rebuild`. Integer
buffers (batch norm's step counter) are not kept.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.export.codes import decode, read_codes, write_codes
from lowbit.export.rebuild import Activations, build, describe_activations, describe_sizes, dress_
from lowbit.models.create import check_size
from lowbit.models.pretrained_cfg import ENTRY, set_pretrained_cfg_
from lowbit.quant.layers import Codes, quantized_layers, to_plain_

MOST_PER_BIT = 16  # numbers of a net for each bit of codes: layers may be slimmed, or have 0 bits


@torch.no_grad()
def save_packed(model: nn.Module, path: Path | str, recipe: Mapping[str, Any]) -> int:
    """Write a net of quantized layers (any method's) to one file.

    Args:
        model: as evaluated, at its bits of now (layers that are float now are stored as floats); unchanged.
        path: file to write or replace.
        recipe: plain values; `arch` (timm name) and `args` (of timm.create_model, such as num_classes) rebuild the net,
            the rest is kept for the reader (preparation of pictures, method, accuracy).

    Returns:
        Bytes written.

    Raises:
        InputError: nothing is quantized, the recipe does not rebuild this net, or the file cannot be written.
    """
    if not any(True for _ in quantized_layers(model)):
        raise InputError("the net has no quantized layer, so there is nothing to pack: convert it first")
    plain, coded = to_plain_(deepcopy(model)), _coded(model)
    with _errors_of(f"recipe of {path}"):  # one that does not lead back here is found now
        built = build(recipe)
    activations = describe_activations(model, built)
    with _errors_of(f"recipe of {path}"):
        sizes = describe_sizes(model, plain, built)
        wanted, have = _floats(dress_(built, activations, sizes)), {**_floats(model), **_floats(plain)}
        left = _floats(plain).keys() - wanted.keys()
        if left or any(key not in have or have[key].shape != like.shape for key, like in wanted.items()):
            raise _another(recipe)
    floats = {key: have[key] for key in wanted if key not in coded}
    head = {"recipe": dict(recipe), "activations": activations, "sizes": sizes, "shapes": _digest(wanted)}
    return write_codes(Path(path), head, coded, floats)


def load_packed(path: Path | str) -> nn.Module:
    """The net of a packed file, in evaluation mode: plain layers holding exactly the packed net's weights.

    Raises:
        InputError: not a packed file, damaged, or of a net that is not known here.
    """
    return open_packed(path)[0]


@torch.no_grad()
def open_packed(path: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a packed file, as `load_packed` gives it, and the head of the file (`lowbit.export.codes`).

    Raises:
        InputError: as `load_packed`.
    """
    head, tensors = read_codes(Path(path))
    recipe, sizes = head.get("recipe", {}), head.get("sizes", {})
    with _errors_of(f"recipe of {path}"):
        stored = 8 * tensors["codes"].numel() + tensors["floats"].numel()
        check_size(lambda: build(recipe), MOST_PER_BIT * stored)
        model = dress_(build(recipe), _activations(head), sizes).to(tensors["floats"].dtype)
        if _digest(_floats(model)) != head["shapes"]:
            raise _another(recipe)
    with _errors_of(str(path)):
        state = model.state_dict()
        for key, value in decode(head, tensors, state).items():
            state[key].copy_(value)
        return set_pretrained_cfg_(model.eval(), recipe.get(ENTRY)), head


def _coded(model: nn.Module) -> dict[str, Codes]:
    """{key in the plain net's state dict: codes}."""
    coded: dict[str, Codes] = {}
    for name, layer in quantized_layers(model):
        for key, codes in (("weight", layer.weight_codes()), ("bias", layer.bias_codes())):
            if codes is not None:
                coded[f"{name}.{key}" if name else key] = codes
    return coded


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    """Whatever goes wrong in a block of code as an InputError about `what`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"[:200]
        raise InputError(f"{what} is damaged: {reason}; export it again") from error


def _activations(head: Mapping[str, Any]) -> Activations:
    """As described; format 1 knew one kind."""
    if head["format"] > 1:
        return [(kind, settings, names) for kind, settings, names in head["activations"]]
    return [("largest", settings, names) for settings, names in head["activations"]]


def _another(recipe: Any) -> InputError:
    arch, arguments = recipe["arch"], recipe.get("args", {})
    return InputError(f"it builds another net than the one packed: check arch {arch} and {arguments}")


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {key: t for key, t in model.state_dict().items() if t.is_floating_point()}


def _digest(floats: Mapping[str, Tensor]) -> str:
    """Of the float tensors' names and shapes: two nets of one arch name may differ (another timm)."""
    text = json.dumps([[key, list(t.shape)] for key, t in floats.items()])
    return blake2b(text.encode(), digest_size=8).hexdigest()
