"""Which of the authors' keys have no effect in which command, as in their program; setting one gives a warning.

Their transforms are fixed in the code: all of AUG is without effect, and nothing reads QUANT.
"""

from typing import TYPE_CHECKING, Literal

from lowbit.config.keys.root import NOWHERE
from lowbit.config.unused import paths, unread

if TYPE_CHECKING:
    from us3l.config import Config

Command = Literal["ssl", "linear", "slimmable", "distill", "calibrate"]
OFA = "MODEL.OFA"
SWITCHED = {  # what keys are for, where a command reads them at all: of MODEL.OFA
    "drawn": "WIDTH_MULT_RANGE SANDWICH SAMPLE_SCHEDULER",
    "listed": "WIDTH_MULT_LIST",
    "single": "WIDTH_MULT",
    "several": "STEP_PER MOMENTUM_UPDATE",
    "distilled": "DISTILL_CRITERION DISTILL_LAMBDA DISTILL_FEATURE",
    "features": "DISTILL_FEATURE_CRITERION DISTILL_FEATURE_LAMBDA DISTILL_FEATURE_NAME DISTILL_FEATURE_DIM",
    "queued": "DISTILL_STUDENT_TEMP DISTILL_TEACHER_TEMP",
    "regularized": "REGULARIZER_CRITERION REGULARIZER_LAMBDA REGULARIZER_WARMUP_EPOCHS REGULARIZER_DECAY_ALPHA "
    "REGULARIZER_DECAY_TYPE REGULARIZER_DECAY_BINS",
}
SWITCHES = {  # others, likewise
    "temperature": "SSL.SETTING.T",
    "stepped": "TRAIN.LR_SCHEDULER.DECAY_MILESTONES",
}
EVERYWHERE = {  # section: its keys
    "": "AUG QUANT",
    OFA: "REGULARIZER_L1_LAMBDA BN_CAL_BATCH_NUM CUMULATIVE_BN_STATS BN_TRACK_STATS",
    "PRUNE": "TYPE STRATEGY GLOBAL_FACTOR ENABLE_RETRAIN GRANULARITY RETRAIN_GRANULARITY PRUNE_NUM PRUNE_PROB "
    "SLIMMING_FACTOR",
}
EVALUATED = {"": "SSL DISTILL", OFA: "NUM_SAMPLE_TRAINING DISTILL REGULARIZER USE_SLIMMABLE"}
PRETRAINED = {"MODEL": "NUM_CLASSES", OFA: "CALIBRATE_BN", "TRAIN": "LINEAR_EVAL WARMUP_FC"}
LABELLED = {"TRAIN": "LOSS USE_AMP", "TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS"}
IN_COMMAND: dict[str, tuple[dict[str, str], ...]] = {
    "ssl": (PRETRAINED, {"": "DISTILL"}),
    "distill": (PRETRAINED, {"TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS"}),
    "linear": (EVALUATED, LABELLED, {"TRAIN": "DROP_LAST"}),
    "slimmable": (
        LABELLED,
        {"": "SSL DISTILL", OFA: "NUM_SAMPLE_TRAINING REGULARIZER USE_SLIMMABLE CALIBRATE_BN CALIBRATION_PICTURES"},
        {"TRAIN": "LINEAR_EVAL WARMUP_FC"},
    ),
    "calibrate": (
        EVALUATED,
        PRETRAINED,
        {"TRAIN": "EPOCHS LR_SCHEDULER OPTIMIZER LOSS SYNC_BN USE_AMP DROP_LAST"},
    ),
}
SETTING = {  # the keys of SSL.SETTING that each method reads
    "SimCLR": "DIM HIDDEN_DIM T MLP PREDICTOR",
    "SimCLR_Momentum": "DIM HIDDEN_DIM T MLP PREDICTOR MOMENTUM",
    "BYOL": "DIM HIDDEN_DIM T MLP MOMENTUM NEW_DISTILL_HEAD",
    "SimSiam": "DIM HIDDEN_DIM T MLP",
    "SimSiam_Momentum": "DIM HIDDEN_DIM T MLP MOMENTUM NEW_DISTILL_HEAD",
    "MoCo": "DIM HIDDEN_DIM T MLP MOMENTUM MOCO_K",
    "MoCo_v3": "DIM HIDDEN_DIM T MOMENTUM NEW_DISTILL_HEAD",
    "SEED": "DIM HIDDEN_DIM MLP MOCO_K",
    "SEED_MSE": "DIM HIDDEN_DIM T MLP",
    "SEED_SimCLR": "DIM HIDDEN_DIM T MLP",
}


def switched_on(command: Command, config: "Config", sched: str | None) -> set[str]:
    """Of `SWITCHED` and `SWITCHES`, what a command has under this config and `--sched`."""
    ofa, method = config.MODEL.OFA, config.method
    several = config.several
    distilled = several and ofa.DISTILL
    losses = config.criterion + (ofa.DISTILL_CRITERION if distilled else "")
    pretraining = {
        "drawn": several and not ofa.USE_SLIMMABLE,
        "listed": ofa.USE_SLIMMABLE,
        "single": not several and not ofa.USE_SLIMMABLE,
        "several": several,
        "distilled": distilled,
        "features": distilled and ofa.DISTILL_FEATURE,
        "queued": method == "SEED",
        "regularized": ofa.REGULARIZER,
        "temperature": "NCE" in losses or method == "MoCo",
    }
    found = {name for name, on in pretraining.items() if on} if command in ("ssl", "distill") else {"single"}
    if command == "slimmable":
        found = {"listed", "several"}
    return found | ({"stepped"} if (sched or config.schedule) == "step" else set())


def without_effect(command: Command, config: "Config", sched: str | None = None) -> set[str]:
    """Keys, and whole sections, that `command` does not read under this config and `--sched`."""
    method, on = config.method, switched_on(command, config, sched)
    unused = paths(NOWHERE).union(paths(EVERYWHERE), *map(paths, IN_COMMAND[command]))
    unused |= paths({OFA: " ".join(keys for name, keys in SWITCHED.items() if name not in on)})
    unused |= {key for name, key in SWITCHES.items() if name not in on}
    if command == "linear" and config.TRAIN.LINEAR_EVAL:
        unused |= {"TRAIN.SYNC_BN"}
    if command in ("ssl", "distill") and method:
        unused |= unread(type(config.SSL.SETTING), "SSL.SETTING", SETTING[method])
    return unused
