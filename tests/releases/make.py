"""Make v<release>/files.tar.xz and expected.json with the installed release, from an empty temporary folder.

Usage: OMP_NUM_THREADS=1 python tests/releases/make.py (a minute on one core; the digits need no download)
"""

import hashlib
import io
import json
import os
import shlex
import tarfile
import tempfile
from pathlib import Path

import torch
from release_files import EVALUATIONS, FILES, HERE, PROBES, evaluation, outputs, probe, run

import lowbit

# Momentum 0 leaves the momentum buffers of the larger net out, and widths differ from layer to layer.
COMMANDS = """\
bsq train -d digits -a resnet8 --train-batch 64 --momentum 0 --epochs 8 --schedule 5 -c float
bsq convert -d digits -a resnet8 --Nbits 4 --model float/checkpoint.pth.tar -c bits
bsq cifar_prune_STE -d digits -a resnet8 --train-batch 64 --momentum 0 --model bits/checkpoint.pth.tar \
 --epochs 4 --Prun_Int 1 --lr 0.05 --L1 --decay 2 --thre 8 -c requantized
bsq cifar_finetune -d digits -a resnet8 --train-batch 64 --momentum 0 --model requantized/model_best.pth.tar \
 --epochs 1 --lr 0.02 -c finetuned
bsq export --model finetuned/checkpoint.pth.tar -c packed
bsq train -d digits -a tiny_of_releases --train-batch 64 --epochs 6 -c tiny
bsq cifar_prune_STE -d digits -a tiny_of_releases --act 3 --act-clip pact --act-range running --train-batch 64 \
 --Nbits 3 --min-bits 2 --epochs 2 --lr 0.05 --model tiny/checkpoint.pth.tar -c finished
bsq cifar_prune_STE -d digits -a tiny_of_releases --act 3 --act-clip pact --act-range running --train-batch 64 \
 --Nbits 3 --min-bits 2 --epochs 2 --lr 0.05 --model tiny/checkpoint.pth.tar --max-steps 30 -c interrupted
ssql ssl --config configs/base/digits.yaml SSL.SETTING.DIM=16 SSL.SETTING.HIDDEN_DIM=16 TRAIN.EPOCHS=4 \
 SSL.TYPE=SSQL_SimSiam TRAIN.OPTIMIZER.MOMENTUM=0 --output simsiam
ssql ssl --config configs/base/digits.yaml SSL.SETTING.DIM=16 SSL.SETTING.HIDDEN_DIM=16 TRAIN.EPOCHS=4 \
 SSL.TYPE=SSQL_MoCo TRAIN.LOSS.CRITERION.NAME=CrossEntropy SSL.SETTING.MOCO_K=128 MODEL.ARCH=tiny_of_releases \
 --max-steps 80 --output moco
ssql linear --config configs/base/evaluation.yaml MODEL.ARCH=cifar_resnet8_1x1 MODEL.INPUTSHAPE=8,8 \
 MODEL.PRETRAINED=simsiam/checkpoint.pth.tar TRAIN.LINEAR_EVAL=True TRAIN.DATASET=digits TRAIN.BATCH_SIZE=64 \
 TRAIN.EPOCHS=3 TRAIN.LR_SCHEDULER.BASE_LR=0.5 TRAIN.LR_SCHEDULER.DECAY_MILESTONES=[2] QUANT.W.BIT=4 QUANT.A.BIT=4 \
 --output linear
"""
KEPT = {  # file of a run -> name in the archive, like beside like, so that equal tensors are stored once
    "simsiam/checkpoint.pth.tar": "ssql-simsiam.pth.tar",
    "simsiam/backbone.safetensors": "ssql-backbone.safetensors",
    "linear/checkpoint.pth.tar": "ssql-linear.pth.tar",
    "moco/checkpoint.pth.tar": "ssql-moco.pth.tar",
    "float/checkpoint.pth.tar": "bsq-float.pth.tar",
    "bits/checkpoint.pth.tar": "bsq-bits.pth.tar",
    "requantized/model_best.pth.tar": "bsq-requantized.pth.tar",
    "finetuned/checkpoint.pth.tar": "bsq-finetuned.pth.tar",
    "packed/packed.safetensors": "bsq-packed.safetensors",
    "finished/checkpoint.pth.tar": "bsq-finished.pth.tar",
    "finished/backbone.safetensors": "bsq-backbone.safetensors",
    "interrupted/checkpoint.pth.tar": "bsq-interrupted.pth.tar",
}


def write_archive(path: Path) -> None:
    """The kept files of the runs in this folder, without owners and times."""
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for source, name in KEPT.items():
            data = Path(source).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def main() -> None:
    torch.set_num_threads(1)
    target = HERE / f"v{lowbit.__version__}"
    target.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # names in the files are relative
        for line in COMMANDS.splitlines():
            run(*shlex.split(line))
        write_archive(target / FILES)
        expected: dict[str, dict[str, object]] = {"sha256": {}, "outputs": {}, "evaluation": {}, "probe": {}}
        for source, name in KEPT.items():
            file = Path(source).rename(name)
            expected["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
            expected["outputs"][name] = outputs(file)
            if name in EVALUATIONS:
                expected["evaluation"][name] = evaluation(file, Path(f"evaluation-{name}"))
            if name in PROBES:
                expected["probe"][name] = probe(file, Path(f"probe-{name}"))
        os.chdir("/")
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
