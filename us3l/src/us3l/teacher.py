"""From a config to the objective of the command `distill`: a frozen teacher out of its file, a student of one width."""

from functools import partial

import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.losses.queue import KeyQueue
from lowbit.models.create import create_model
from lowbit.models.heads import attach_projector_, build_heads, predictor
from lowbit.models.weight_file import read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.options import OptimOptions
from us3l.config import Config, net_of
from us3l.criteria import loss_of
from us3l.methods import PROJECTORS, check, decay_of, encoder_of
from us3l.optim import AUTHORS, optimizer
from us3l.sampling import sampling_of
from us3l.seed import Seed


def build_distillation(
    config: Config, size: tuple[int, int, int], teacher: nn.Module, optim: OptimOptions = AUTHORS
) -> Seed:
    """The objective of the command `distill`, drawn from `SEED` (the queue too).

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.
        teacher: of `teacher_of`.
        optim: what replaces the authors' optimizer.

    Raises:
        InputError: see `check` and `encoder_of`, or a method of the command `ssl`, or outputs of two sizes.
    """
    check(config)
    method, ofa, setting = config.method, config.MODEL.OFA, config.SSL.SETTING
    if len(sampling_of(config).fixed) != 1:
        raise InputError("a student of `distill` has one width: set MODEL.OFA.NUM_SAMPLE_TRAINING=1 and WIDTH_MULT")
    if setting.DIM != config.DISTILL.TEACHER_DIM:
        raise InputError(f"SSL.SETTING.DIM={setting.DIM} is not the teacher's DISTILL.TEACHER_DIM: make them equal")
    encoder, queue = encoder_of(config, size), method == "SEED"
    generator = torch.Generator().manual_seed(config.SEED or 0)
    return Seed(
        encoder,
        teacher,
        partial(optimizer, config, command="distill", optim=optim),
        width=ofa.WIDTH_MULT,
        loss=None if queue else loss_of(config.criterion, setting.T),
        predictor=predictor(setting.DIM, setting.HIDDEN_DIM) if method == "SEED_MSE" else None,
        keys=KeyQueue(setting.DIM, setting.MOCO_K, generator) if queue else None,
        temperatures=(ofa.DISTILL_STUDENT_TEMP, ofa.DISTILL_TEACHER_TEMP),
        decay=decay_of(config),
    )


def teacher_of(config: Config) -> nn.Module:
    """The frozen net of `DISTILL.TEACHER_ARCH` with its projector, out of the file `DISTILL.TEACHER_PRETRAINED`.

    Raises:
        InputError: a key that is not set, or a file that does not hold such a net with such a projector.
    """
    own = config.DISTILL
    if not (own.TEACHER_ARCH and own.TEACHER_PRETRAINED):
        raise InputError(
            "DISTILL.TEACHER_ARCH and DISTILL.TEACHER_PRETRAINED are needed: name a net and its checkpoint"
        )
    net = create_model(net_of(own.TEACHER_ARCH).name, num_classes=1)
    attach_projector_(
        net, lambda features: build_heads(PROJECTORS["SEED"], features, own.TEACHER_DIM, own.TEACHER_HIDDEN_DIM)
    )
    try:
        weights = read_weights(own.TEACHER_PRETRAINED)
        load_(net, weights, branch_of(weights, net)._replace(prefix=""))  # with its projector, as of a plain net
    except InputError as error:
        raise InputError(
            f"the teacher (DISTILL.TEACHER_PRETRAINED) should be a {own.TEACHER_ARCH} with a projector of "
            f"TEACHER_HIDDEN_DIM={own.TEACHER_HIDDEN_DIM} and TEACHER_DIM={own.TEACHER_DIM}: {error}"
        ) from error
    return net.eval().requires_grad_(False)
