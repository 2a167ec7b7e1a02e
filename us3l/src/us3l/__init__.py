"""US3L: universally slimmable self-supervised learning (Cao, Sun, Zhou, CVPR 2023)."""

from lowbit.functions import lazy_functions

__version__ = "0.2.0"
__getattr__, __dir__ = lazy_functions(
    __name__, "distill", "slimmable", "linear", "calibrate", "sweep", "export", "configs", "demo", pretrain="ssl"
)
