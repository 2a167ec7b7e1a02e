"""SSQL: synergistic self-supervised and quantization learning (Cao et al., ECCV 2022)."""

__version__ = "0.2.0"
