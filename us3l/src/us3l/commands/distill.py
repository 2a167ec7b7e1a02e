"""`us3l distill`: a net learns without labels from a frozen teacher (SEED; Fang et al., ICLR 2021)."""

import logging
from functools import partial
from typing import Any

from torch import nn

from lowbit.errors import InputError, naming
from lowbit.models.create import classifiers, create_model
from lowbit.models.heads import attach_projector_, build_heads
from lowbit.models.weight_file import read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.options import RunOptions
from lowbit.train.run import Result
from us3l.commands.pretrain import pretrain
from us3l.config import Config
from us3l.methods import PROJECTORS, build
from us3l.names import DISTILLED, net_of

log = logging.getLogger(__name__)


def distill(options: RunOptions, config: Config, **given: Any) -> Result | None:
    """See `us3l.commands.pretrain.pretrain`.

    Raises:
        InputError: a method without a teacher, or no teacher.
    """
    if config.method not in DISTILLED:
        raise InputError(f"SSL.TYPE={config.SSL.TYPE} has no teacher: run `us3l ssl`, or take {', '.join(DISTILLED)}")
    return pretrain(options, config, **given, command="distill", make=partial(build, teacher=teacher_of(config)))


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
    with naming("DISTILL.TEACHER_PRETRAINED"):
        weights = read_weights(own.TEACHER_PRETRAINED)
    try:
        branch = branch_of(weights, net)._replace(prefix="")  # with its projector, as of a plain net
        load_(net, weights, branch)
    except InputError as error:
        raise InputError(
            f"the teacher (DISTILL.TEACHER_PRETRAINED) should be a {own.TEACHER_ARCH} with a projector of "
            f"TEACHER_HIDDEN_DIM={own.TEACHER_HIDDEN_DIM} and TEACHER_DIM={own.TEACHER_DIM}: {error}"
        ) from error
    dropped = sorted(key for key in branch.state.keys() - net.state_dict().keys() if key.startswith(classifiers(net)))
    if dropped:
        log.warning("%s: SEED's projector has no %s, left out", weights.name, ", ".join(dropped))
    return net.eval().requires_grad_(False)
