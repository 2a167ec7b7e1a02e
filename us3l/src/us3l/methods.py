"""From a config to the objective of `SSL.TYPE`: slimmable encoder, heads, widths, losses, momentum copy.

Projectors are the authors': three layers of `HIDDEN_DIM`, of which a slimmable net's first takes as many inputs as it
has. SimCLR's have biases in both hidden layers, the others' in the first alone; SimSiam's ends in batch norm. The last
batch norm of each block of timm's ResNets starts at 0 under SimSiam, else at 1.

Deviations: heads that no pass uses are not made; statistics of batch norm are tracked by every method at a single width
(theirs: by some).
"""

import logging
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.losses.queue import KeyQueue
from lowbit.models.captured import captured
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, HeadPlan, Heads, attach_projector_, build_heads, predictor
from lowbit.models.surgery import of_kind, run_blank
from lowbit.options import OptimOptions
from lowbit.slim.conversion import slims_inputs
from lowbit.slim.norms import SlimBatchNorm2d
from lowbit.train.schedule import constant, cosine
from us3l.authors import timm_name
from us3l.config import Config
from us3l.group_decay import GroupDecay
from us3l.losses import MAPS, FeatureDistillation, loss_of
from us3l.network import slimmable_
from us3l.objective import Plan, UniversallySlimmable
from us3l.optim import AUTHORS, optimizer
from us3l.unused_keys import Command

_THREE = HeadPlan(3, wide=False, output_bn=False, predictor=True, bias=(True, False))
_SIMCLR = replace(_THREE, bias=(True, True))
PROJECTORS = {
    "SimCLR": _SIMCLR, "SimCLR_Momentum": _SIMCLR, "BYOL": _THREE, "SimSiam": replace(_THREE, output_bn=True),
    "SimSiam_Momentum": _THREE, "MoCo": HEADS["MoCo"], "MoCo_v3": replace(_THREE, output_bn=True, bias=(False, False)),
    "SEED": _THREE, "SEED_MSE": _THREE, "SEED_SimCLR": _THREE,
}  # fmt: skip

log = logging.getLogger(__name__)


def decay_of(config: Config, encoder: nn.Module) -> GroupDecay | None:
    """Group regularization; `L2Reg` has equal groups."""
    ofa = config.MODEL.OFA
    if not ofa.REGULARIZER:
        return None
    grouped = ofa.REGULARIZER_CRITERION == "GroupReg"
    alpha, kind = (ofa.REGULARIZER_DECAY_ALPHA, ofa.REGULARIZER_DECAY_TYPE) if grouped else (0.0, "linear")
    bins, warmup = ofa.REGULARIZER_DECAY_BINS, ofa.REGULARIZER_WARMUP_EPOCHS
    return GroupDecay(ofa.REGULARIZER_LAMBDA, alpha, kind, bins, warmup, of_inputs=slims_inputs(encoder))


def encoder_of(config: Config, size: tuple[int, int, int]) -> nn.Module:
    """A net drawn from `SEED` with the projector of `SSL.TYPE`, slimmable where it runs at other widths, for (C, H, W).

    Raises:
        InputError: an unknown net, one without a linear classifier, for other pictures, or that cannot be slimmed.
    """
    net, setting, method = config.MODEL.net, config.SSL.SETTING, config.method
    torch.manual_seed(config.SEED or 0)
    encoder = create_model(net.name, zero_init_last="SimSiam" in method, num_classes=1)

    def heads(features: int) -> Heads:
        hidden = max(setting.HIDDEN_DIM, features, setting.DIM) if method == "MoCo" else setting.HIDDEN_DIM
        return build_heads(PROJECTORS[method], features, setting.DIM, hidden, mlp=setting.MLP)

    attach_projector_(encoder, heads)
    run_blank(encoder, size, setting="MODEL.INPUTSHAPE")
    widths = config.trained_widths()
    slimmable_(encoder, net, size, widths)
    if len(widths) != 1 and method != "SimSiam":
        for norm in of_kind(encoder, SlimBatchNorm2d).values():
            norm.track_running_stats = False
    return encoder


def heads_of(config: Config) -> tuple[str, str]:
    """The submodules that make the predictions of the widest pass and of narrower ones; "": none."""
    known, setting = config.known, config.SSL.SETTING
    chosen = known.own_head and getattr(setting, known.own_head)
    if config.MODEL.OFA.MOMENTUM_UPDATE or not config.several or not chosen:
        return known.head, known.head
    return known.head, "predictor_new" if known.head else "predictor"


def check(config: Config) -> None:
    """What does not go together, before any data is read.

    Raises:
        InputError: see the messages.
    """
    method, ofa = config.method, config.MODEL.OFA
    if not method:
        raise InputError("SSL.TYPE is missing: name a method, such as SimCLR_Momentum")
    known = config.known
    if config.criterion not in known.criteria:
        other = ", or SSL.TYPE=SEED_MSE, which compares two views" if method == "SEED" else ""
        allowed = " or ".join(dict.fromkeys(known.criteria))
        raise InputError(
            f"TRAIN.LOSS.CRITERION.NAME={config.criterion} is no loss of SSL.TYPE={method}: take {allowed}{other}"
        )
    if not config.SSL.SETTING.MLP and method != "MoCo":
        raise InputError(f"SSL.SETTING.MLP=False: the projector of {method} has three layers; leave it out")
    if config.MODEL.net.kind == "switchable" and 1.0 not in config.sampling.fixed:
        raise InputError(
            f"{config.MODEL.ARCH} has a batch norm for each width of a list that holds 1.0: set "
            "MODEL.OFA.USE_SLIMMABLE=True and MODEL.OFA.WIDTH_MULT_LIST"
        )
    if ofa.DISTILL_FEATURE and ofa.DISTILL_FEATURE_CRITERION not in MAPS:
        raise InputError(
            f"MODEL.OFA.DISTILL_FEATURE_CRITERION={ofa.DISTILL_FEATURE_CRITERION} is not there: take MSELoss or "
            "CosineSimilarity"
        )
    if method == "MoCo" and config.several and (ofa.DISTILL_FEATURE or not config.distils):
        raise InputError(
            "MoCo at several widths needs MODEL.OFA.DISTILL=True (one key for all of them) and no DISTILL_FEATURE, "
            "since each encoder sees one view"
        )


def build(
    config: Config, size: tuple[int, int, int], optim: OptimOptions = AUTHORS, teacher: nn.Module | None = None
) -> UniversallySlimmable:
    """The objective of `SSL.TYPE`, drawn from `SEED` (the queue too).

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.
        optim: what replaces the authors' optimizer.
        teacher: of `us3l.commands.distill.teacher_of`, for that command.

    Raises:
        InputError: see `check` and `encoder_of`, a method of the other command, or a student that cannot be compared.
    """
    check(config)
    method, ofa, setting = config.method, config.MODEL.OFA, config.SSL.SETTING
    known = config.known
    if known.teacher and teacher is None:
        raise InputError(f"SSL.TYPE={method} learns from a teacher: run `us3l distill`")
    if teacher is not None and config.several:
        raise InputError("a student of `distill` has one width: set MODEL.OFA.NUM_SAMPLE_TRAINING=1 and WIDTH_MULT")
    if teacher is not None and setting.DIM != config.DISTILL.TEACHER_DIM:
        raise InputError(f"SSL.SETTING.DIM={setting.DIM} is not the teacher's DISTILL.TEACHER_DIM: make them equal")
    if method != config.SSL.TYPE:
        log.info("SSL.TYPE=%s is no method of its own: %s is run", config.SSL.TYPE, method)
    encoder, generator = encoder_of(config, size), torch.Generator().manual_seed(config.SEED or 0)
    keys = KeyQueue(setting.DIM, setting.MOCO_K, generator) if known.queue else None
    distillation = ofa.DISTILL_CRITERION if len(known.criteria) > 1 else config.criterion
    if "CosineSimilarityv2" in (config.criterion, distillation if config.distils else ""):
        log.info("CosineSimilarityv2: 2 - 2 cos; with the authors' sign it would repel")
    temperature = ofa.DISTILL_STUDENT_TEMP if method == "SEED" else setting.T
    momentum = cosine(setting.MOMENTUM, 1.0) if setting.MOMENTUM_COSINE else constant(setting.MOMENTUM)
    plan = Plan(
        config.sampling,
        loss_of(config.criterion, temperature, keys, ofa.DISTILL_TEACHER_TEMP),
        loss_of(distillation, setting.T, keys) if ofa.DISTILL else None,
        weight=ofa.DISTILL_LAMBDA,
        heads=heads_of(config),
        momentum=momentum if known.copies else None,
        moves_per_pass=ofa.MOMENTUM_UPDATE,
        step_per_batch=ofa.STEP_PER == "batch",
        decay=decay_of(config, encoder),
    )
    ends = {"output_bn": method == "MoCo_v3"}  # Chen, Xie, He, ICCV 2021: all layers of both heads have batch norm
    made = {name: predictor(setting.DIM, setting.HIDDEN_DIM, **ends) for name in dict.fromkeys(plan.heads) if name}
    features = features_of(config, encoder, size) if ofa.DISTILL_FEATURE and config.distils else None
    command: Command = "ssl" if teacher is None else "distill"
    optimize = partial(optimizer, config, command=command, optim=optim)
    return UniversallySlimmable(encoder, plan, optimize, heads=made, features=features, keys=keys, teacher=teacher)


def features_of(config: Config, encoder: nn.Module, size: tuple[int, int, int]) -> FeatureDistillation:
    """Distillation of the maps of `DISTILL_FEATURE_NAME`.

    Raises:
        InputError: a module that is not there, gives no map, or has not the channels of `DISTILL_FEATURE_DIM`.
    """
    ofa = config.MODEL.OFA
    names, dims = ofa.DISTILL_FEATURE_NAME, ofa.DISTILL_FEATURE_DIM
    renamed = "features." if "mobilenetv2" in config.MODEL.net.name else "/"  # beginning of the authors' own names
    modules = [timm_name(name) if name.startswith(renamed) else name for name in names]
    with captured(encoder, modules) as maps:
        run_blank(encoder, size)
    found = tuple(
        maps[name][0].shape[1] if len(maps[name]) == 1 and maps[name][0].dim() == 4 else 0 for name in modules
    )
    if 0 in found:
        raise InputError(
            f"MODEL.OFA.DISTILL_FEATURE_NAME: {names[found.index(0)]} of {config.MODEL.ARCH} does not give one "
            "feature map (B, C, H, W): name a convolution, a batch norm or a block that does"
        )
    if found != tuple(dims):
        raise InputError(
            f"MODEL.OFA.DISTILL_FEATURE_DIM={list(dims)}: {', '.join(names)} of {config.MODEL.ARCH} have "
            f"{', '.join(map(str, found))} channels; give these"
        )
    loss = MAPS[ofa.DISTILL_FEATURE_CRITERION]
    return FeatureDistillation(names, dims, loss, ofa.DISTILL_FEATURE_LAMBDA, modules)
