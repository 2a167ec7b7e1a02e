"""`--compile`: a submodule compiled in place, for training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

MOST_GRAPHS = 1024  # of one function


def compile_(module: nn.Module, **options: Any) -> None:
    """Compile a module in place.

    A net at many bit-widths or widths has a graph for each. Beyond dynamo's limits (8 for a function) they would run
    uncompiled, without a word, so the limits of this process are raised.

    Args:
        module: any.
        options: of `torch.compile`.
    """
    limits: Any = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(limits, name, max(getattr(limits, name), MOST_GRAPHS))
    module.compile(**options)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """What is compiled in place runs as written inside the block: a few evaluated batches are not worth a graph."""
    compiled = {module: call for module in model.modules() if (call := module._compiled_call_impl) is not None}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
