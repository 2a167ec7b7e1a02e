"""SSQL: synergistic self-supervised and quantization learning (Cao et al., ECCV 2022)."""

from lowbit.functions import lazy_functions

__version__ = "0.2.0"
__getattr__, __dir__ = lazy_functions(__name__, "linear", "default", "sweep", "draw", "configs", "demo", pretrain="ssl")
