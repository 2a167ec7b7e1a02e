"""From a config to nets: the objective of a pretraining, and the classifier of `linear` and `default` at its bits.

As in the authors' program, the last batch norm of each block of timm's ResNets starts at 0 under SimSiam, else at 1.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.losses.cosine import cosine_loss, squared_distance_loss
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, HeadPlan, attach_projector_, build_heads
from lowbit.models.surgery import run_blank
from lowbit.options import OptimOptions
from lowbit.quant.bitwidths import set_bits_, set_mode_
from ssql.bit_policy import quantize_encoder_
from ssql.config import Config, Quant
from ssql.objective import Contrastive, Drawing, MomentumContrast, Reversed, SelfSupervised, Siamese
from ssql.optim import AUTHORS, optimizer

LOSSES = {"": cosine_loss, "CosineSimilarity": cosine_loss, "CosineSimilarityv2": squared_distance_loss}
RSSQL_RANGE = (4, 17)  # the authors', fixed in their program


def plan_of(kind: str) -> HeadPlan:
    """The heads of a `SSL.TYPE`: those of the method that it stands on.

    The projector of SSQL_BYOL ends in batch norm, other than BYOL's, as in the authors' program.
    """
    plan = HEADS[kind.rpartition("_")[2]]
    return replace(plan, output_bn=True) if kind == "SSQL_BYOL" else plan


def drawing_of(config: Config) -> Drawing:
    """What the bits of a step are drawn from."""
    quant = config.QUANT
    reversed_ = config.SSL.TYPE == "RSSQL_SimSiam"
    w_range, a_range = (RSSQL_RANGE, RSSQL_RANGE) if reversed_ else (quant.W.BIT_RANGE, quant.A.BIT_RANGE)
    return Drawing(w_range, a_range, equal=reversed_, sync=quant.SYNC_RANGES, shared_norm=quant.BN == "shared")


def build(config: Config, size: tuple[int, int, int], optim: OptimOptions = AUTHORS) -> SelfSupervised:
    """The objective of `SSL.TYPE`, drawn from `SEED` (the queue too).

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.
        optim: what replaces the authors' optimizer.

    Raises:
        InputError: no `SSL.TYPE`, an unknown net, one without a linear classifier or for other pictures.
    """
    kind, setting = config.SSL.TYPE, config.SSL.SETTING
    if kind is None:
        raise InputError("SSL.TYPE is missing: name a method, such as SSQL_SimSiam")
    generator = torch.Generator().manual_seed(config.SEED or 0)
    torch.manual_seed(config.SEED or 0)
    encoder = create_model(config.MODEL.ARCH, zero_init_last="SimSiam" in kind, num_classes=1)
    heads = attach_projector_(
        encoder,
        lambda features: build_heads(
            plan_of(kind), features, setting.DIM, setting.HIDDEN_DIM, output_bn=setting.OUTPUT_BN, mlp=setting.MLP
        ),
    )
    drawing = None
    if "SSQL" in kind:
        quantize_encoder_(encoder, config.QUANT, size)
        drawing = drawing_of(config)
    else:
        run_blank(encoder, size, setting="MODEL.INPUTSHAPE")  # wrapping refuses such pictures, too
    optimize = partial(optimizer, config, command="ssl", optim=optim)
    if kind.endswith("SimCLR"):
        gathered = setting.NEGATIVES == "gathered"
        return Contrastive(encoder, optimize, drawing, temperature=setting.T, gathered=gathered)
    if kind.endswith("MoCo"):
        return MomentumContrast(
            encoder,
            optimize,
            drawing,
            dim=setting.DIM,
            length=setting.MOCO_K,
            temperature=setting.T,
            momentum=setting.MOMENTUM,
            generator=generator,
        )
    assert heads.predictor is not None
    momentum = setting.MOMENTUM if kind.endswith("BYOL") else None
    method = Reversed if kind == "RSSQL_SimSiam" else Siamese
    loss = LOSSES[config.TRAIN.LOSS.CRITERION.NAME]
    return method(encoder, heads.predictor, optimize, drawing, loss=loss, momentum=momentum)


def is_quantized(quant: Quant) -> bool:
    """Whether anything of a classifier is: at 0/0 bits nothing, or with `FP=authors` the pinned places."""
    return bool(quant.W.BIT or quant.A.BIT or quant.FP == "authors")


def classifier(config: Config, size: tuple[int, int, int], classes: int) -> nn.Module:
    """A net drawn from `SEED`, at the bits of `QUANT.W.BIT` and `QUANT.A.BIT`, its ranges still to be found.

    Its last layer is float. Where nothing is quantized it is timm's net as it is.

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.
        classes: outputs.

    Raises:
        InputError: an unknown net, or pins in `QUANT.BIT_CONFIG` that do not fit it.
    """
    quant = config.QUANT
    torch.manual_seed(config.SEED or 0)
    net = create_model(config.MODEL.ARCH, zero_init_last=False, num_classes=classes)
    if is_quantized(quant):
        quantize_encoder_(net, quant, size)
        set_bits_(net, quant.W.BIT, quant.A.BIT, keep_pins=quant.FP == "authors")
        set_mode_(net, "quantized")
    return net
