"""Which of the authors' keys have no effect in which command, as in their program; setting one gives a warning.

Their `ssl` builds an optimizer and a schedule from the keys, then trains with SGD and a cosine of its own; `linear`
knows no warm-up, smoothing or mixing; the quantization tools beyond `uniform` are called by no command.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lowbit.config.tree import leaves

if TYPE_CHECKING:
    from ssql.config import Config

Command = Literal["ssl", "linear", "default", "draw"]
EVERYWHERE = {  # section: its keys; what accelerate or the command decides here included
    "": "DEVICE RANK WORLD_SIZE LOCAL_RANK EVALUATOR EVALUATION_DOMAIN",
    "TRAIN": "USE_DDP RESUME PRETRAIN START_EPOCH LABEL_SMOOTHING RUNNER METER",
    "TRAIN.LR_SCHEDULER": "WARMUP_EPOCHS WARMUP_LR FC_LR MIN_LR SPECIFIC_LRS DECAY_EPOCH DECAY_RATE",
    "TRAIN.OPTIMIZER": "EPS BETAS",
    "TRAIN.LOSS": "LAMBDA REGULARIZER",
    "TRAIN.LOSS.CRITERION": "LPLOSS",
    "AUG.TRAIN": "AUTO_AUGMENT MIX",
    "QUANT": "FOLD_BN BIT_ASSIGNER FINETUNE",
    "QUANT.W.OBSERVER_METHOD": "ALPHA BINS",
    "QUANT.A.OBSERVER_METHOD": "ALPHA BINS",
    "QUANT.CALIBRATION": "PATH TYPE MODULE_PATH SIZE BATCHSIZE NUM_WORKERS",
}
IN_SSL = {  # SGD, cosine, bits drawn
    "MODEL": "NUM_CLASSES",
    "TRAIN": "LINEAR_EVAL WARMUP_FC",
    "TRAIN.LR_SCHEDULER": "TYPE DECAY_MILESTONES",
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


def _paths(sections: Mapping[str, str]) -> set[str]:
    return {f"{section}.{key}".lstrip(".") for section, keys in sections.items() for key in keys.split()}


def fixed_transforms(config: "Config") -> bool:
    """Whether evaluation shows pictures in the one way that the authors' program has for this net and dataset."""
    return config.MODEL.ARCH.startswith("cifar_") and config.TRAIN.DATASET in ("cifar10", "cifar100")


def without_effect(command: Command, config: "Config") -> set[str]:
    """Keys, and whole sections, that `command` does not read under this config.

    `ssl` takes mean and std alone from AUG; so does `linear` for CIFAR pictures on the `cifar_` nets, whose
    transforms are fixed (crops of 80 to 100 % and mirroring; resized to 36 and the middle 32).
    """
    known = list(leaves(type(config)))
    transforms = {key for key in known if key.startswith("AUG.") and ".NORMLIZATION." not in key}
    idle = _paths(EVERYWHERE)
    if command != "ssl":
        cosine = config.TRAIN.LR_SCHEDULER.TYPE == "cosine"
        idle |= {"TRAIN.LR_SCHEDULER.DECAY_MILESTONES"} if cosine else set()
        idle |= {"TRAIN.SYNC_BN"} if config.TRAIN.LINEAR_EVAL else set()
        return idle | _paths(IN_EVALUATION) | (transforms if fixed_transforms(config) else set())
    idle |= _paths(IN_SSL) | transforms
    if config.SSL.TYPE:
        used = READ_BY[config.SSL.TYPE.rpartition("_")[2]].split()
        idle |= {key for key in known if key.startswith("SSL.SETTING.") and key.rpartition(".")[2] not in used}
        if "SSQL" not in config.SSL.TYPE:
            idle.add("QUANT")
    return idle
