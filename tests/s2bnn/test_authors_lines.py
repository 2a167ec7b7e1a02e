"""The authors' command lines, in a folder laid out as theirs, cut to two steps of small pictures.

What is replaced: `cd FOLDER/stepN; python main_moco.py` by `s2bnn main_moco --method M --step N`; their batch.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.heads import projector
from lowbit.models.surgery import replace_
from lowbit.quant.binary import step_of
from s2bnn.options import METHODS

pytestmark = pytest.mark.heavy
FOLDERS = dict(zip(METHODS, ("Contrastive_only", "Contrastive+Distillation", "Distillation_only"), strict=True))
LAUNCHED = (
    "--batch-size 256 --dist-url tcp://localhost:10001 --multiprocessing-distributed --world-size 1 --rank 0 DATA"
)
LINE = f"--lr 0.0003 {LAUNCHED} --mlp --moco-t 0.2 --aug-plus --cos -j 48"
PROBE = f"--lr 0.1 -j 24 {LAUNCHED} --pretrained ../step2/checkpoint_0000.pth.tar"
SMALL = "--epochs 1 --max-steps 2 -b 4 --image-size 64"
TEACHER, BEFORE = "moco_v2_800ep_pretrain.pth.tar", "../step1/checkpoint_0000.pth.tar"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in two classes, and a teacher in the layout of MoCo's published file."""
    root = tmp_path_factory.mktemp("s2bnn")
    for split, n in (("train", 6), ("val", 2)):
        for label in ("n01", "n02"):
            (root / "imagenet" / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(0, 256, (72, 80, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / "imagenet" / split / label / f"{i}.png")
    net = replace_(create_model("resnet50", num_classes=1), {"fc": projector(2048, 2048, 128, 2)})
    state = {f"module.encoder_q.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state}, root / TEACHER)
    return root


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_and_one(
    method: str, root: Path, s2bnn: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1, step 2 from its copy, step 2 alone, linear evaluation; each leaves the file that the next line names."""
    learns = "" if method == METHODS[0] else f" --wd 0 --teacher-path ../../{TEACHER}"
    for folder, step, before in (("step1", 1, ""), ("step2", 2, f" --model-path {BEFORE}"), ("one", 2, "")):
        here = root / FOLDERS[method] / folder
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        line = (LINE + learns + before).replace("DATA", str(root / "imagenet"))
        said = s2bnn("main_moco", "--method", method, "--step", step, *line.split(), *SMALL.split(), "--moco-k", 8)
        assert said.stderr.count("accelerate launch") == 1
        assert step_of(load(here / "checkpoint_0000.pth.tar")) == step and (here / "checkpoint.pth.tar").exists()
    theirs, ours = (
        torch.load(root / FOLDERS[method] / name / "checkpoint_0000.pth.tar", weights_only=True)["state_dict"]
        for name in ("step1", "step2")
    )
    assert list(theirs) == list(ours) and ("encoder_k.fc.0.weight" in ours) == (method != METHODS[2])
    if method == METHODS[2]:
        line = f"{PROBE} --output ../lincls".replace("DATA", str(root / "imagenet"))
        s2bnn("main_lincls", *line.split(), *SMALL.split())
        assert step_of(load(Path("../lincls/checkpoint.pth.tar"))) == 2
