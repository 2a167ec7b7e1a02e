"""lowbit: the shared ground of the methods (data, models, quantizers, the training loop).

Importing this package does not import torch, so that every command's `--help` stays fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowbit.loading import load as load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`lowbit.load` on first use (PEP 562)."""
    if name == "load":
        from lowbit.loading import load

        return load
    raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
