"""Losses that predict the teacher's maps from the student's by small trained modules, and what is learned before them.

FitNet: Romero et al., ICLR 2015 (arXiv 1412.6550). VID: Ahn et al., "Variational Information Distillation", CVPR 2019
(arXiv 1904.05835), Eq. 5-6. FT: Kim, Park, Kwak, "Paraphrasing Complex Network", NeurIPS 2018 (arXiv 1802.04977),
Eq. 1-3. AB: Heo et al., "Activation Boundaries", AAAI 2019 (arXiv 1811.03233), Eq. 5-7.

Deviations: FitNet is trained in one stage, as the authors of SQAKD do. AB reads maps behind the ReLU, since a stage's
module gives no others: the teacher's signs are the same, and a connector stands between the student's and the margin.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqakd.kd.maps import Maps, attention_of, same_size, total

Shape = Sequence[int]  # (B, C, H, W)
SPREAD, LEAST = 5.0, 1e-5  # VID's variance at the start, and what is added to it
SLOPE = 0.1  # of FT's leaky ReLUs
MARGIN, SCALE = 1.0, 3e-3  # of AB


def regression(student: Shape, teacher: Shape, *, relu: bool = True) -> nn.Sequential:
    """The student's map in the teacher's shape: a convolution, batch norm, ReLU.

    The kernel is 1x1 at one size; 3x3 or transposed 4x4, stride 2, at double and half; else it crops.

    Raises:
        ValueError: the student's map is smaller, and not half as high.
    """
    (_, cs, hs, _), (_, ct, ht, _) = student, teacher
    conv: nn.Module
    if hs == 2 * ht:
        conv = nn.Conv2d(cs, ct, 3, 2, 1)
    elif 2 * hs == ht:
        conv = nn.ConvTranspose2d(cs, ct, 4, 2, 1)
    elif hs >= ht:
        conv = nn.Conv2d(cs, ct, 1 + hs - ht)
    else:
        raise ValueError(f"a map of {hs} positions a side cannot predict one of {ht}")
    return nn.Sequential(conv, nn.BatchNorm2d(ct), *([nn.ReLU()] if relu else []))


class Hint(nn.Module):
    """FitNet: mean squared error of the regression and the teacher's map; arguments as in `regression`."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.regression = regression(student, teacher)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """One map of each."""
        return F.mse_loss(self.regression(fs[0]), ft[0].detach())


class Variational(nn.Module):
    """VID: mean over all entries of ((t - m(s))^2 / v_c + log v_c) / 2, summed over the places.

    m: three 1x1 convolutions with ReLUs between; v_c = softplus(a_c) + 1e-5 of each channel, 5 at the start.

    Args:
        students: shapes of the student's maps.
        teachers: of the teacher's.
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__()
        widths = [(s[1], t[1], t[1], t[1]) for s, t in zip(students, teachers, strict=True)]
        start = torch.expm1(torch.tensor(SPREAD - LEAST, dtype=torch.float64)).log().float()
        self.scale = nn.ParameterList(start.repeat(width[-1]) for width in widths)
        self.mean = nn.ModuleList(_mean(width) for width in widths)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """Maps of all places."""
        places = zip(self.mean, self.scale, fs, ft, strict=True)
        return torch.stack([self._of(mean, scale, s, t.detach()) for mean, scale, s, t in places]).sum()

    @staticmethod
    def _of(mean: nn.Module, scale: Tensor, s: Tensor, t: Tensor) -> Tensor:
        s, t = same_size(s, t)
        variance = (F.softplus(scale) + LEAST)[:, None, None]
        return ((t - mean(s)).square() / variance + variance.log()).mean() / 2


def _mean(widths: Sequence[int]) -> nn.Sequential:
    convs = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def coder(widths: Sequence[int], *, transposed: bool = False, norm: bool = False) -> nn.Sequential:
    """3x3 convolutions of these widths, each followed by batch norm (`norm`) and a leaky ReLU."""
    kind, layers = nn.ConvTranspose2d if transposed else nn.Conv2d, list[nn.Module]()
    for a, b in pairwise(widths):
        layers += [kind(a, b, 3, 1, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """FT's first stage: an autoencoder of the teacher's map, whose factors have half its channels.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.encoder = coder((channels, channels, half, half))
        self.decoder = coder((half, half, channels, channels), transposed=True)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """Mean squared error of the teacher's map and its reconstruction; the student's are not read."""
        t = ft[0].detach()
        return F.mse_loss(self.decoder(self.encoder(t)), t)


class FactorTransfer(nn.Module):
    """FT's second stage: mean L1 of both factors, each as `attention_of` (released; in the paper unreduced).

    Args:
        channels: of the student's map, and of the teacher's.
        paraphraser: of the first stage; not trained here.
    """

    def __init__(self, channels: tuple[int, int], paraphraser: Paraphraser) -> None:
        super().__init__()
        own, half = channels[0], channels[1] // 2
        self.paraphraser, self.translator = paraphraser, coder((own, own, half, half), norm=True)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """One map of each."""
        with torch.no_grad():
            factor = self.paraphraser.encoder(ft[0])
        s, t = same_size(self.translator(fs[0]), factor)
        return F.l1_loss(attention_of(s), attention_of(t))


class ActivationBoundaries(nn.Module):
    """AB's first stage: the student's response r, behind a connector, on the teacher's side of 0 by a margin.

    Sum over entries of ((1 + r)_+)^2 where t <= 0 and ((1 - r)_+)^2 where t > 0, over B; places are weighted by 2^-n of
    the n that follow, and the whole by 3/1000, as RepDistiller has it.

    Args:
        students: shapes of the student's maps.
        teachers: of the teacher's.
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__()
        pairs = zip(students, teachers, strict=True)
        self.connectors = nn.ModuleList(regression(s, t, relu=False) for s, t in pairs)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """Maps of all places."""
        weights = iter(SCALE * 2.0**-n for n in reversed(range(len(fs))))

        def of(r: Tensor, t: Tensor) -> Tensor:
            wrong = torch.where(t > 0, MARGIN - r, MARGIN + r).relu()
            return next(weights) * wrong.square().sum() / len(r)

        return total(of, [connector(s) for connector, s in zip(self.connectors, fs, strict=True)], ft)
