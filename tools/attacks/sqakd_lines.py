"""SQAKD under attack: its files, and the command lines that make and read them."""

from tools.attacks.method import FEW, NET, Method

_DATA = f"--dataset digits -a {NET} --batch_size 32 --epochs 2 --calibration 32 {FEW}"
_FLOAT = f"train_fp {_DATA} --lr_m 0.05 --momentum 0"
_BITS = f"train_quant {_DATA} --wbits 2 --abits 2 --lr_q 1e-3 --load_pretrain True"
_START = "--pretrain_path sqakd-float.pth.tar"
_QAT = f"{_BITS} {_START} --quantizer pact --use_hessian False"
_TAUGHT = f"{_BITS} {_START} --distill kd --teacher_path sqakd-float.pth.tar --update_every 1"
_MAIN = f"main anywhere {_DATA} --quantizer lsq --warmup-steps 2 --load_pretrain True {_START}"
_MAIN += " --distill True --teacher_path sqakd-float.pth.tar"
_AGAIN = f"train_quant {_DATA} -e --resume"
_SWEEP = f"--dataset digits --bits 2 1 --probe-epochs 1 {FEW}"
_FOLDER = f"-a {NET} -b 2 -j 0 --image-size 8 --calibration 2 --dry-run"
_CIFAR, _TINY = "checkpoint/last_checkpoint.pth", "checkpoints/checkpoint.pth.tar"

SQAKD = Method(
    program="sqakd",
    makes={
        "sqakd-float.pth.tar": (f"{_FLOAT} --max-steps 3 --output OUT", _CIFAR),
        "sqakd-qat.pth.tar": (f"{_QAT} --max-steps 3 --output OUT", _CIFAR),
        "sqakd-taught.pth.tar": (f"{_TAUGHT} --max-steps 3 --output OUT", _CIFAR),
        "sqakd-main.pth.tar": (f"{_MAIN} --max-steps 3 --output OUT", _TINY),
        "sqakd-backbone.safetensors": (f"{_FLOAT} --output OUT", "backbone.safetensors"),
        "sqakd-packed.safetensors": ("export sqakd-taught.pth.tar --output OUT", "packed.safetensors"),
    },
    reads={
        "sqakd-float": (
            f"train_fp {_DATA} -e --resume FILE",
            f"{_QAT.replace('sqakd-float.pth.tar', 'FILE')} --dry-run",
            f"{_TAUGHT.replace('--teacher_path sqakd-float.pth.tar', '--teacher_path FILE')} --dry-run",
        ),
        "sqakd-qat": (f"{_AGAIN} FILE", f"sweep FILE {_SWEEP}"),
        "sqakd-taught": (f"{_AGAIN} FILE", f"sweep FILE {_SWEEP} --dry-run"),
        "sqakd-main": (f"main anywhere {_DATA} -e --resume FILE",),
        "sqakd-backbone": (f"{_QAT.replace('sqakd-float.pth.tar', 'FILE')} --dry-run",),
        "bsq-float": (f"{_QAT.replace('sqakd-float.pth.tar', 'FILE')} --dry-run",),
    },
    resumes={
        "sqakd-float.pth.tar": _FLOAT,
        "sqakd-qat.pth.tar": _QAT,
        "sqakd-taught.pth.tar": _TAUGHT,
        "sqakd-main.pth.tar": _MAIN,
    },
    lines=(
        f"{_FLOAT} --dry-run",
        f"{_QAT} --dry-run",
        f"{_TAUGHT} --dry-run",
        f"{_MAIN} --dry-run",
        f"{_AGAIN} sqakd-taught.pth.tar",
        f"{_BITS} {_START} -e --quantizer ewgs",
        f"recipe run_cifar10_resnet20/EWGS+SQAKD_W2A2 {_DATA} --load_pretrain False --distill False --dry-run",
        f"sweep sqakd-qat.pth.tar {_SWEEP} --dry-run",
        "export sqakd-main.pth.tar --output /dev/null/x",
        "demo --output /dev/null/x",
    ),
    folders=(
        f"main DATA {_FOLDER} --quantizer dorefa --wbits 3 --abits 3",
        f"main DATA {_FOLDER} --distill True --teacher_path sqakd-float.pth.tar --alpha 100",
    ),
)
