"""SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao, AISTATS 2024)."""

from lowbit.functions import lazy_functions

__version__ = "0.2.0"
__getattr__, __dir__ = lazy_functions(__name__, "train_fp", "train_quant", "main", "recipe", "sweep", "export", "demo")
