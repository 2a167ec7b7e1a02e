"""SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao, AISTATS 2024)."""

__version__ = "0.2.0"
