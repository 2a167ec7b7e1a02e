"""lowbit: the shared ground of the methods (data, models, quantizers, the training loop).

Importing this package does not import torch, so that every command's `--help` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowbit.curves import plot_runs as plot  # noqa: F401 (one of the names of this package)
    from lowbit.description import show as show
    from lowbit.installation import doctor as doctor
    from lowbit.loading import load as load
    from lowbit.prediction import predict as predict

__version__ = "0.2.0"
_FUNCTIONS = {  # and where they stand
    "doctor": ("installation", "doctor"),
    "load": ("loading", "load"),
    "plot": ("curves", "plot_runs"),
    "predict": ("prediction", "predict"),
    "show": ("description", "show"),
}


def __getattr__(name: str) -> Any:
    """`lowbit.load` and the program's commands as functions, on first use (PEP 562)."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    module, function = _FUNCTIONS[name]
    return getattr(import_module(f"lowbit.{module}"), function)


def __dir__() -> list[str]:
    """What there is, the functions too."""
    return sorted({*globals(), *_FUNCTIONS})
