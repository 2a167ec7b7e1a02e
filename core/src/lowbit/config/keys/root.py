"""The root of a tree, MODEL and SSL.SETTING, as methods with a YAML config share them; a method adds its own keys.

Names, odd spellings (`NORMLIZATION`) included, and defaults are the authors'; comments mark the keys that are ours.
A method's tree is a subclass of `Root` with its own sections, and with subclasses of the shared ones where they have
more keys (`class Train(train.Train): DROP_LAST: bool = False`) or fewer values (`NAME: Literal["a", "b"]` for a `str`).
No file outside this folder holds a path of keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import model_validator

from lowbit.config.keys.aug import Aug
from lowbit.config.keys.train import Dataset, Train
from lowbit.config.tree import Node, value_of, with_values
from lowbit.config.values import Count, Fraction, HeadWidth, HeightWidth, Positive, QueueLength, Seed, UserPath
from lowbit.errors import InputError
from lowbit.options import WORKERS

RESUME = "--resume (MODEL.CHECKPOINT)"  # one parameter
MOST_WEIGHTS = 2**30  # of a layer of a head
EXAMPLE = "TRAIN.EPOCHS=100"  # of an argument
PRETRAINED, LINEAR_EVAL, WARMUP_FC = "MODEL.PRETRAINED", "TRAIN.LINEAR_EVAL", "TRAIN.WARMUP_FC"
FLAGS = {  # name of a command line's parameter: the key that it is one parameter with
    "output": "OUTPUT",
    "seed": "SEED",
    "resume": "MODEL.CHECKPOINT",
    "workers": "TRAIN.NUM_WORKERS",
    "print_freq": "TRAIN.PRINT_FREQ",
}
DEFAULTS = {"OUTPUT": "./train_log", "TRAIN.NUM_WORKERS": WORKERS, "TRAIN.PRINT_FREQ": 50}  # of their command lines
NOWHERE = {  # section: keys of the authors' trees that no command reads, or that accelerate or the command decides here
    "": "DEVICE RANK WORLD_SIZE LOCAL_RANK EVALUATOR EVALUATION_DOMAIN",
    "TRAIN": "USE_DDP RESUME PRETRAIN START_EPOCH LABEL_SMOOTHING RUNNER METER",
    "TRAIN.LR_SCHEDULER": "WARMUP_LR FC_LR MIN_LR SPECIFIC_LRS DECAY_EPOCH DECAY_RATE",
    "TRAIN.OPTIMIZER": "EPS BETAS",
    "TRAIN.LOSS": "LAMBDA REGULARIZER",
    "TRAIN.LOSS.CRITERION": "LPLOSS",
}
MAY_DIFFER = {  # when a run is resumed, or the loop compares them itself
    "OUTPUT", "SEED", "MODEL.CHECKPOINT", "MODEL.PRETRAINED", "TRAIN.EPOCHS", "TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH",
    "TRAIN.NUM_WORKERS", "TRAIN.PRINT_FREQ",
}  # fmt: skip


class Model(Node):
    """The net and where its weights come from."""

    ARCH: str = ""  # timm's name
    CHECKPOINT: UserPath = ""  # of a run to resume: the same as --resume
    PRETRAINED: UserPath = ""  # weights to start from or to evaluate
    NUM_CLASSES: Count = 0  # 0: those of the data; another number has to be theirs
    INPUTSHAPE: HeightWidth = (-1, -1)  # height and width in pixels; not stated: the pictures' own, 224 of files

    @property
    def side(self) -> int | None:
        """Height and width of what the net sees, in pixels; None: not stated.

        Raises:
            InputError: not square.
        """
        height, width = self.INPUTSHAPE
        if height != width:
            raise InputError(f"MODEL.INPUTSHAPE={[height, width]}: views are square, give two equal sizes")
        return height if height > 0 else None

    def classes(self, dataset: str, found: int) -> int:
        """The classes of a dataset, which `NUM_CLASSES` may state.

        Raises:
            InputError: it states another number.
        """
        if self.NUM_CLASSES not in (0, found):
            raise InputError(f"MODEL.NUM_CLASSES={self.NUM_CLASSES}: {dataset} has {found} classes; give that, or 0")
        return found


class Setting(Node):
    """Heads and loss of a self-supervised method."""

    DIM: HeadWidth = 128  # outputs of the projector
    HIDDEN_DIM: HeadWidth = 2048  # units of the heads' hidden layers
    T: Positive = 0.07  # temperature
    MOCO_K: QueueLength = 65536  # keys in the queue
    MOMENTUM: Fraction = 0.999  # of the momentum copy
    MLP: bool = True  # a hidden layer in the projector

    @model_validator(mode="after")
    def _fit_memory(self) -> Self:
        if self.DIM * max(self.DIM, self.HIDDEN_DIM) > MOST_WEIGHTS:
            raise ValueError(
                f"DIM={self.DIM} and HIDDEN_DIM={self.HIDDEN_DIM} make a layer of more than {MOST_WEIGHTS} weights; "
                "lower one of them"
            )
        return self


class Root(Node):
    """The keys that stand in no section, and the shared sections; `BASE_CONFIG` belongs to the files."""

    DEVICE: Any = None
    RANK: Any = 0
    WORLD_SIZE: Any = 1
    LOCAL_RANK: Any = 0
    SEED: Seed | None = None  # of every draw: the same as --seed
    OUTPUT: UserPath = ""  # the run's folder: the same as --output
    EVALUATOR: Any = ""
    EVALUATION_DOMAIN: Any = None
    MODEL: Model = Model()
    TRAIN: Train = Train()
    AUG: Aug = Aug()

    def check_stated(self, *keys: str) -> None:
        """Refuse empty keys.

        Raises:
            InputError: the first that is.
        """
        for key in keys:
            if not value_of(self, key):
                raise InputError(f"{key} is empty: name it in the config, or as {key}=NAME after the command")

    def check_training(self) -> None:
        """Refuse a training of no net, on nothing, or for no epoch.

        Raises:
            InputError: a key that has to be set and is not.
        """
        self.check_stated("MODEL.ARCH", "TRAIN.DATASET")
        if self.TRAIN.EPOCHS < 1:
            raise InputError(f"TRAIN.EPOCHS={self.TRAIN.EPOCHS}: give 1 or more")

    def check_evaluation(self, resumes: bool) -> None:
        """Refuse the same of an evaluation that trains a classifier, or the whole net.

        Args:
            resumes: it goes on with a run, whose checkpoint holds what MODEL.PRETRAINED gave.

        Raises:
            InputError: a key that has to be set and is not.
        """
        self.check_training()
        rate = self.TRAIN.LR_SCHEDULER.BASE_LR
        if not rate > 0:
            raise InputError(f"TRAIN.LR_SCHEDULER.BASE_LR={rate}: give a number above 0")
        if self.TRAIN.WARMUP_FC and not (self.MODEL.PRETRAINED or resumes):
            raise InputError(
                "TRAIN.WARMUP_FC: the classifier comes from a linear evaluation; give MODEL.PRETRAINED=PATH"
            )


Tree = TypeVar("Tree", bound=Root)


def with_options(config: Tree, dataset: str | None, said: Mapping[str, Any], checkpoint: Path) -> Tree:
    """A checkpoint's config with what a command line says.

    Args:
        config: of the checkpoint, else the default one.
        dataset: of the command line; None: the config's.
        said: values by their keys; None: the config's.
        checkpoint: the file, for the message.

    Raises:
        InputError: nobody says which dataset, or an unknown one.
    """
    names = get_args(Dataset)
    if dataset not in (None, *names):
        raise InputError(f"--dataset {dataset}: give one of {', '.join(names)}")
    if not (dataset or config.TRAIN.DATASET):
        raise InputError(f"{checkpoint} does not say what it was trained on: give --dataset")
    given = {**said, "TRAIN.DATASET": dataset}
    return with_values(config, {key: value for key, value in given.items() if value is not None})
