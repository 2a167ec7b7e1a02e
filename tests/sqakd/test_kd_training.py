"""The distillation methods as trainings: both stages, kills on each side of their boundary, processes, other nets."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.loading import load
from lowbit.metrics import read_metrics
from lowbit.models.captured import run_captured
from lowbit.models.create import create_model
from lowbit.quant.initialize import initialize_
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points, quantize_learned_
from lowbit.train.protocol import Clock
from sqakd.kd.build import make_stages
from sqakd.kd.features import blocks_of, pooled, shapes_of, stages_of
from sqakd.kd.registry import METHODS, distillation
from sqakd.options import TrainOptions

Line = tuple[object, ...]
Sqakd = Callable[..., Result]
LAST = "checkpoint/last_checkpoint.pth"
ORDINARY = ("hint", "crd", "factor")  # with modules, with memories, of two stages
EACH = [pytest.param(name, marks=[] if name in ORDINARY else pytest.mark.heavy) for name in METHODS]


@pytest.fixture(scope="session")
def line(student_line: Line) -> Line:
    """64 pictures, 4 steps an epoch."""
    few = {"--limit-train": 64, "--batch_size": 16, "--limit-eval": 20, "--epochs": 1, "--print-freq": 1}
    given = list(student_line)
    for flag, value in few.items():
        given[given.index(flag) + 1] = value
    del given[given.index("--distill") : given.index("--distill") + 2]
    return (*given, "--init_epochs", 1, "--nce_k", 20)


@pytest.mark.parametrize("name", EACH)
def test_kills_on_each_side_of_the_boundary(
    processes: Any, line: Line, same_run: Callable[[Path, Path], None], tmp_path: Path, name: str
) -> None:
    """The third step of the first stage and the second of the second one; of one stage its third and its last."""
    line = (*line, "--distill", name, "--save-every", 2)
    unbroken = processes.start((*line, "--output", tmp_path / "a"))
    first, second = (3, 5) if METHODS[name].two_stages else (2, 3)
    broken = (*line, "--output", tmp_path / "b")
    processes.start(broken, kill=first).wait(-signal.SIGKILL)
    processes.start((*broken, "--resume", "auto"), kill=second).wait(-signal.SIGKILL)
    state = torch.load(tmp_path / "b" / LAST, weights_only=True)
    assert state["position"]["stage"] == int(METHODS[name].two_stages) and state["step"] == second // 2 * 2
    processes.start((*broken, "--resume", "auto")).wait(0)
    unbroken.wait(0)
    same_run(tmp_path / "a", tmp_path / "b")
    steps = [record for record in read_metrics(tmp_path / "a" / "metrics.jsonl") if record["event"] == "step"]
    assert len(steps) == 4 * (1 + METHODS[name].two_stages)
    main = {key for record in steps[-4:] for key in record}
    assert ("feature_loss" in main, "kl" in main, "ce" in main) == (METHODS[name].adds, name == "kd", name != "kd")
    assert all("feature_loss" in record and "ce" not in record for record in steps[:-4])
    assert load(tmp_path / "a" / LAST)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "crd" else pytest.mark.heavy) for n in METHODS])
def test_two_processes_hold_equal_weights(processes: Any, line: Line, tmp_path: Path, name: str) -> None:
    """Those of one process, too, memories included, but for CKTF, whose features are scaled over each one's batch."""
    given = [*line, "--distill", name, "--sync-bn", "--quantizer", "lsq"]
    for flag, value in (("--batch_size", 13), ("--epochs", 2)):
        given[given.index(flag) + 1] = value
    for world in (2, 1):
        folder = tmp_path / str(world)
        run = processes.start((*given, "--output", folder), world, double=1, weights=str(folder))
        run.wait(*[0] * world)
    first, second, alone = (torch.load(tmp_path / part) for part in ("2.0", "2.1", "1.0"))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert name == "crdst" or (first[key].double() - value.double()).abs().max() < 1e-6, key


def test_a_float_student_of_another_net(sqakd: Sqakd, few: Line, tmp_path: Path) -> None:
    """Any weights as the teacher's; modules of both are named; the student is what an ordinary training leaves."""
    torch.save(create_model("cifar_vgg8").state_dict(), tmp_path / "vgg.pth")
    teacher = ("--teacher_path", tmp_path / "vgg.pth", "--teacher_arch", "vgg8_bn")
    short = ("train_fp", *few, *teacher, "--max-steps", 2)
    maps = ("--features", "relu", "layer1", "layer2", "layer3", "--teacher_features", "layer0", "layer1", "layer2",
            "layer3")  # fmt: skip
    sqakd(*short, "--distill", "attention", *maps, "--output", tmp_path / "a")
    assert read_metrics(tmp_path / "a/metrics.jsonl")[0].keys() >= {"feature_loss", "ce"}
    sqakd(*short, "--distill", "rkd", "--output", tmp_path / "b")
    sqakd(*short, "--distill", "kd", "--output", tmp_path / "c")
    record = read_metrics(tmp_path / "c/metrics.jsonl")[0]
    assert abs(0.1 * record["ce"] + 0.9 * record["kl"] - record["loss"]) < 1e-5
    for line, said in (
        (("attention",), "3 of the student's (layer1, layer2, layer3) stand beside 4 of the teacher's (layer1, "),
        (("hint", "--features", "relu", "layer1", "layer5"), "no module 'layer5'"),
        (("hint", "--features", "relu", "layer1", "fc"), "is not one map"),
        (("hint", "--hint_layer", 9), "--hint_layer 9: the nets have the maps 0 to 3"),
        (("fsp", *maps), "maps of equal channels"),
        (("kdsvd", "--features", "relu", "layer1", "--teacher_features", "layer0", "layer1"), "places two by two"),
        (("kd", "--kd_gamma", 0, "--kd_alpha", 0), "has no loss"),
        (("hint", "--features", "relu", "layer1", "layer3", "--teacher_features", "layer2", "layer1", "layer0"),
         "cannot predict"),
        (("crdst", "--st_method", "Largest", *maps), "stages of equal shapes"),
    ):  # fmt: skip
        found = sqakd(*short, "--distill", *line, "--output", tmp_path / "x", code=2).stderr
        assert said in found and found.count("\n") == 1 and not (tmp_path / "x").exists()
    ours = ("--teacher_path", tmp_path / "a/checkpoint/last_checkpoint.pth", "--teacher_arch", "vgg8_bn")
    found = sqakd("train_fp", *few, "--distill", "kd", *ours, "--output", tmp_path / "x", code=2).stderr
    assert (
        "--teacher_arch cifar_vgg8: " in found
        and "holds a cifar_resnet8_1x1" in found
        and not (tmp_path / "x").exists()
    )


def test_stages_of_nets(recorded: Any) -> None:
    """Stem and stages of ResNet-20 and VGG as recorded: the mean size of each map."""
    nets = (("cifar_resnet20_pad", "resnet20", {"linear.": "fc."}),
            ("cifar_vgg8", "vgg8_bn", {"conv2d": "conv", "classifier": "fc"}))  # fmt: skip
    for arch, theirs, renamed in nets:
        net = recorded.fill_(create_model(arch), f"{theirs}_fp", renamed).double().eval()
        names = stages_of(net, (), "")
        _, found = run_captured(net, names, (recorded.pictures((2, 3, 32, 32)),))
        sizes = torch.stack([outputs[0].detach().abs().mean() for outputs in found.values()])
        expected = recorded["nets"][f"{theirs}.fp.feat_absmean"].double()
        sizes = torch.cat([sizes, pooled([outputs[0] for outputs in found.values()])[0].detach().abs().mean()[None]])
        assert torch.allclose(sizes, expected, rtol=1e-5), arch
    assert blocks_of(create_model("tiny_shufflenetv2"), "conv5") == ["conv5"]  # of layers, not of blocks
    resnet = create_model("resnet18")
    assert blocks_of(resnet, "layer4") == ["layer4.0", "layer4.1"]
    assert stages_of(resnet, (), "") == ("act1", "layer1", "layer2", "layer3", "layer4")
    with pytest.raises(InputError, match="--features MODULE"):
        stages_of(nn.Linear(2, 2), (), "--features")
    with pytest.raises(InputError, match="is not one map"):
        shapes_of(resnet, ("fc",), 32, "--features")


def test_default_weights_are_the_scripts(recorded: Any) -> None:
    stated = {name: beta for name, (_, _, beta) in recorded.settings["kd_weights_gamma_alpha_beta"].items()}
    stated["crdst"] = recorded.settings["cktf_gamma_beta_theta"][1]
    assert {name: METHODS[name].beta for name in stated} == stated
    given = distillation({"distill": "crdst", "teacher_path": Path("x")}, low_bit=True)
    assert [given[key] for key in ("kd_gamma", "kd_beta", "kd_theta")] == recorded.settings["cktf_gamma_beta_theta"]
    for low_bit, weights in ((True, (0, 1)), (False, (0.1, 0.9))):
        given = distillation({"distill": "True", "teacher_path": Path("x")}, low_bit=low_bit)
        assert (given["kd_gamma"], given["kd_alpha"]) == weights


def test_recorded_totals(recorded: Any) -> None:
    """The losses as recorded, put together with the default weights."""
    kd, calls = recorded["kd"], {"crd": "crd.call1"}
    for name in recorded.settings["kd_weights_gamma_alpha_beta"]:
        given, key = distillation({"distill": name, "teacher_path": Path("x")}, low_bit=True), calls.get(name, name)
        total = given["kd_gamma"] * kd["ce.loss"].double() + given["kd_alpha"] * kd["kl.T4.loss"].double()
        if METHODS[name].adds:
            total = total + given["kd_beta"] * kd[f"{key}.loss"].double()
        assert torch.allclose(total, kd[f"{key}.total"].double(), rtol=1e-6), name


def test_the_table_of_the_readme() -> None:
    """Names, weights and numbers of stages."""
    text = (Path(__file__).parents[2] / "sqakd/README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    found = {row[0].strip("`"): (float(row[2].split(",")[0]), row[4][0], "negatives" in row[5])
             for row in rows if row[0].strip("`") in METHODS}  # fmt: skip
    assert found == {n: (m.beta, str(1 + m.two_stages), m.negatives > 0) for n, m in METHODS.items()}


@pytest.mark.parametrize("name", ["crd", "kdsvd", "rkd"])
def test_scales_by_the_hessian_of_any_loss(name: str) -> None:
    """EWGS's scales are set from the method's loss, too, and are finite."""
    torch.manual_seed(0)
    x, label = torch.randn(8, 3, 8, 8), torch.arange(8) % 3
    student, teacher = (create_model("cifar_resnet8_1x1") for _ in range(2))
    config = LearnedConfig("ewgs", 2, 1e-3)
    initialize_(quantize_learned_(student, layer_points(student)[:1], lambda n: (config, config)).train(), [x])
    own = TrainOptions(command="", arch="", distill=name, kd_beta=1.0, hessian_every=1, nce_k=4, quantizer="ewgs")
    (stage,) = make_stages(own, student, teacher, label, 8)
    objective, clock = stage.objective.train(), Clock(0, 1, 4, 0, 2, 0)
    objective.begin_epoch(clock, lambda: [Batch((x,), torch.arange(8), label)])
    (record,) = objective.records
    assert 0 <= record["delta"] < 100
