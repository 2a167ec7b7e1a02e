"""S2-BNN: self-supervised binary neural networks by guided distribution calibration (Shen et al., CVPR 2021)."""

__version__ = "0.2.0"
