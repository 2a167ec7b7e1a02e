"""`main_moco`: flags and defaults of the six programs that it replaces, its files, the weights of the step before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.loading import load
from lowbit.metrics import read_metrics
from lowbit.models.surgery import of_kind
from lowbit.quant.binary import step_of
from s2bnn.cli import cli
from s2bnn.commands.main_moco import PLAIN, PLUS
from s2bnn.options import LAUNCHER, METHODS, OVER, PretrainOptions, pretrain_options

S2bnn = Callable[..., Result]
ARCH = "cifar_resnet8_1x1"
SMALL = (
    "main_moco", "here", "--dataset", "digits", "--limit-train", 24, "--limit-eval", 12, "--epochs", 1, "-b", 8,
    "--moco-k", 16, "--moco-dim", 16, "--moco-t", 0.2, "--mlp", "--student", ARCH, "-p", 1, "--probe-every", 1,
)  # fmt: skip
ONE = ("--method", METHODS[0], "--step", 1)
FOLDERS = {"Contrastive_only": METHODS[0], "Contrastive+Distillation": METHODS[1], "Distillation_only": METHODS[2]}


def small(*given: object) -> list[object]:
    """The small line with these options, in the places of its own."""
    flags, line = {flag for flag in given if str(flag).startswith("-")}, list(SMALL[:2])
    for at in range(2, len(SMALL)):
        flag, value = SMALL[at], SMALL[at + 1 : at + 2]
        if str(flag).startswith("-") and flag not in flags:
            line += [flag] if flag == "--mlp" else [flag, *value]
    return [*line, *given]


@pytest.fixture
def understood(s2bnn: S2bnn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, PretrainOptions]]:
    """The options that a line makes; nothing is run."""
    seen: list[Any] = []
    monkeypatch.setattr("s2bnn.commands.main_moco.main_moco", lambda *given: seen.append(given))

    def run(*args: object) -> tuple[Any, PretrainOptions]:
        s2bnn("main_moco", *args)
        return seen.pop()

    return run


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("step", [1, 2])
def test_defaults_are_those_of_the_program(
    folder: str, step: int, understood: Any, golden: Callable[[str], Path]
) -> None:
    theirs = json.loads((golden("s2bnn") / "defaults.json").read_text())[f"{folder}/step{step}/main_moco.py"]
    options, own = understood("DATA", "--method", FOLDERS[folder], "--step", step)
    ours = {name: getattr(own, name) for name in theirs if hasattr(own, name)}
    ours |= {"data": str(options.data), "resume": options.resume, "schedule": list(own.schedule)}
    missing = set(theirs) - set(ours)
    assert missing == {"workers", "seed", "start_epoch", *(f.lstrip("-").replace("-", "_") for f in LAUNCHER)}
    assert {name: value or "" for name, value in ours.items()} == {name: theirs[name] or "" for name in ours}


def test_every_flag_arrives(understood: Any) -> None:
    line = [
        "--data", "there", "--method", METHODS[1], "--step", "2", "-a", "resnet18", "--student", ARCH, "-j", "3",
        "--start-epoch", "0", "--epochs", "7", "--batch-size", "32", "--learning-rate", "0.1", "--schedule", "3", "5",
        "--momentum", "0.8", "--weight-decay", "0.2", "--print-freq", "4", "--teacher-path", "t", "--model_path", "m",
        "--moco-dim", "9", "--moco-k", "10", "--moco-m", "0.5", "--moco-t", "0.3", "--teacher-t", "0.4", "--mlp",
        "--aug-plus", "--cos", "--over", "queue", "--kl", "--keep", "0", "--probe-every", "2", "--image-size", "96",
        "--sync-bn", "--dataset", "digits", "--opt", "sgd", "--warmup-epochs", "1", "--dist-url", "x", "--gpu", "0",
    ]  # fmt: skip
    options, own = understood(*line)
    assert (options.data, options.workers, options.output) == (Path("there"), 3, Path())
    assert own == pretrain_options(
        METHODS[1], 2, (3, 5), 0.2, arch="resnet18", student=ARCH, epochs=7, batch_size=32, lr=0.1, momentum=0.8,
        print_freq=4, teacher_path=Path("t"), model_path=Path("m"), moco_dim=9, moco_k=10, moco_m=0.5, moco_t=0.3,
        teacher_t=0.4, mlp=True, aug_plus=True, cos=True, over=OVER[1], kl=True, keep=0, probe_every=2, image_size=96,
        sync_bn=True, dataset="digits", opt="sgd", warmup_epochs=1,
    )  # fmt: skip
    assert understood("d", "--method", METHODS[0], "--step", 0, "--true-cosine")[1].true_cosine


def test_the_authors_colours() -> None:
    jitter, grey, blur = PLUS
    assert (jitter.p, jitter.hue, grey.p, blur.p, blur.sigma) == (0.6, 0.1, 0.2, 0.2, (0.1, 2.0))  # type: ignore[attr-defined]
    grey, jitter = PLAIN
    assert (jitter.p, jitter.hue, jitter.contrast, grey.p) == (1.0, 0.4, 0.4, 0.2)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def first(s2bnn: S2bnn, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Step 1 of the contrastive method, three epochs of three steps."""
    folder = tmp_path_factory.mktemp("first")
    line = small(*ONE, "--epochs", 3, "--keep", 2, "--cos", "--output", folder)
    given = ("--dist-url", "tcp://localhost:1", "--multiprocessing-distributed", "--world-size", 1, "--rank", 0)
    return folder, s2bnn(*line, *given)


def tensors(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_files_lines_and_figures_of_a_run(first: tuple[Path, Result]) -> None:
    folder, result = first
    copies = ["checkpoint.pth.tar", "checkpoint.prev.pth.tar", *(f"checkpoint_000{n}.pth.tar" for n in (1, 2))]
    assert sorted(path.name for path in folder.glob("*.tar")) == sorted(copies)
    launcher = [line for line in result.stderr.splitlines() if "accelerate launch" in line]
    assert len(launcher) == 1 and "--dist-url, --world-size, --rank, --multiprocessing-distributed" in launcher[0]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Epoch: [0][1/3]\tLoss: ") and "Acc@1: " in lines[0] and "Acc@5: " in lines[0]
    assert sum("k-NN Acc@1" in line for line in lines) == 3
    metrics = read_metrics(folder / "metrics.jsonl")
    rates = [line["lr"] for line in metrics if line["event"] == "epoch"]
    assert rates == pytest.approx([3e-4, 2e-4, 1e-4])
    found = json.loads((folder / "result.json").read_text())
    assert {"knn_top1", "effective_rank", "collapsed", "global_batch"} <= set(found) and found["finished"]
    for name in ("checkpoint.pth.tar", "checkpoint_0002.pth.tar"):
        assert step_of(load(folder / name)) == 1
    assert step_of(load(folder / "backbone.safetensors")) == 1
    assert set(torch.load(folder / copies[-1], weights_only=True)) >= {"state_dict", "epoch", "arch", "binarization"}


@pytest.mark.parametrize("name", ["checkpoint.pth.tar", "checkpoint_0002.pth.tar"])
def test_step_2_starts_from_every_tensor_of_step_1(
    name: str, first: tuple[Path, Result], s2bnn: S2bnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an epoch that --max-steps ends leaves the copy that the next line names."""
    start: list[dict[str, Tensor]] = []

    def noted(job: Any, *args: Any, **more: Any) -> Any:
        start.append({key: value.clone() for key, value in job.stages[0].objective.state_dict().items()})
        return job_fit(job, *args, **more)

    from lowbit.train.job import Job

    job_fit = Job.fit
    monkeypatch.setattr(Job, "fit", noted)
    line = (*SMALL, "--method", METHODS[0], "--step", 2, "--max-steps", 2, "--output", tmp_path)
    s2bnn(*line, "--model-path", first[0] / name)
    theirs, ours = tensors(first[0] / name), start[0]
    assert {key.removeprefix("keys.") for key in ours} == set(theirs) and "encoder_k.conv1.weight" in theirs
    for key, value in ours.items():
        assert torch.equal(value, theirs[key.removeprefix("keys.")]), key
    assert (tmp_path / "checkpoint_0000.pth.tar").exists() and not (tmp_path / "backbone.safetensors").exists()
    assert step_of(load(tmp_path / "checkpoint_0000.pth.tar")) == 2


def test_the_weights_of_another_method_or_of_the_authors(
    first: tuple[Path, Result], s2bnn: S2bnn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A student alone: its key encoder starts as a copy; DDP's prefix and MoCo's layout are read."""
    from s2bnn.methods import build, start_from_

    state = tensors(first[0] / "checkpoint.pth.tar")
    student = {f"module.{key}": value for key, value in state.items() if key.startswith("encoder_q.")}
    torch.save({"arch": "resnet50", "state_dict": student}, tmp_path / "theirs.pth.tar")
    own = pretrain_options(METHODS[0], 2, (), None, student=ARCH, moco_dim=16, moco_k=16, mlp=True)
    objective, _ = build(own, (3, 8, 8))
    queue = objective.keys.queue.clone()  # type: ignore[union-attr]
    start_from_(objective, tmp_path / "theirs.pth.tar", ARCH)
    for key, value in objective.state_dict().items():
        if not key.startswith("keys."):
            assert torch.equal(value, state[key.replace("encoder_k", "encoder_q")]), key
    assert torch.equal(objective.keys.queue, queue)  # type: ignore[union-attr]
    alone, _ = build(pretrain_options(METHODS[0], 2, (), None, student=ARCH, moco_dim=16, moco_k=16), (3, 8, 8))
    student = {k.replace(".fc.2", ".fc"): v for k, v in student.items() if ".fc.0" not in k}  # without --mlp
    torch.save({"arch": "resnet50", "state_dict": student}, tmp_path / "theirs.pth.tar")
    start_from_(alone, tmp_path / "theirs.pth.tar", ARCH)
    student["module.encoder_q.bn1.bias"][0] = torch.nan
    torch.save({"arch": "resnet50", "state_dict": student}, tmp_path / "diverged")
    with pytest.raises(InputError, match=r"diverged: it holds NaN or infinity in encoder_q\.bn1\.bias"):
        start_from_(alone, tmp_path / "diverged", ARCH)
    assert torch.equal(alone.state_dict()["encoder_q.fc.0.weight"], state["encoder_q.fc.2.weight"])


def test_a_real_valued_net_is_made_binary(first: tuple[Path, Result], tmp_path: Path) -> None:
    """Its ReLUs have no slopes: those of the PReLUs in their places stay as drawn; of a binary net none may lack."""
    from s2bnn.methods import build, start_from_

    given = {"student": ARCH, "moco_dim": 16, "moco_k": 16, "mlp": True}
    content = torch.load(first[0] / "checkpoint.pth.tar", weights_only=True)
    objective, _ = build(pretrain_options(METHODS[0], 1, (), None, **given), (3, 8, 8))
    names = of_kind(objective.encoder_q, nn.PReLU)
    slopes = {f"{encoder}.{name}.weight" for encoder in ("encoder_q", "encoder_k") for name in names}
    real = {key: value + 1 for key, value in content["state_dict"].items() if key not in slopes}
    torch.save({**content, "binarization": 0, "state_dict": real}, tmp_path / "real")
    start_from_(objective, tmp_path / "real", ARCH)
    for key, value in objective.state_dict().items():
        if key in slopes:
            assert value.tolist() == [0.25]
        else:
            assert torch.equal(value, real[key.removeprefix("keys.")]), key
    assert names
    torch.save({**content, "state_dict": real}, tmp_path / "binary")
    with pytest.raises(InputError, match=r"--model-path .*binary: it lacks encoder_q\..*relu.*weight"):
        start_from_(objective, tmp_path / "binary", ARCH)


LEARNS = ("--method", METHODS[2], "--step", 1)
WRONG: dict[tuple[object, ...], str] = {
    LEARNS: "--teacher-path FILE, or --timm-teacher",
    (*LEARNS, "--teacher-path", "gone.pth.tar"): "gone.pth.tar",
    (*LEARNS, "--teacher-path", "text", "--timm-teacher"): "one teacher",
    (*LEARNS, "--teacher-path", "text"): "--teacher-path",
    (*LEARNS, "--teacher-path", "text", "-a", "resnett"): "resnett",
    (*ONE, "--teacher-path", "text"): "--teacher-path",
    (*ONE, "--over", "queue"): "--over queue",
    (*ONE, "--kl"): "--kl",
    (*ONE, "--model-path", "gone.pth.tar"): "gone.pth.tar",
    (*ONE, "--model-path", "text"): "--model-path text",
    (*ONE, "--pretrained"): "--pretrained",
    (*ONE, "--val-split", 0.5): "--val-split",
    (*ONE, "--cos", "--true-cosine"): "--cos and --true-cosine",
    (*ONE, "--cos", "--sched", "step"): "--cos and --sched",
    (*ONE, "--moco-k", 4): "--moco-k",
    (*ONE, "--student", "vit_tiny_patch16_224"): "no convolution to binarize",
    (*ONE, "--image-size", 9, "--student", "reactnet_a_32"): "multiples of 8",
    ("--method", METHODS[0]): "--step",
    ("--method", "burn", "--step", 1): "burn",
    (*ONE[:3], 3): "3",
}


@pytest.mark.parametrize("given", WRONG)
def test_what_is_refused_in_one_line_before_anything_is_written(
    given: tuple[object, ...], s2bnn: S2bnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no weights")
    said = s2bnn(*small(*given, "--output", "out"), code=2).stderr
    assert WRONG[given] in said and said.count("\n") == 1 and said.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_another_steps_or_nets_checkpoint(first: tuple[Path, Result], s2bnn: S2bnn, tmp_path: Path) -> None:
    path = first[0] / "checkpoint.pth.tar"
    for more, word in (
        (("--moco-dim", 8), "shape"), (("--moco-k", 32), "shape"), (("--student", "cifar_resnet20_1x1"), ARCH),
    ):  # fmt: skip
        said = s2bnn(*small(*more, *ONE, "--model-path", path, "--output", tmp_path), code=2).stderr
        assert word in said and "--model-path" in said and said.count("\n") == 1
    changed = small(
        "--method", METHODS[0], "--step", 2, "--cos", "--epochs", 3, "--output", first[0], "--resume", "auto"
    )
    assert "made with --step 1, this run has 2" in s2bnn(*changed, code=2).stderr


def test_a_net_that_rectifies_by_a_function_is_named(
    s2bnn: S2bnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2bnn.methods.blind_layers", lambda net, size: ["layer1.0.conv1", "layer1.0.conv2"])
    said = s2bnn(*SMALL, *ONE, "--dry-run", "--output", tmp_path / "out")
    found = [line for line in said.stderr.splitlines() if "layer1.0.conv1" in line]
    assert len(found) == 1 and "2 of its binary layers" in found[0] and not (tmp_path / "out").exists()
    assert "method: contrastive" in said.stdout and "steps: 3" in said.stdout


def test_a_terminal_shows_the_record_above_a_bar(
    first: tuple[Path, Result], terminal: Callable[..., Any], tmp_path: Path
) -> None:
    line = small(*ONE, "--epochs", 3, "--keep", 2, "--cos", "--max-steps", 3, "--output", tmp_path)
    terminal(80, lambda: cli([str(given) for given in line])).check(first[1].stdout.splitlines()[:4])
