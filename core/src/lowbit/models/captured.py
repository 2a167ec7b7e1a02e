"""Outputs of named modules inside a net, for losses on features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lowbit.errors import InputError

Captured = dict[str, list[Tensor]]


@contextmanager
def captured(net: nn.Module, names: Sequence[str]) -> Iterator[Captured]:
    """While the context lasts, the outputs of these modules are kept, one per call, with their graph.

    A compiled net that ran before without it, in the same modes, does not call the hooks: they come back empty.

    Raises:
        InputError: the net has no module of that name.
    """
    modules = {name: module_of(net, name) for name in names}
    outputs: Captured = {name: [] for name in names}

    def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[name].append(output)

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def run_captured(net: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Captured]:
    """A net's outputs, and those of modules inside it, for each input.

    Hooks are set for each call anew, since compiled graphs would depend on how many outputs were kept before.

    Raises:
        InputError: the net has no module of that name.
    """
    outputs, inside = [], {name: list[Tensor]() for name in names}
    for x in inputs:
        with captured(net, names) as found:
            outputs.append(net(x))
        for name in names:
            inside[name] += found[name]
    return tuple(outputs), inside


def module_of(net: nn.Module, name: str) -> nn.Module:
    """A module by its name.

    Raises:
        InputError: there is none; the message names some.
    """
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        some = [known for known, _ in net.named_modules() if known.count(".") == name.count(".") and known][:5]
        raise InputError(
            f"the net has no module {name!r}: name one of its modules, such as {', '.join(some)}"
        ) from error
