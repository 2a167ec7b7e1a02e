"""US3L: universally slimmable self-supervised learning (Cao, Sun, Zhou, CVPR 2023)."""

__version__ = "0.2.0"
