"""Which of the authors' keys have no effect in which command, as in their program; setting one gives a warning.

Their transforms are fixed in the code: all of AUG is without effect, and nothing reads QUANT.
"""

from collections.abc import Collection
from typing import Literal

from lowbit.config.unused import paths

Command = Literal["ssl", "linear", "slimmable", "distill", "calibrate"]
EVERYWHERE = {  # section: its keys; what accelerate or the command decides here included
    "": "DEVICE RANK WORLD_SIZE LOCAL_RANK EVALUATOR EVALUATION_DOMAIN AUG QUANT",
    "MODEL.OFA": "REGULARIZER_L1_LAMBDA BN_CAL_BATCH_NUM CUMULATIVE_BN_STATS BN_TRACK_STATS",
    "TRAIN": "USE_DDP RESUME PRETRAIN START_EPOCH LABEL_SMOOTHING RUNNER METER",
    "TRAIN.LR_SCHEDULER": "WARMUP_LR FC_LR MIN_LR SPECIFIC_LRS DECAY_EPOCH DECAY_RATE",
    "TRAIN.OPTIMIZER": "EPS BETAS",
    "TRAIN.LOSS": "LAMBDA REGULARIZER",
    "TRAIN.LOSS.CRITERION": "LPLOSS",
    "PRUNE": "TYPE STRATEGY GLOBAL_FACTOR ENABLE_RETRAIN GRANULARITY RETRAIN_GRANULARITY PRUNE_NUM PRUNE_PROB "
    "SLIMMING_FACTOR",
}
TRAINED_WIDTHS = (
    "WIDTH_MULT_RANGE NUM_SAMPLE_TRAINING SANDWICH SAMPLE_SCHEDULER MOMENTUM_UPDATE STEP_PER DISTILL "
    "DISTILL_CRITERION DISTILL_LAMBDA DISTILL_STUDENT_TEMP DISTILL_TEACHER_TEMP DISTILL_FEATURE "
    "DISTILL_FEATURE_CRITERION DISTILL_FEATURE_LAMBDA DISTILL_FEATURE_NAME DISTILL_FEATURE_DIM REGULARIZER "
    "REGULARIZER_CRITERION REGULARIZER_LAMBDA REGULARIZER_DECAY_ALPHA REGULARIZER_DECAY_TYPE REGULARIZER_DECAY_BINS "
    "REGULARIZER_WARMUP_EPOCHS"
)
PRETRAINING = {
    "MODEL": "NUM_CLASSES",
    "MODEL.OFA": "CALIBRATE_BN",
    "TRAIN": "LINEAR_EVAL WARMUP_FC",
}
IN_COMMAND = {
    "ssl": {**PRETRAINING, "": "DISTILL"},
    "distill": PRETRAINING,
    "linear": {
        "": "SSL DISTILL",
        "MODEL.OFA": f"{TRAINED_WIDTHS} USE_SLIMMABLE",
        "TRAIN": "LOSS USE_AMP DROP_LAST",
        "TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS",
    },
    "slimmable": {
        "": "SSL DISTILL",
        "MODEL.OFA": "WIDTH_MULT WIDTH_MULT_RANGE NUM_SAMPLE_TRAINING SANDWICH SAMPLE_SCHEDULER MOMENTUM_UPDATE "
        "USE_SLIMMABLE CALIBRATE_BN",
        "TRAIN": "LINEAR_EVAL WARMUP_FC LOSS USE_AMP DROP_LAST",
        "TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS",
    },
    "calibrate": {
        "": "SSL DISTILL",
        "MODEL": "NUM_CLASSES",
        "MODEL.OFA": f"{TRAINED_WIDTHS} USE_SLIMMABLE CALIBRATE_BN",
        "TRAIN": "LINEAR_EVAL WARMUP_FC EPOCHS LR_SCHEDULER OPTIMIZER LOSS SYNC_BN USE_AMP DROP_LAST",
    },
}
SETTING = {  # the keys of SSL.SETTING that each method reads
    "SimCLR": "DIM HIDDEN_DIM T MLP PREDICTOR",
    "SimCLR_Momentum": "DIM HIDDEN_DIM T MLP PREDICTOR MOMENTUM",
    "BYOL": "DIM HIDDEN_DIM T MLP MOMENTUM NEW_DISTILL_HEAD",
    "SimSiam": "DIM HIDDEN_DIM T MLP",
    "SimSiam_Momentum": "DIM HIDDEN_DIM T MLP MOMENTUM NEW_DISTILL_HEAD",
    "MoCo": "DIM HIDDEN_DIM T MLP MOMENTUM MOCO_K",
    "MoCo_v3": "DIM HIDDEN_DIM T MLP MOMENTUM NEW_DISTILL_HEAD",
    "SEED": "DIM HIDDEN_DIM MLP MOCO_K",
    "SEED_MSE": "DIM HIDDEN_DIM T MLP",
    "SEED_SimCLR": "DIM HIDDEN_DIM T MLP",
}


def unused_keys(command: Command, known: Collection[str], *, kind: str, probe: bool) -> set[str]:
    """Keys, and whole sections, that `command` does not read.

    Args:
        command: its name.
        known: every key of the tree.
        kind: SSL.TYPE.
        probe: TRAIN.LINEAR_EVAL.
    """
    unused = paths(EVERYWHERE) | paths(IN_COMMAND[command])
    if command == "linear" and probe:
        unused |= {"TRAIN.SYNC_BN"}
    if command in ("ssl", "distill") and kind:
        used = SETTING[kind].split()
        unused |= {key for key in known if key.startswith("SSL.SETTING.") and key.rpartition(".")[2] not in used}
    return unused
