"""US3L under attack: its files, and the command lines that make and read them."""

from tools.attacks.method import FEW, NET, SLIMMABLE, Method

_NET = f"MODEL.ARCH=us_{SLIMMABLE} MODEL.OFA.CALIBRATION_PICTURES=32"
_DATA = "TRAIN.DATASET=digits MODEL.INPUTSHAPE=8,8"
_TRAIN = f"{FEW} TRAIN.EPOCHS=2 TRAIN.BATCH_SIZE=32 TRAIN.GLOBAL_BATCH=32"
_HEADS = "SSL.SETTING.DIM=16 SSL.SETTING.HIDDEN_DIM=16 SSL.SETTING.MOCO_K=64"
_SSL = f"ssl --config base/digits.yaml {_NET} {_HEADS} {_TRAIN}"
_BYOL = f"{_SSL} SSL.TYPE=BYOL TRAIN.LOSS.CRITERION.NAME=CosineSimilarity MODEL.OFA.SAMPLE_SCHEDULER=A"
_BYOL += " MODEL.OFA.DISTILL_FEATURE=True MODEL.OFA.DISTILL_FEATURE_CRITERION=MSELoss"
_BYOL += ' MODEL.OFA.DISTILL_FEATURE_NAME=["bn3"] MODEL.OFA.DISTILL_FEATURE_DIM=[16]'
_BYOL += " MODEL.OFA.REGULARIZER=True MODEL.OFA.REGULARIZER_CRITERION=GroupReg"
_MOCO = f"{_SSL.replace('us_', 's_')} SSL.TYPE=MoCo TRAIN.LOSS.CRITERION.NAME= MODEL.OFA.USE_SLIMMABLE=True"
_MOCO += " MODEL.OFA.WIDTH_MULT_LIST=[0.5,1]"
_TEACHER = f"DISTILL.TEACHER_ARCH=us_{SLIMMABLE} DISTILL.TEACHER_DIM=16 DISTILL.TEACHER_HIDDEN_DIM=16"
_SEED = f"distill --config cifar/us_resnet18_seed_cifar.yaml {_NET} {_DATA} {_HEADS} {_TRAIN} {_TEACHER}"
_SEED += " DISTILL.TEACHER_PRETRAINED=us3l-simclr.pth.tar"
_LABELS = f"{_DATA} MODEL.NUM_CLASSES=10 TRAIN.LR_SCHEDULER.BASE_LR=0.5 {_TRAIN}"
_LIST = f"slimmable --config base/slimmable_cifar.yaml MODEL.ARCH=s_{SLIMMABLE} {_LABELS}"
_LIST += " MODEL.OFA.WIDTH_MULT_LIST=[0.5,1]"
_CLASSIFY = f"linear --config base/linear_cifar.yaml {_NET} {_LABELS}"
_PROBE = f"{_CLASSIFY} TRAIN.LINEAR_EVAL=True MODEL.PRETRAINED="
_TUNE = f"{_CLASSIFY} TRAIN.LINEAR_EVAL=False MODEL.PRETRAINED="
_CALIBRATE = f"calibrate --config base/digits.yaml {_NET} --limit-train 64 --widths 0.5,1 MODEL.PRETRAINED="
_SWEEP = f"--widths 0.5,1 --probe-epochs 1 --calibration 32 {FEW}"
_OTHER = f"{_SWEEP} --dataset digits --dry-run"
_EXPORT = "--calibration 32 --limit-train 64"

US3L = Method(
    program="us3l",
    makes={
        "us3l-simclr.pth.tar": (f"{_SSL} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-byol.pth.tar": (f"{_BYOL} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-moco.pth.tar": (f"{_MOCO} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-seed.pth.tar": (f"{_SEED} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-slimmable.pth.tar": (f"{_LIST} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-backbone.safetensors": (f"{_SSL} --output OUT", "backbone.safetensors"),
        "us3l-width.pth.tar": (f"{_CALIBRATE}us3l-byol.pth.tar --output OUT", "checkpoint_width_0.5.pth.tar"),
        "us3l-linear.pth.tar": (f"{_PROBE}us3l-simclr.pth.tar --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-tuned.pth.tar": (f"{_TUNE}us3l-width.pth.tar --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "us3l-subnetwork.safetensors": ("export us3l-linear.pth.tar --output OUT", "subnetwork.safetensors"),
        "us3l-packed.safetensors": (
            "export us3l-slimmable.pth.tar --width 0.5 --format packed --output OUT",
            "packed.safetensors",
        ),
    },
    reads={
        "us3l-simclr": (
            f"sweep FILE {_SWEEP}",
            f"{_PROBE}FILE --dry-run",
            f"export FILE {_EXPORT} --width 0.5 --output x --dry-run",
            f"{_SEED.replace('us3l-simclr.pth.tar', 'FILE')} --dry-run",
        ),
        "us3l-byol": (f"sweep FILE {_SWEEP} --distinct --dry-run", f"{_CALIBRATE}FILE --dry-run"),
        "us3l-moco": (f"sweep FILE {_SWEEP} --dry-run", "export FILE --output x --dry-run"),
        "us3l-seed": (f"sweep FILE {_SWEEP} --best-under 9 --dry-run", f"{_TUNE}FILE --dry-run"),
        "us3l-slimmable": (f"sweep FILE {_SWEEP} --dry-run", "export FILE --width 0.5 --output x --dry-run"),
        "us3l-width": (f"{_PROBE}FILE MODEL.OFA.CALIBRATE_BN=False --dry-run", "export FILE --output x --dry-run"),
        "us3l-linear": (f"sweep FILE {_SWEEP} --dry-run", "export FILE --output x --dry-run"),
        "us3l-tuned": (f"{_PROBE}FILE --dry-run", f"{_TUNE}FILE TRAIN.WARMUP_FC=True --dry-run"),
        "backbone": (f"sweep FILE --arch us_{SLIMMABLE} {_OTHER}", f"{_CALIBRATE}FILE --dry-run"),
        "us3l-subnetwork": (f"{_PROBE}FILE --dry-run",),
        "ssql": (f"sweep FILE --arch us_{NET} {_OTHER}",),
        "bsq": (f"sweep FILE --arch us_{NET} {_OTHER}",),
    },
    resumes={
        "us3l-simclr.pth.tar": _SSL,
        "us3l-byol.pth.tar": _BYOL,
        "us3l-moco.pth.tar": _MOCO,
        "us3l-seed.pth.tar": _SEED,
        "us3l-slimmable.pth.tar": _LIST,
        "us3l-linear.pth.tar": f"{_PROBE}us3l-simclr.pth.tar",
        "us3l-tuned.pth.tar": f"{_TUNE}us3l-width.pth.tar",
    },
    lines=(
        f"{_SSL} --dry-run",
        f"{_BYOL} --dry-run",
        f"{_MOCO} --dry-run",
        f"{_SEED} --dry-run",
        f"{_LIST} --dry-run",
        f"{_PROBE}us3l-simclr.pth.tar --dry-run",
        f"{_TUNE}us3l-width.pth.tar --dry-run",
        f"{_CALIBRATE}us3l-byol.pth.tar --dry-run",
        f"sweep us3l-simclr.pth.tar {_SWEEP} --dry-run",
        f"sweep us3l-slimmable.pth.tar {_SWEEP} --dry-run",
        f"export us3l-simclr.pth.tar {_EXPORT} --width 0.5 --output x --dry-run",
        "export us3l-slimmable.pth.tar --output x --dry-run",
        "demo --output /dev/null/x",
    ),
    folders=(
        f"ssl --config base/digits.yaml {_NET} {_HEADS} TRAIN.DATASET=folder --data DATA -j 0 --dry-run"
        " TRAIN.BATCH_SIZE=2 TRAIN.GLOBAL_BATCH=2",
    ),
    configs=tuple(
        f"{line} {_DATA} --dry-run"
        for line in (_SSL, _BYOL, _SEED, _LIST, f"{_PROBE}us3l-simclr.pth.tar", f"{_CALIBRATE}us3l-byol.pth.tar")
    ),
    slices=True,
)
