"""The colours of a training picture, with and without `--aug-plus`; crops and evaluation are those of all pretraining.

MoCo v1: He et al., CVPR 2020 (arXiv 1911.05722); v2: Chen, Fan, Girshick, He, 2020 (arXiv 2003.04297). S2-BNN's are
v2's with jitter for 60, not 80 %, and blur for 20, not 50 % of the views.
"""

from dataclasses import replace

from lowbit.data.recipe import ColorJitter, Colour, RandomBlur, RandomGrayscale
from lowbit.evaluate.pretraining import Shown

PLUS: tuple[Colour, ...] = (ColorJitter(p=0.6), RandomGrayscale(0.2), RandomBlur(0.2))
PLAIN: tuple[Colour, ...] = (RandomGrayscale(0.2), ColorJitter(hue=0.4, p=1.0))


def coloured(pictures: Shown, plus: bool) -> Shown:
    """Pretraining's pictures with the authors' colours."""
    return pictures._replace(views=replace(pictures.views, colour=PLUS if plus else PLAIN))
