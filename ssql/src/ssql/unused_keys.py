"""Which of the authors' keys have no effect in which command, as in their program; setting one gives a warning.

Their `ssl` builds an optimizer and a schedule from the keys, then trains with SGD and a cosine of its own; `linear`
knows no warm-up, smoothing or mixing (ours has `default` train alike); the quantization tools beyond `uniform` are
called by no command.
"""

from collections.abc import Collection
from typing import Literal

from lowbit.config.keys.root import NOWHERE
from lowbit.config.unused import paths

Command = Literal["ssl", "linear", "default", "draw"]
EVERYWHERE = {  # section: its keys
    "TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS",
    "AUG.TRAIN": "AUTO_AUGMENT MIX",
    "QUANT": "FOLD_BN BIT_ASSIGNER FINETUNE",
    "QUANT.W.OBSERVER_METHOD": "ALPHA BINS",
    "QUANT.A.OBSERVER_METHOD": "ALPHA BINS",
    "QUANT.CALIBRATION": "PATH TYPE MODULE_PATH SIZE BATCHSIZE NUM_WORKERS",
}
IN_SSL = {  # SGD, cosine, bits drawn
    "MODEL": "NUM_CLASSES",
    "TRAIN": "LINEAR_EVAL WARMUP_FC",
    "TRAIN.LR_SCHEDULER": "TYPE",
    "TRAIN.OPTIMIZER": "NAME",
    "QUANT": "CALIBRATION FP",
    "QUANT.W": "BIT",
    "QUANT.A": "BIT",
}
IN_EVALUATION = {"": "SSL", "TRAIN": "LOSS", "QUANT": "BN SYNC_RANGES", "QUANT.W": "BIT_RANGE", "QUANT.A": "BIT_RANGE"}
READ_BY = {  # by the method's last name: the keys of SSL.SETTING that its heads and its loss read
    "SimSiam": "DIM HIDDEN_DIM OUTPUT_BN PREDICTOR_LR",
    "BYOL": "DIM HIDDEN_DIM OUTPUT_BN PREDICTOR_LR MOMENTUM",
    "MoCo": "DIM HIDDEN_DIM OUTPUT_BN T MOCO_K MOMENTUM MLP",
    "SimCLR": "DIM HIDDEN_DIM OUTPUT_BN T MLP NEGATIVES",
}


def unused_keys(
    command: Command, known: Collection[str], *, kind: str | None, probe: bool, cosine: bool, fixed_transforms: bool
) -> set[str]:
    """Keys, and whole sections, that `command` does not read.

    `ssl` takes mean and std alone from AUG; so does `linear` where transforms are fixed (CIFAR pictures on the
    `cifar_` nets: crops of 80 to 100 % and mirroring; resized to 36 and the middle 32).

    Args:
        command: its name.
        known: every key of the tree.
        kind: SSL.TYPE.
        probe: TRAIN.LINEAR_EVAL.
        cosine: whether the learning rate follows a cosine.
        fixed_transforms: whether `linear` shows pictures in one way, whatever AUG says.
    """
    transforms = {key for key in known if key.startswith("AUG.") and ".NORMLIZATION." not in key}
    unused = paths(NOWHERE) | paths(EVERYWHERE) | ({"TRAIN.LR_SCHEDULER.DECAY_MILESTONES"} if cosine else set())
    if command != "ssl":
        unused |= {"TRAIN.SYNC_BN"} if probe else set()
        return unused | paths(IN_EVALUATION) | (transforms if fixed_transforms else set())
    unused |= paths(IN_SSL) | transforms
    if kind:
        used = READ_BY[kind.rpartition("_")[2]].split()
        unused |= {key for key in known if key.startswith("SSL.SETTING.") and key.rpartition(".")[2] not in used}
        unused |= set() if "SSQL" in kind else {"QUANT"}
    return unused
