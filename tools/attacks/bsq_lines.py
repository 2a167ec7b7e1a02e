"""BSQ under attack: its files, and the command lines that make and read them."""

from tools.attacks.method import FEW, NET, Method

_BSQ = f"-d digits -a {NET} --train-batch 32 --momentum 0 {FEW}"
_ACT = "--act 3 --act-clip pact --act-range running"
_PRUNE = f"cifar_prune_STE {_BSQ} {_ACT} --Nbits 3 --min-bits 2 --epochs 2 --lr 0.05 --model bsq-float.pth.tar"
_TUNE = f"cifar_finetune {_BSQ} {_ACT} --epochs 2 --lr 0.05 --model bsq-bits.pth.tar"
_FLOATS = f"train {_BSQ} --epochs 2"

BSQ = Method(
    program="bsq",
    makes={
        "bsq-float.pth.tar": (f"{_FLOATS} --max-steps 3 -c OUT", "checkpoint.pth.tar"),
        "bsq-bits.pth.tar": (f"{_PRUNE} --max-steps 3 -c OUT", "checkpoint.pth.tar"),
        "bsq-tuned.pth.tar": (f"{_TUNE} --max-steps 3 -c OUT", "checkpoint.pth.tar"),
        "bsq-done.pth.tar": (f"{_TUNE} -c OUT", "checkpoint.pth.tar"),
        "bsq-packed.safetensors": ("export --model bsq-done.pth.tar -c OUT", "packed.safetensors"),
        "bsq-backbone.safetensors": (f"{_FLOATS} -c OUT", "backbone.safetensors"),
        "bsq-two.pth.tar": (
            f"train -d folder --data two -a {NET} -j 0 --train-batch 2 --epochs 1 -c OUT",
            "checkpoint.pth.tar",
        ),
    },
    reads={
        "bsq-float": (
            f"train -e -d digits -a {NET} {FEW} --model FILE",
            f"convert {_BSQ} --act 0 --dry-run --model FILE",
        ),
        "bsq-bits": (f"cifar_finetune -e {_BSQ} {_ACT} --model FILE", "report --model FILE"),
        "bsq-tuned": (f"cifar_prune_STE {_BSQ} {_ACT} -e --model FILE", "report --model FILE"),
        "bsq-done": (f"cifar_finetune {_BSQ} {_ACT} --dry-run --model FILE", "report --model FILE"),
        "backbone": (f"train {_BSQ} --dry-run --model FILE",),
    },
    resumes={"bsq-float.pth.tar": _FLOATS, "bsq-bits.pth.tar": _PRUNE, "bsq-tuned.pth.tar": _TUNE},
    lines=(
        f"{_FLOATS} --dry-run",
        f"convert {_BSQ} --model bsq-float.pth.tar --dry-run",
        f"{_PRUNE} --dry-run",
        f"{_TUNE} --dry-run",
        f"train -e -d digits -a {NET} {FEW} --model bsq-float.pth.tar",
        f"cifar_finetune -e {_BSQ} {_ACT} --model bsq-done.pth.tar",
        "report --model bsq-done.pth.tar",
        "export --model bsq-done.pth.tar",
        "demo --output /dev/null/x",
    ),
    folders=(
        f"train -d folder --data DATA -a {NET} -j 0 --train-batch 2 --momentum 0 --dry-run",
        f"train -e -d folder --data DATA -a {NET} -j 0 --model bsq-two.pth.tar",
    ),
)
