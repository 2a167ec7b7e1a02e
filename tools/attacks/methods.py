"""The methods that are attacked: each a program, the commands that make its files, and those that read them.

A method joins with one entry of `METHODS`. Its lines are cheap ones: a net of 1,438 weights, the digits, a few
pictures. `FILE` stands for a file and `OUT` for a folder.
"""

import contextlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path

import click

NET = "tiny_of_releases"  # of tests/releases/tiny.py
FEW = "--limit-train 64 --limit-eval 32"


@dataclass(frozen=True)
class Method:
    """One program.

    Attributes:
        program: its name, and that of its package.
        makes: {name of a file: (command that makes it below OUT, where it lies there)}, in this order.
        reads: {part of a file's name: commands that read FILE and write nothing}.
        resumes: {file: the command that goes on with it}; without --resume and --output.
        lines: a good line of each command, for bad options to be added to.
        configs: good lines that take --config and KEY=VALUE.
        folders: lines that read pictures from the folder DATA and write nothing.
    """

    program: str
    makes: dict[str, tuple[str, str]]
    reads: dict[str, tuple[str, ...]]
    resumes: dict[str, str]
    lines: tuple[str, ...]
    configs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def group(self) -> click.Group:
        """Its commands."""
        found: click.Group = importlib.import_module(f"{self.program}.cli").cli
        return found


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

METHODS = (BSQ, SSQL)


class Seeds:
    """Good files of all methods.

    Args:
        folder: where they are, once `make` has made them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, ending: str) -> list[Path]:
        """Those whose names end so, in the order of their names."""
        return sorted(self.folder.glob(f"*{ending}"))

    def line(self, text: str, **places: object) -> list[str]:
        """A command line, cut at blanks, its names of good files made paths, FILE and OUT what is given."""
        words = []
        for word in text.split():
            before, equals, after = word.rpartition("=")
            path = self.folder / after
            word = f"{before}{equals}{path}" if after and path.is_file() else word
            for name, put in places.items():
                word = word.replace(name, str(put))
            words.append(word)
        return words


def run(method: Method, line: list[str]) -> None:
    """One command line in this process; leaves with its exit code where that is not 0."""
    try:
        method.group.main(line, prog_name=method.program)
    except SystemExit as end:
        if end.code:
            raise


def make(method: Method, seeds: Seeds) -> None:
    """The files of a method, and beside each that is resumed the state at its run's end (`.end`)."""
    os.chdir(seeds.folder)
    with (seeds.folder / f"{method.program}.log").open("w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        for name, (line, found) in method.makes.items():
            out = seeds.folder / f"{name}.run"
            run(method, seeds.line(line, OUT=out))
            (out / found).rename(seeds.folder / name)
        for name, line in method.resumes.items():
            out = seeds.folder / f"{name}.on"
            run(method, [*seeds.line(line), "--resume", str(seeds.folder / name), "--output", str(out)])
            (out / "checkpoint.pth.tar").rename(seeds.folder / f"{name}.end")
            with contextlib.suppress(OSError):
                (seeds.folder / name).chmod(0o444)
