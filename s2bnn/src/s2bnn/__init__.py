"""S2-BNN: self-supervised binary neural networks by guided distribution calibration (Shen et al., CVPR 2021)."""

from lowbit.functions import lazy_functions

__version__ = "0.2.0"
__getattr__, __dir__ = lazy_functions(__name__, "main_moco", "main_lincls", "report", "export", "demo")
