"""The trainings as commands: files, figures, labels that are not read, kills, processes, what is refused."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn
from torch._dynamo.testing import CompileCounter

from lowbit.data.pictures import MemoryPictures
from lowbit.loading import load
from lowbit.metrics import read_metrics
from lowbit.train import session as sessions
from sqakd.cli import cli

Line = tuple[object, ...]
Sqakd = Callable[..., Result]
LAST = "checkpoint/last_checkpoint.pth"


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def test_files_of_a_float_training(teacher: Path) -> None:
    folder = teacher.parents[1]
    assert {path.name for path in folder.iterdir()} >= {"config.json", "metrics.jsonl", "backbone.safetensors"}
    assert (folder / "checkpoint/best_checkpoint.pth").exists() and read(teacher)["quantizers"] == []
    found, lines = result(folder), read_metrics(folder / "metrics.jsonl")
    accuracies = [line["top1"] for line in lines if line["event"] == "eval"]
    assert found["top1_last5"] == pytest.approx(sum(accuracies) / 2) and len(accuracies) == 2
    assert found["quantized"] == 0 and {"top1", "top1_bn", "top5_bn", "loss_bn"} <= found.keys()
    assert load(teacher)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_student_learns_without_labels(student: Path, teacher: Path) -> None:
    state, lines = read(student / LAST), read_metrics(student / "metrics.jsonl")
    assert set(state["optimizer"]) == {"main", "quantizer"} and not any("teacher" in key for key in state["state_dict"])
    ((weight, given, layers),) = state["quantizers"]
    assert (weight["quantizer"], weight["bits"], given["bits"], len(layers)) == ("ewgs", 2, 2, 8)
    steps = [line for line in lines if line["event"] == "step"]
    assert all("kl" in step and "ce" not in step and "top1" not in step for step in steps)
    assert steps[-1]["kl"] < steps[0]["kl"]
    net = load(student / LAST)
    name = layers[0]
    assert torch.equal(net.get_submodule(name).weight_codes().codes.unique(), torch.arange(4, dtype=torch.int32))  # type: ignore[operator]


def test_permuted_labels_change_nothing(
    sqakd: Sqakd, student: Path, student_line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole training set, since a subset is chosen by label; the checkpoint's tensors are equal."""
    line = tuple(given for given in student_line if given not in ("--limit-train", 100))
    true, seen = sessions.load_dataset, []

    def permuted(name: str, root: Path, split: str, **more: Any) -> Any:
        found = true(name, root, split, **more)  # type: ignore[arg-type]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(len(seen)))
        seen.append(split)
        assert isinstance(found, MemoryPictures)
        return MemoryPictures(name, found.classes, found.images, found.labels[order], found.white)

    for folder in ("a", "b"):
        monkeypatch.setattr(sessions, "load_dataset", permuted if folder == "b" else true)
        sqakd(*line, "--max-steps", 12, "--output", tmp_path / folder)
    a, b = (read(tmp_path / folder / LAST) for folder in "ab")
    assert seen and all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    for name in a["optimizer"]:
        for one, other in zip(*(x["optimizer"][name]["state"].values() for x in (a, b)), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_kill_9_and_resume(
    processes: Any, student: Path, student_line: Line, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    line = (*student_line, "--output", tmp_path, "--save-every", 5)
    processes.start(line, kill=7).wait(-signal.SIGKILL)
    assert read(tmp_path / LAST)["step"] == 5
    processes.start((*line, "--resume", "auto")).wait(0)
    same_run(tmp_path, student)


@pytest.mark.parametrize(
    "more",
    [
        ("--quantizer", "lsq"),
        pytest.param(
            ("--quantizer", "ewgs", "--QWeightFlag", "False", "--update_every", 2, "--include", "layer1.0.conv1"),
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_two_processes_equal_one(processes: Any, student_line: Line, more: Line, tmp_path: Path) -> None:
    """27 steps in double precision, the start of the quantizers and EWGS's scale by the Hessian included.

    The last batch of an epoch is short. EWGS's weights are float here: |g| of a sum is no sum of |g|.
    """
    epochs = student_line.index("--epochs") + 1
    line = (*student_line[:epochs], 4, *student_line[epochs + 1 :], "--sync-bn", "--max-steps", 27)
    line = (*line, *more)
    for world in (2, 1):
        folder = tmp_path / str(world)
        processes.start((*line, "--output", folder), world, double=1, weights=str(folder)).wait(*[0] * world)
    first, second, alone = (torch.load(tmp_path / name) for name in ("2.0", "2.1", "1.0"))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert (first[key].double() - value.double()).abs().max() < 1e-6, key
    assert alone["student.layer1.0.conv1.weight"].dtype == torch.float64
    deltas = [float(value) for key, value in alone.items() if key.endswith(".delta")]
    assert all(delta != 1e-3 for delta in deltas) and len(deltas) == int("ewgs" in more)


def losses(folder: Path, part: str = "kl") -> list[float]:
    return [line[part] for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "step"]


def test_mixed_precision(processes: Any, student_line: Line, tmp_path: Path) -> None:
    """In bfloat16 the losses are nearly those of single precision; weights and quantizers stay single."""
    line = (*student_line, "--kd_gamma", 1, "--max-steps", 4)
    for name in ("no", "bf16"):
        processes.start((*line, "--mixed-precision", name, "--output", tmp_path / name)).wait(0)
    one, other = (losses(tmp_path / name, "ce") for name in ("no", "bf16"))
    assert one != other and one == pytest.approx(other, rel=0.05)
    state = read(tmp_path / "bf16" / LAST)["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.heavy
@pytest.mark.parametrize("quantizer", ["ewgs", "lsq"])
def test_compiled(
    sqakd: Sqakd, student_line: Line, quantizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student in one graph for whole batches, with the losses of an ordinary run."""
    counter, compiled = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **more: compiled(self, backend=counter, **more))
    line = (*student_line, "--quantizer", quantizer, "--use_hessian", "False", "--max-steps", 4)
    sqakd(*line, "--output", tmp_path / "a")
    assert counter.frame_count == 0
    sqakd(*line, "--compile", "--output", tmp_path / "b")
    assert counter.frame_count == 1 and losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-4)


def test_evaluation(sqakd: Sqakd, student: Path, few: Line, teacher: Path) -> None:
    """Of a checkpoint its own figures; of a start at 12 bits nearly those of the float net."""
    own = sqakd("train_quant", *few, "--evaluate", "--resume", student / LAST).stdout.splitlines()
    found = result(student)
    assert [f"{found[key]:.3f}" in line for key, line in zip(("top1", "top1_bn"), own, strict=True)] == [True, True]
    agreed = ("--quantizer", "ewgs", "--wbits", 2)
    assert sqakd("train_quant", *few, *agreed, "--evaluate", "--resume", student / LAST).stdout.splitlines() == own
    float_net = sqakd("train_fp", *few, "-e", "--resume", teacher).stdout.splitlines()[0].split()[2]
    start = ("--load_pretrain", "True", "--pretrain_path", teacher, "--quantizer", "lsq", "--wbits", 12, "--abits", 12)
    said = sqakd("train_quant", *few, "-e", *start).stdout.splitlines()
    assert abs(float(said[1].split()[2]) - float(float_net)) < 20 and "re-estimated" in said[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [(("--quantizer", "lsq"), "--quantizer lsq: the net of .* has ewgs"), (("--wbits", 5), "--wbits 5: .* has 2"),
     (("--abits", 32), "--abits 0: .* has 2")],
)  # fmt: skip
def test_another_net_than_the_command_line_describes_is_not_evaluated(
    sqakd: Sqakd, student: Path, few: Line, given: Line, said: str
) -> None:
    found = sqakd("train_quant", *few, *given, "--evaluate", "--resume", student / LAST, code=2).stderr
    assert re.search(said, found) and found.count("\n") == 1


def test_labelled_and_held_out(sqakd: Sqakd, few: Line, teacher: Path, tmp_path: Path) -> None:
    """QAT at another weight of its loss; PACT, clipped gradients, parts of a batch; `best` by held-out pictures."""
    more = ("--quantizer", "pact", "--weight_levels", 4, "--act_levels", 4, "--kd_gamma", 10, "--val-split", 0.3,
            "--clip-grad", 1, "--accumulate", 2, "--first-last", "8", "--exclude", "*downsample*")  # fmt: skip
    start = ("--load_pretrain", "--pretrain_path", teacher)
    said = sqakd("train_quant", *few, *more, *start, "--log_dir", tmp_path).stdout
    found, state = result(tmp_path), read(tmp_path / LAST)
    figures = (found["best"]["top1"], found["top1"], found["top1_last5"])
    assert " * Acc@1 best {:.3f} last {:.3f} mean of the last 2 epochs {:.3f}\n".format(*figures) in said
    assert "val_top1" in found["best"] and "top1_bn" in found and found["train_loss"] > 10
    bits = {name: (w["bits"], a["bits"]) for w, a, names in state["quantizers"] for name in names}
    assert bits["conv1"] == bits["fc"] == (8, 8) and bits["layer1.0.conv1"] == (2, 2) and len(bits) == 8


def test_dorefa_has_one_optimizer(sqakd: Sqakd, few: Line, tmp_path: Path) -> None:
    sqakd("train_quant", *few, "--quantizer", "dorefa", "--wbits", 3, "--max-steps", 2, "--output", tmp_path)
    assert set(read(tmp_path / LAST)["optimizer"]) == {"main"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--distill", "kd"), "name its checkpoint, --teacher_path"),
        (("--distill", "hint"), "hint"),
        (("--weight_levels", 3), "2 to the number of bits"),
        (("--weight_levels", 4, "--wbits", 3), "give one of the two flags"),
        (("--baseline", "True", "--quantizer", "lsq"), "--quantizer ste"),
        (("--kd_gamma", 0), "has no loss"),
        (("--load_pretrain", "True"), "is not a file"),
        (("--quantizer", "lsq"), "no 1-bit weights"),
        (("--exclude", "nothing*"), "matches no layer"),
        (("--compile",), "--use_hessian False"),
        (("--evaluate", "--resume", "auto"), "name the checkpoint"),
        (("--decay_schedule_m", "1,2"), "150-300"),
    ],
)
def test_what_is_refused(sqakd: Sqakd, few: Line, line: Line, said: str, tmp_path: Path) -> None:
    found = sqakd("train_quant", *few, *line, "--output", tmp_path / "run", code=2).stderr
    assert said in found and found.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_terminal_shows_the_record_above_a_bar(
    sqakd: Sqakd, few: tuple[object, ...], terminal: Callable[..., Any], tmp_path: Path
) -> None:
    line = [str(given) for given in ("train_fp", *few, "--max-steps", 8, "--log_dir", tmp_path)]
    record = sqakd(*line).stdout
    terminal(80, lambda: cli([*line, "--overwrite"])).check(record.splitlines())
