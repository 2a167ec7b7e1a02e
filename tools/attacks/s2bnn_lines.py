"""S2-BNN under attack: its files, and the command lines that make and read them."""

from tools.attacks.method import FEW, NET, Method

_DATA = f"anywhere --dataset digits {FEW} -b 32 --epochs 2"
_MOCO = f"main_moco {_DATA} --student {NET} --moco-dim 16 --moco-k 64 --mlp --lr 0.003"
_FLOAT = f"{_MOCO} --method contrastive --step 0"
_FIRST = f"{_MOCO} --method contrastive --step 1 --cos"
_LEARN = f"-a {NET} --teacher-path s2bnn-float.pth.tar"
_BOTH = f"{_MOCO} --method contrastive+distillation --step 2 --over queue {_LEARN} --model-path s2bnn-first.pth.tar"
_ALONE = f"{_MOCO} --method distillation --step 2 {_LEARN}"
_PROBE = f"main_lincls {_DATA} --schedule 1 --lr 0.5 --pretrained"
_LARS = f"main_lincls {_DATA} --protocol simsiam --cache-features --pretrained"
_AGAIN = f"main_lincls anywhere --dataset digits {FEW} -e --resume"

S2BNN = Method(
    program="s2bnn",
    makes={
        "s2bnn-float.pth.tar": (f"{_FLOAT} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "s2bnn-first.pth.tar": (f"{_FIRST} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "s2bnn-both.pth.tar": (f"{_BOTH} --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "s2bnn-backbone.safetensors": (f"{_ALONE} --output OUT", "backbone.safetensors"),
        "s2bnn-linear.pth.tar": (f"{_PROBE} s2bnn-both.pth.tar --max-steps 3 --output OUT", "checkpoint.pth.tar"),
        "s2bnn-packed.safetensors": ("export s2bnn-linear.pth.tar --output OUT", "packed.safetensors"),
        "s2bnn-network.safetensors": (
            "export s2bnn-linear.pth.tar --format float --output OUT",
            "network.safetensors",
        ),
    },
    reads={
        "s2bnn-float": (
            f"{_ALONE.replace('s2bnn-float.pth.tar', 'FILE')} --dry-run",
            f"{_LARS} FILE --dry-run",
            "report FILE",
        ),
        "s2bnn-first": (f"{_BOTH.replace('s2bnn-first.pth.tar', 'FILE')} --dry-run", f"{_PROBE} FILE --dry-run"),
        "s2bnn-both": (f"{_PROBE} FILE --dry-run", "report FILE"),
        "s2bnn-linear": (f"{_AGAIN} FILE", "report FILE"),
        "s2bnn-backbone": (f"{_PROBE} FILE --dry-run", "report FILE"),
        "s2bnn-network": (f"{_AGAIN} FILE", "report FILE"),
        "bsq": (f"{_PROBE} FILE --student {NET} --step 0 --dry-run", f"report FILE --student {NET}"),
    },
    resumes={
        "s2bnn-float.pth.tar": _FLOAT,
        "s2bnn-first.pth.tar": _FIRST,
        "s2bnn-both.pth.tar": _BOTH,
        "s2bnn-linear.pth.tar": f"{_PROBE} s2bnn-both.pth.tar",
    },
    lines=(
        f"{_FIRST} --dry-run",
        f"{_BOTH} --dry-run",
        f"{_ALONE} --dry-run",
        f"{_PROBE} s2bnn-both.pth.tar --dry-run",
        f"{_LARS} s2bnn-float.pth.tar --dry-run",
        f"{_AGAIN} s2bnn-linear.pth.tar",
        "report s2bnn-linear.pth.tar",
        "export s2bnn-linear.pth.tar --output /dev/null/x",
        "demo --output /dev/null/x",
    ),
    folders=(
        f"main_moco DATA --method contrastive --step 1 --student {NET} -b 2 --moco-k 4 -j 0 --image-size 8 --dry-run",
        "main_lincls DATA --pretrained s2bnn-both.pth.tar -b 2 -j 0 --image-size 8 --dry-run",
    ),
)
