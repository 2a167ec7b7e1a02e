"""SSQL under attack: its files, and the command lines that make and read them."""

from tools.attacks.method import FEW, NET, Method

_SSL = f"ssl --config base/digits.yaml MODEL.ARCH={NET} SSL.SETTING.DIM=16 SSL.SETTING.HIDDEN_DIM=16 {FEW}"
_SSL += " TRAIN.EPOCHS=2 TRAIN.BATCH_SIZE=32 TRAIN.OPTIMIZER.MOMENTUM=0"
_SIMSIAM = f"{_SSL} SSL.TYPE=SSQL_SimSiam"
_MOCO = f"{_SSL} SSL.TYPE=SSQL_MoCo SSL.SETTING.MOCO_K=64 TRAIN.LOSS.CRITERION.NAME=CrossEntropy"
_CLASSIFY = f"--config base/evaluation.yaml MODEL.ARCH={NET} MODEL.INPUTSHAPE=8,8 TRAIN.DATASET=digits {FEW}"
_CLASSIFY += " TRAIN.BATCH_SIZE=32 TRAIN.EPOCHS=2 TRAIN.LR_SCHEDULER.BASE_LR=0.5 QUANT.W.BIT=4 QUANT.A.BIT=4"
_PROBE = f"linear {_CLASSIFY} TRAIN.LINEAR_EVAL=True MODEL.PRETRAINED="
_SWEEP = f"--bits 4w4f --probe-epochs 1 {FEW}"
_DRAW = f"draw --config draw.yaml TRAIN.DATASET=digits {FEW} --dry-run"

SSQL = Method(
    program="ssql",
    makes={
        "ssql-simsiam.pth.tar": (f"{_SIMSIAM} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "ssql-moco.pth.tar": (f"{_MOCO} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "ssql-backbone.safetensors": (f"{_SIMSIAM} --output OUT", "backbone.safetensors"),
        "ssql-linear.pth.tar": (f"{_PROBE}ssql-simsiam.pth.tar --max-steps 3 --output OUT", "checkpoint.pth.tar"),
    },
    reads={
        "ssql-simsiam": (f"sweep FILE {_SWEEP}", f"{_PROBE}FILE --dry-run", f"{_DRAW} MODEL.PRETRAINED=FILE"),
        "ssql-moco": (f"sweep FILE {_SWEEP} --dry-run", f"{_PROBE}FILE --dry-run"),
        "ssql-linear": (f"sweep FILE --dataset digits {_SWEEP} --dry-run", f"{_PROBE}FILE --dry-run"),
        "backbone": (f"sweep FILE --dataset digits {_SWEEP} --dry-run", f"{_PROBE}FILE --dry-run"),
    },
    resumes={
        "ssql-simsiam.pth.tar": _SIMSIAM,
        "ssql-moco.pth.tar": _MOCO,
        "ssql-linear.pth.tar": f"{_PROBE}ssql-simsiam.pth.tar",
    },
    lines=(
        f"{_SIMSIAM} --dry-run",
        f"{_MOCO} --dry-run",
        f"{_PROBE}ssql-simsiam.pth.tar --dry-run",
        f"default {_CLASSIFY} TRAIN.LINEAR_EVAL=True MODEL.PRETRAINED=ssql-simsiam.pth.tar --dry-run",
        f"sweep ssql-simsiam.pth.tar {_SWEEP} --dry-run",
        f"{_DRAW} MODEL.PRETRAINED=ssql-simsiam.pth.tar",
        "demo --output /dev/null/x",
    ),
    folders=(
        f"{_SSL} SSL.TYPE=SimSiam TRAIN.DATASET=folder --data DATA -j 0 --dry-run".replace(FEW, "").replace(
            "=32", "=2"
        ),
    ),
    configs=(
        f"{_SIMSIAM} TRAIN.DATASET=digits MODEL.INPUTSHAPE=8,8 --dry-run",
        f"{_MOCO} TRAIN.DATASET=digits MODEL.INPUTSHAPE=8,8 --dry-run",
        f"{_PROBE}ssql-simsiam.pth.tar TRAIN.DATASET=digits MODEL.INPUTSHAPE=8,8 --dry-run",
    ),
)
