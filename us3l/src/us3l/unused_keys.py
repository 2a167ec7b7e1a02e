"""Which of the authors' keys have no effect in which command, as in their program; setting one gives a warning.

Their transforms are fixed in the code: all of AUG is without effect, and nothing reads QUANT.
"""

from typing import TYPE_CHECKING, Literal

from lowbit.config.keys.root import NOWHERE
from lowbit.config.unused import paths

if TYPE_CHECKING:
    from us3l.config import Config

Command = Literal["ssl", "linear", "slimmable", "distill", "calibrate"]
OFA, SETTING = "MODEL.OFA", "SSL.SETTING"
SWITCHED = {  # section: its keys, by the switch under which a command reads them
    "drawn": {OFA: "WIDTH_MULT_RANGE SANDWICH SAMPLE_SCHEDULER"},
    "listed": {OFA: "WIDTH_MULT_LIST"},
    "single": {OFA: "WIDTH_MULT"},
    "by layer": {OFA: "WIDTH_BY_LAYER"},
    "several": {OFA: "STEP_PER MOMENTUM_UPDATE"},
    "distilled": {OFA: "DISTILL_LAMBDA DISTILL_FEATURE"},
    "criterion": {OFA: "DISTILL_CRITERION"},
    "features": {
        OFA: "DISTILL_FEATURE_CRITERION DISTILL_FEATURE_LAMBDA DISTILL_FEATURE_NAME DISTILL_FEATURE_DIM",
    },
    "regularized": {
        OFA: "REGULARIZER_CRITERION REGULARIZER_LAMBDA REGULARIZER_WARMUP_EPOCHS REGULARIZER_DECAY_ALPHA "
        "REGULARIZER_DECAY_TYPE REGULARIZER_DECAY_BINS",
    },
    "two temperatures": {OFA: "DISTILL_STUDENT_TEMP DISTILL_TEACHER_TEMP"},
    "one temperature": {SETTING: "T"},
    "queue": {SETTING: "MOCO_K"},
    "copy": {SETTING: "MOMENTUM MOMENTUM_COSINE"},
    "layers": {SETTING: "MLP"},
    "PREDICTOR": {SETTING: "PREDICTOR"},
    "NEW_DISTILL_HEAD": {SETTING: "NEW_DISTILL_HEAD"},
    "stepped": {"TRAIN.LR_SCHEDULER": "DECAY_MILESTONES"},
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


def switched_on(command: Command, config: "Config", sched: str | None) -> set[str]:
    """Of `SWITCHED`, what a command has under this config and `--sched`."""
    ofa, known, listed = config.MODEL.OFA, config.known, config.MODEL.OFA.USE_SLIMMABLE
    several, distilled = config.several, config.distils
    losses = config.criterion + (ofa.DISTILL_CRITERION if distilled else "")
    pretraining = {
        "drawn": several and not listed,
        "listed": listed,
        "single": not several and not listed,
        "several": several,
        "distilled": distilled,
        "criterion": distilled and len(known.criteria) > 1,  # methods of one loss distil by it
        "features": distilled and ofa.DISTILL_FEATURE,
        "regularized": ofa.REGULARIZER,
        "two temperatures": config.method == "SEED",
        "one temperature": "NCE" in losses or config.method == "MoCo",
        "queue": known.queue,
        "copy": known.copies,
        "layers": config.method != "MoCo_v3",
        known.own_head: True,
    }
    found = {name for name, on in pretraining.items() if on} if command in ("ssl", "distill") else {"single"}
    if command in ("linear", "calibrate"):
        found = {"by layer"} if ofa.WIDTH_BY_LAYER else {"single"}
    if command == "slimmable":
        found = {"listed", "several"}
    return found | ({"stepped"} if (sched or config.schedule) == "step" else set())


def without_effect(command: Command, config: "Config", sched: str | None = None) -> set[str]:
    """Keys, and whole sections, that `command` does not read under this config and `--sched`."""
    on = switched_on(command, config, sched)
    off = (keys for name, keys in SWITCHED.items() if name not in on)
    probe = {"TRAIN": "SYNC_BN"} if command == "linear" and config.TRAIN.LINEAR_EVAL else {}
    return set().union(*map(paths, (NOWHERE, EVERYWHERE, *IN_COMMAND[command], *off, probe)))
