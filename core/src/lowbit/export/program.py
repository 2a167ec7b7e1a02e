"""A net as a program of torch.export: a `.pt2` file that runs with torch alone, without the code of the net."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.files import replace_file

SAID = "lowbit.json"  # in `extra_files` of torch.export.load


def save_program(net: nn.Module, path: Path, size: tuple[int, int, int], said: Mapping[str, Any]) -> None:
    """Write or replace a file; `torch.export.load(path).module()` is the net in evaluation mode, on the CPU.

    Args:
        net: ordinary layers, on the CPU; unchanged.
        path: of the file.
        size: (C, H, W) of a picture; a batch may have any number of them.
        said: plain values that are kept in the file, as JSON.

    Raises:
        InputError: torch cannot follow the net, or the file cannot be written.
    """
    pictures, modes = torch.zeros(2, *size), {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(net, (pictures,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path.name}: torch.export cannot follow this net ({reason})") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={SAID: json.dumps(said)})
    replace_file(path, buffer.getbuffer())
