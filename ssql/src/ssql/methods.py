"""From a config to the objective of a pretraining: encoder with its projector, quantized branch, optimizer."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lowbit.errors import InputError
from lowbit.losses.cosine import cosine_loss, squared_distance_loss
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, HeadPlan, Heads, build_heads, linear_classifier
from lowbit.models.surgery import replace_, run_blank
from lowbit.quant.bitwidths import quantize_uniform_
from lowbit.quant.observers import ObserverConfig
from lowbit.quant.uniform import WeightConfig
from lowbit.train.optim import make_optimizer, parameter_groups
from lowbit.train.schedule import Schedule, constant, cosine
from ssql.bits import BitPolicy, derive_policy
from ssql.config import Config, Quant
from ssql.objective import Contrastive, Drawing, MomentumContrast, Reversed, SelfSupervised, Siamese

LOSSES = {"": cosine_loss, "CosineSimilarity": cosine_loss, "CosineSimilarityv2": squared_distance_loss}
OBSERVERS = {"MINMAX": "minmax", "MOMENTUM_MINMAX": "ema", "MSE": "mse", "HISTOGRAM": "mse", "GAUSSIAN": "gaussian"}
RSSQL_RANGE = (4, 17)  # the authors', fixed in their program


def attach_projector_(encoder: nn.Module, build: Callable[[int], Heads]) -> Heads:
    """Put a projector in the classifier's place of a timm net; `build` is given the width of the features.

    Raises:
        InputError: a net without a linear classifier.
    """
    name, classifier = linear_classifier(encoder)
    heads = build(classifier.in_features)
    replace_(encoder, {name: heads.projector})
    return heads


def plan_of(kind: str) -> HeadPlan:
    """The heads of a `SSL.TYPE`: those of the method that it stands on.

    The projector of SSQL_BYOL ends in batch norm, other than BYOL's, as in the authors' program.
    """
    plan = HEADS[kind.rpartition("_")[2]]
    return replace(plan, output_bn=True) if kind == "SSQL_BYOL" else plan


def policy_of(encoder: nn.Module, quant: Quant, size: tuple[int, int, int]) -> BitPolicy:
    """The pins derived from the network, or exactly those of `QUANT.BIT_CONFIG`, as the authors list them.

    A classifier is float, as in the authors' program, even where the list (their ImageNet evaluation) says otherwise.

    Raises:
        InputError: a name in the list that is not of this net.
    """
    policy = derive_policy(encoder, size)
    if not quant.BIT_CONFIG:
        return policy
    unpinned = replace(policy, weights=dict.fromkeys(policy.weights), activations=dict.fromkeys(policy.activations))
    listed = unpinned.override(quant.BIT_CONFIG[0])  # type: ignore[arg-type]  # its inner keys are "w" and "a"
    classifier = {name: 0 for name, pin in policy.weights.items() if pin == 0}
    return replace(listed, weights={**listed.weights, **classifier})


def quantize_(encoder: nn.Module, quant: Quant, size: tuple[int, int, int]) -> nn.Module:
    """Wrap a net as the config says, in place, in mode `float`.

    Args:
        encoder: float.
        quant: section QUANT.
        size: (C, H, W) of the pictures.

    Raises:
        InputError: an observer that weights do not have.
    """
    if quant.W.OBSERVER_METHOD.NAME != "MINMAX":
        raise InputError(
            f"QUANT.W.OBSERVER_METHOD.NAME={quant.W.OBSERVER_METHOD.NAME}: the range of weights is their largest "
            "magnitude at each step; MINMAX is allowed"
        )
    weight = WeightConfig(
        grid=quant.W.GRID,
        per_channel=quant.W.GRANULARITY == "channelwise",
        differentiable_scale=quant.W.SCALE == "differentiable",
    )
    observer = ObserverConfig(OBSERVERS[quant.A.OBSERVER_METHOD.NAME])
    return quantize_uniform_(encoder, policy_of(encoder, quant, size), weight, observer)


def drawing_of(config: Config) -> Drawing:
    """What the bits of a step are drawn from."""
    quant = config.QUANT
    reversed_ = config.SSL.TYPE == "RSSQL_SimSiam"
    w_range, a_range = (RSSQL_RANGE, RSSQL_RANGE) if reversed_ else (quant.W.BIT_RANGE, quant.A.BIT_RANGE)
    return Drawing(w_range, a_range, equal=reversed_, sync=quant.SYNC_RANGES, shared_norm=quant.BN == "shared")


def groups_of(config: Config, objective: nn.Module) -> list[dict[str, Any]]:
    """All trained parameters; groups for a fixed predictor rate and for what weight decay leaves out."""
    options, fixed = config.TRAIN.OPTIMIZER, config.SSL.SETTING.PREDICTOR_LR == "fixed"
    return parameter_groups(
        objective,
        options.WEIGHT_DECAY,
        decay_norm_and_bias=options.DECAY_NORM_AND_BIAS,
        fixed=("predictor.",) if fixed else (),
    )


def optimizer(config: Config, objective: nn.Module) -> Optimizer:
    """SGD, whatever `OPTIMIZER.NAME` says, as in the authors' program."""
    lr, momentum = config.TRAIN.LR_SCHEDULER.BASE_LR, config.TRAIN.OPTIMIZER.MOMENTUM
    return make_optimizer(groups_of(config, objective), lr=lr, momentum=momentum)


def rates(config: Config) -> dict[str, Schedule]:
    """The cosine that moves once an epoch, whatever `LR_SCHEDULER.TYPE` says, as in the authors' program."""
    base = config.TRAIN.LR_SCHEDULER.BASE_LR
    return {"main": cosine(base, per_step=False), "fixed": constant(base)}


def build(config: Config, size: tuple[int, int, int]) -> SelfSupervised:
    """The objective of `SSL.TYPE`, drawn from `SEED` (the queue too).

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.

    Raises:
        InputError: no `SSL.TYPE`, an unknown net, one without a linear classifier or for other pictures.
    """
    kind, setting = config.SSL.TYPE, config.SSL.SETTING
    if kind is None:
        raise InputError("SSL.TYPE is missing: name a method, such as SSQL_SimSiam")
    generator = torch.Generator().manual_seed(config.SEED or 0)
    torch.manual_seed(config.SEED or 0)
    encoder = create_model(config.MODEL.ARCH, num_classes=1)
    heads = attach_projector_(
        encoder,
        lambda features: build_heads(
            plan_of(kind), features, setting.DIM, setting.HIDDEN_DIM, output_bn=setting.OUTPUT_BN, mlp=setting.MLP
        ),
    )
    drawing = None
    if "SSQL" in kind:
        quantize_(encoder, config.QUANT, size)
        drawing = drawing_of(config)
    else:
        run_blank(encoder, size, setting="MODEL.INPUTSHAPE")  # wrapping is told by such a forward, too
    optimize = partial(optimizer, config)
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
