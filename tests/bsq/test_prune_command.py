"""`bsq cifar_prune_STE` and `bsq cifar_finetune`: files, records, resume; on the digits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import lowbit
from bsq.network import nbit_dict
from lowbit.checkpoint.read import read_checkpoint
from lowbit.metrics import read_metrics

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", "160", "--limit-eval", "60")
SHORT = (*NET, "--train-batch", "64", "--epochs", "2", "--schedule", "1", "--wd", "1e-4")
PRUNE = ("cifar_prune_STE", *SHORT, "--Nbits", "8")
LASSO = ("--decay", "0.01", "--L1")


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == event]


def rows(folder: Path) -> tuple[list[str], list[list[float]]]:
    lines = (folder / "log.txt").read_text().splitlines()
    return lines[0].split("\t"), [[float(value) for value in line.split("\t")[:-1]] for line in lines[1:]]


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def state_of(path: Path) -> dict[str, Any]:
    return read_checkpoint(path)


@pytest.fixture(scope="module")
def pruned(digits_run: Path, bsq: Bsq, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs, re-quantised before each and at the end."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", folder)
    bsq(*PRUNE, *LASSO, "--Prun_Int", 1, *start)
    return folder


@pytest.fixture(scope="module")
def tuned(pruned: Path, bsq: Bsq, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    bsq("cifar_finetune", *SHORT, "--lr", 0.01, "--model", pruned / "checkpoint.pth.tar", "-c", folder)
    return folder


def test_log_txt_of_bit_training(pruned: Path) -> None:
    head, values = rows(pruned)
    columns = ["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Reg Loss", "Comp"]
    assert head == [*columns, ""] and len(values) == 2
    assert [row[0] for row in values] == pytest.approx([0.1, 0.01])
    epochs, evaluated = events(pruned, "epoch"), events(pruned, "eval")
    assert [row[1] for row in values] == pytest.approx([line["ce"] for line in epochs], abs=1e-6)
    assert [row[4] for row in values] == pytest.approx([line["top1"] for line in evaluated], abs=1e-6)
    assert [row[5] for row in values] == pytest.approx([line["reg"] for line in evaluated], abs=1e-6)
    found = [line["compression"] for line in events(pruned, "requantize")]
    assert [row[6] for row in values] == pytest.approx(found[:2], abs=1e-6)


def test_requantize_lines(pruned: Path) -> None:
    lines, state = events(pruned, "requantize"), state_of(pruned / "checkpoint.pth.tar")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 3), (1, 6)]
    for line in lines:
        assert {"top1", "top1_before", "loss", "loss_before", "compression"} <= set(line)
        assert set(line["ones"]) == set(line["bits"]) == set(state["Nbit_dict"])
        for name, (weight, bias) in line["bits"].items():
            assert len(line["ones"][name]["weight"]) == max(weight, 1)
            assert len(line["ones"][name].get("bias", [])) == (max(bias, 1) if name == "fc" else 0)
    assert lines[0]["top1"] == lines[0]["top1_before"]  # the first changes nothing
    assert lines[1]["top1_before"] == events(pruned, "eval")[0]["top1"]
    last = result_of(pruned)
    assert lines[-1]["bits"] == state["Nbit_dict"] == last["bits"] and lines[-1]["top1"] == last["top1"]
    assert lines[-1]["compression"] == pytest.approx(last["compression"])


def test_files_of_bit_training(pruned: Path) -> None:
    names = {"checkpoint.pth.tar", "model_best.pth.tar", "log.txt", "config.json", "metrics.jsonl", "result.json"}
    assert names <= {path.name for path in pruned.iterdir()}
    assert not list(pruned.glob("requantized-*"))
    planes = state_of(pruned / "checkpoint.pth.tar")["state_dict"]
    assert all(set(v.unique().tolist()) <= {0.0, 1.0} for k, v in planes.items() if k.endswith("pweight"))
    assert not [key for key in planes if "dense" in key]
    config = json.loads((pruned / "config.json").read_text())
    assert (config["prune"]["interval"], config["prune"]["decay"], config["prune"]["lasso"]) == (1, 0.01, True)
    assert config["act"]["bits"] == 4


def test_model_best_is_the_most_accurate_of_the_most_compressed(pruned: Path) -> None:
    best, lines = state_of(pruned / "model_best.pth.tar"), events(pruned, "requantize")
    highest = max(line["compression"] for line in lines)
    assert best["acc"] == max(line["top1"] for line in lines if line["compression"] >= 0.99 * highest)
    assert best["Nbit_dict"] in [line["bits"] for line in lines if line["top1"] == best["acc"]]


def test_files_of_finetuning(tuned: Path, pruned: Path) -> None:
    head, values = rows(tuned)
    assert head == ["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", ""] and len(values) == 2
    state = state_of(tuned / "checkpoint.pth.tar")
    assert state["Nbit_dict"] == state_of(pruned / "checkpoint.pth.tar")["Nbit_dict"]
    keys = set(state["state_dict"])
    assert {"module.fc.weight", "module.fc.bias", "module.fc.scale", "module.fc.biasscale"} <= keys
    latents = [state["state_dict"][f"module.{name}.weight"] for name in state["Nbit_dict"]]
    assert all(latent.abs().max() <= 1 for latent in latents)


def test_best_bin_and_best_float_are_the_best_epoch(tuned: Path, bsq: Bsq) -> None:
    best = max(line["top1"] for line in events(tuned, "eval"))
    assert result_of(tuned)["best"]["top1"] == best
    said = bsq("cifar_finetune", *NET, "--bin", "--evaluate", "--model", tuned / "best_bin.pth.tar").stdout
    assert said.count(f"Accuracy: {best:.2f}%") == 3
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bits, floats, latents = (lowbit.load(tuned / f"{n}.pth.tar") for n in ("best_bin", "best_float", "model_best"))
    with torch.no_grad():
        assert torch.equal(bits(x), latents(x)) and torch.equal(bits(x), floats(x))
    best_float = state_of(tuned / "best_float.pth.tar")
    assert not [key for key in best_float["state_dict"] if key.endswith("scale")]
    assert best_float["Nbit_dict"] == nbit_dict(bits)  # so that it is converted at the widths that were found
    converted = tuned.with_name("converted")
    bsq("convert", *NET, "--model", tuned / "best_float.pth.tar", "-c", converted)
    assert state_of(converted / "checkpoint.pth.tar")["Nbit_dict"] == nbit_dict(bits)
    assert "module.fc.scale" in state_of(tuned / "model_best.pth.tar")["state_dict"]  # the authors' is best_float
    assert (tuned / "model_best.pth.tar").read_bytes() != (tuned / "best_float.pth.tar").read_bytes()
    assert state_of(tuned / "best_bin.pth.tar")["Nbit_dict"] == nbit_dict(bits)


def test_checkpoints_have_the_accuracies_of_the_authors(pruned: Path, tuned: Path, digits_run: Path) -> None:
    """`acc` of the very net, `best_acc` of all epochs so far."""
    for folder in (tuned, digits_run / "float"):
        found = [line["top1"] for line in events(folder, "eval")]
        state, best = state_of(folder / "checkpoint.pth.tar"), state_of(folder / "model_best.pth.tar")
        assert (state["acc"], state["best_acc"]) == (found[-1], max(found)) and best["acc"] == best["best_acc"]
    state, found = state_of(pruned / "checkpoint.pth.tar"), [line["top1"] for line in events(pruned, "eval")]
    assert (state["acc"], state["best_acc"]) == (result_of(pruned)["top1"], max(found))


def test_a_finished_run_without_its_best_accuracy_is_resumed(
    pruned: Path, digits_run: Path, bsq: Bsq, tmp_path: Path
) -> None:
    state = state_of(pruned / "checkpoint.pth.tar")
    del state["best_acc"]
    torch.save(state, tmp_path / "a.pth.tar")
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    said = bsq(*PRUNE, *LASSO, "--Prun_Int", 1, *start, "--resume", tmp_path / "a.pth.tar")
    assert "this run is finished" in said.stderr and "Best acc" not in said.stdout


def test_planes_between_two_requantisations_are_tuned_as_they_are(
    pruned: Path, digits_run: Path, bsq: Bsq, tmp_path: Path
) -> None:
    """Fine-tuning form rounds nothing, and the widths are those that its files say."""
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "real")
    bsq(*PRUNE, *LASSO, "--Prun_Int", 9, "--max-steps", 3, *start)
    held = state_of(tmp_path / "real/checkpoint.pth.tar")
    line = ("cifar_finetune", *SHORT, "--model", tmp_path / "real/checkpoint.pth.tar")
    bsq(*line, "--lr", 1e-12, "--max-steps", 1, "-c", tmp_path / "tuned")
    state = state_of(tmp_path / "tuned/checkpoint.pth.tar")
    distance = 0.0
    for name, (bits, _) in state["Nbit_dict"].items():
        planes = [held["state_dict"][f"module.{name}.{key}"].double() for key in ("pweight", "nweight")]
        exps = 2.0 ** torch.arange(planes[0].shape[-1] - 1, -1, -1, dtype=torch.float64)
        codes = state["state_dict"][f"module.{name}.weight"].double() * (2**bits - 1)
        weights = ((planes[0] - planes[1]) @ exps).clamp(1 - 2**bits, 2**bits - 1)  # the step clamps latents to [-1, 1]
        assert torch.allclose(codes, weights, atol=1e-3)
        distance = max(distance, (codes - codes.round()).abs().max().item())
    assert distance > 0.1
    said = bsq(*line, "--evaluate").stdout
    assert all(str(list(pair)) in said for pair in state["Nbit_dict"].values())


@pytest.mark.parametrize("steps", [3, 4])
def test_bit_training_in_two_parts(
    steps: int, pruned: Path, digits_run: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    """The first part ends at the epoch's end, or behind the re-quantisation that follows."""
    line = (*PRUNE, *LASSO, "--Prun_Int", 1, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*line, "--max-steps", steps, "--save-every", 2)
    assert state_of(tmp_path / "run/checkpoint.pth.tar")["step"] == steps
    bsq(*line, "--resume", "auto")
    same_run(pruned, tmp_path / "run")
    assert result_of(tmp_path / "run")["bits"] == result_of(pruned)["bits"]
    assert state_of(tmp_path / "run/model_best.pth.tar")["acc"] == state_of(pruned / "model_best.pth.tar")["acc"]


def test_finetuning_in_two_parts(
    tuned: Path, pruned: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    line = ("cifar_finetune", *SHORT, "--lr", 0.01, "--model", pruned / "checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*line, "--max-steps", 4)
    bsq(*line, "--resume", "auto")
    same_run(tuned, tmp_path / "run")
    a, b = (lowbit.load(folder / "best_bin.pth.tar").state_dict() for folder in (tuned, tmp_path / "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_finetuning_that_empties_planes_in_two_parts(
    digits_run: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    """Widths are those of the start, whatever planes the training empties before it is resumed."""
    heavy = ("--epochs", 2, "--schedule", 9, "--lr", 0.01, "--wd", 30, "--momentum", 0)
    line = ("cifar_finetune", *SHORT[:-6], *heavy, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c")
    bsq(*line, tmp_path / "whole")
    bsq(*line, tmp_path / "parts", "--max-steps", 5)
    bsq(*line, tmp_path / "parts", "--resume", "auto")
    same_run(tmp_path / "whole", tmp_path / "parts")
    one, other = result_of(tmp_path / "whole"), result_of(tmp_path / "parts")
    assert one["bits"] == other["bits"] and one["top1_start"] == other["top1_start"]
    assert {pair[0] for pair in one["bits"].values()} == {8}


@pytest.mark.parametrize("lasso", [("--decay", "0", "--L1"), ("--decay", "0.01")])
def test_without_the_lasso(lasso: tuple[str, ...], digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """And with `--Prun_Int 0`: the authors' program crashes at each of these."""
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run", "--Prun_Int", 0)
    bsq(*PRUNE, "--epochs", 2, *lasso, *start)
    (epoch, _), lines = events(tmp_path / "run", "epoch"), events(tmp_path / "run", "requantize")
    assert epoch["loss"] == epoch["ce"] and epoch["reg"] > 0
    assert [line["step"] for line in lines] == [6]  # only the last
    assert [row[6] for row in rows(tmp_path / "run")[1]] == [4.0, 4.0]


@pytest.mark.parametrize("command", ["cifar_prune_STE", "cifar_finetune"])
def test_another_optimizer(command: str, digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Of what is no plane; planes keep their own, under the other schedule."""
    line = (command, *SHORT, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*line, "--opt", "lars", "--sched", "cosine", "--max-steps", 2)
    made = state_of(tmp_path / "run/checkpoint.pth.tar")["optimizer"]
    rate = made["main"]["param_groups"][0]["lr"]
    assert "trust_coeff" in made["main"]["param_groups"][0] and 0 < rate < 0.1
    if command == "cifar_prune_STE":
        assert made["planes"]["param_groups"][0]["lr"] == rate and "strength" in made["planes"]["param_groups"][0]


def test_ceiling_by_layer(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """A net of 3 bits whose largest codes are all 8 + 2 + 1 grows to 4 bits where it may."""
    bsq("convert", *NET, "--Nbits", 3, "--model", digits_run / "float/checkpoint.pth.tar", "-c", tmp_path / "c")
    state = state_of(tmp_path / "c/checkpoint.pth.tar")
    for key, value in state["state_dict"].items():
        if key.endswith((".pweight", ".pbias")):
            value[0] = torch.tensor([2.0, 1.0, 1.0])
        elif key.endswith((".nweight", ".nbias")):
            value[0] = 0.0
    torch.save(state, tmp_path / "grown.pth.tar")
    line = (*PRUNE, "--model", tmp_path / "grown.pth.tar", "--max-steps", 1, "--Prun_Int", 1)
    bsq(*line, "--max-bits", 3, "--max-bits", "layer3*=4", "-c", tmp_path / "run")
    (first,) = events(tmp_path / "run", "requantize")
    assert {name: max(pair) for name, pair in first["bits"].items()} == {
        name: 4 if name.startswith("layer3") else 3 for name in first["bits"]
    }


def test_floor_by_layer(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """A threshold of 100 % drops all that the floor lets it."""
    line = (*PRUNE, "--model", digits_run / "bits8/checkpoint.pth.tar", "--max-steps", 1, "--thre", 100)
    bsq(*line, "--min-bits", 2, "--min-bits", "conv1=3", "-c", tmp_path / "run")
    bits = events(tmp_path / "run", "requantize")[0]["bits"]
    assert bits.pop("fc") == [2, 2] and bits.pop("conv1") == [3, 0]
    assert set(map(tuple, bits.values())) == {(2, 0)}


def test_finetuning_keeps_the_floor(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """A checkpoint carries it: an empty plane stays where bit training had to leave one, and goes elsewhere."""
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*PRUNE, *start, "--max-steps", 1, "--min-bits", "layer1*=8")
    state = state_of(tmp_path / "run/checkpoint.pth.tar")
    for name in ("layer1.0.conv1", "layer2.0.conv1"):
        for key in ("pweight", "nweight"):
            state["state_dict"][f"module.{name}.{key}"][..., -2:] = 0
    torch.save(state, tmp_path / "emptied.pth.tar")
    line = ("cifar_finetune", *SHORT, "--max-steps", 1)
    bsq(*line, "--model", tmp_path / "emptied.pth.tar", "-c", tmp_path / "tuned")
    tuned = state_of(tmp_path / "tuned/checkpoint.pth.tar")
    assert tuned["Nbit_dict"]["layer1.0.conv1"] == [8, 0] and tuned["Nbit_dict"]["layer2.0.conv1"] == [6, 0]
    assert tuned["min_bits"] == {"layer1.0.conv1": 8, "layer1.0.conv2": 8}
    evaluate = ("cifar_finetune", *NET, "--evaluate", "-c")
    bsq(*evaluate, tmp_path / "eval", "--model", tmp_path / "tuned/checkpoint.pth.tar")
    assert result_of(tmp_path / "eval")["bits"] == tuned["Nbit_dict"]
    torch.save({**state, "min_bits": {"fc": 0}}, tmp_path / "bad.pth.tar")
    assert "min_bits" in bsq(*evaluate, tmp_path / "x", "--model", tmp_path / "bad.pth.tar", code=2).stderr


def test_export_of_a_training_under_way_says_that_it_rounds(
    digits_run: Path, bsq: Bsq, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*PRUNE, *start, "--max-steps", 2)
    for model, said in ((tmp_path / "run", True), (digits_run / "bits8", False)):
        caplog.clear()
        bsq("export", "--model", model / "checkpoint.pth.tar", "--output", tmp_path / "packed", "--overwrite")
        assert ("rounded" in caplog.text) == said


def test_a_float_model_and_none_become_bits(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    for name, more in (("a", ("--model", digits_run / "float/checkpoint.pth.tar")), ("b", ())):
        said = bsq(*PRUNE, "--max-steps", 1, *more, "-c", tmp_path / name).stdout
        assert said.startswith("Without --model the weights are random\n") == (name == "b")
        assert {pair[0] for pair in state_of(tmp_path / name / "checkpoint.pth.tar")["Nbit_dict"].values()} == {8}


def test_a_start_from_random_weights_is_said_before_it_begins(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    plan = bsq(*PRUNE, "-c", tmp_path / "a", "--dry-run").stdout
    assert "weights: random, without --model\n" in plan and not list(tmp_path.iterdir())
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar")
    assert "weights: random" not in bsq(*PRUNE, *start, "-c", tmp_path / "a", "--dry-run").stdout
    bsq(*PRUNE, "--max-steps", 1, "-c", tmp_path / "a")
    again = bsq(*PRUNE, "--max-steps", 2, "-c", tmp_path / "a", "--resume", "auto").stdout
    assert "weights are random" not in again, "the checkpoint has weights"


def test_the_help_says_where_files_and_weights_come_from(bsq: Bsq) -> None:
    for command in ("train", "cifar_prune_STE", "cifar_finetune"):
        text = " ".join(bsq(command, "--help").stdout.split())
        assert "default: checkpoint, and none with --evaluate" in text and "nothing is written without" not in text
    assert "Without --model (or --pretrained) it starts from random weights." in " ".join(
        bsq("cifar_prune_STE", "--help").stdout.split()
    )


def test_evaluation_of_bit_training_writes_nothing(
    pruned: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = bsq("cifar_prune_STE", *NET, "--model", pruned / "checkpoint.pth.tar", "--evaluate").stdout
    assert f"Accuracy: {result_of(pruned)['top1']:.2f}%" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["cifar_prune_STE", "cifar_finetune"])
def test_dry_run_writes_nothing(command: str, digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    assert "steps: 6\n" in bsq(command, *SHORT, *start, "--dry-run").stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--Prun_Int", "-1"), "--Prun_Int"),
        (("--Prun_Int", "0.5"), "0.5"),
        (("--thre", "101"), "--thre"),
        (("--thre", "-1"), "--thre"),
        (("--decay", "-0.1"), "--decay"),
        (("--decay", "nan"), "nan"),
        (("--max-bits", "0"), "--max-bits 0"),
        (("--max-bits", "17"), "--max-bits 17"),
        (("--max-bits", "²"), "--max-bits ²"),
        (("--min-bits", "9" * 5000), "N from 1 to 16"),
        (("--max-bits", "layer9*=4"), "layer9"),
        (("--max-bits", "layer3*="), "layer3"),
        (("--min-bits", "few"), "few"),
        (("--min-bits", "fc=0"), "fc=0"),
        (("--Nbits", "17"), "--Nbits"),
        (("--epochs", "0"), "--epochs"),
        (("--act", "3"), "PACT"),
        (("--model", "nowhere.tar"), "nowhere.tar"),
    ],
)
def test_bad_values(
    args: tuple[str, ...], names: str, digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = () if "--model" in args else ("--model", digits_run / "bits8/checkpoint.pth.tar")
    result = bsq("cifar_prune_STE", *NET, "-c", "out", *model, *args, code=2)
    assert names in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["start", "strength", "state", "shape", "widths"])
def test_a_damaged_run_is_not_resumed(kind: str, digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    line = (*PRUNE, *LASSO, "--model", digits_run / "bits8/checkpoint.pth.tar")
    bsq(*line, "--max-steps", 2, "-c", tmp_path / "run")
    state = state_of(tmp_path / "run/checkpoint.pth.tar")
    planes = state["optimizer"]["planes"]
    if kind == "start":
        state["at_start"] = {"top1_start": "x"}
    elif kind == "strength":
        planes["param_groups"][0]["strength"] = "x"
    elif kind == "state":
        planes["state"] = {}
    elif kind == "widths":
        state["Nbit_dict"]["fc"] = [3, 8]
    else:
        planes["state"][0]["planes"] = planes["state"][0]["planes"][:, 1:]
    torch.save(state, tmp_path / "bad.pth.tar")
    said = bsq(*line, "--resume", tmp_path / "bad.pth.tar", "-c", tmp_path / "new", code=2).stderr
    assert "bad.pth.tar" in said and said.count("\n") == 1 and not (tmp_path / "new").exists()
    assert said.count("--resume") == 1


def test_a_run_is_resumed_with_its_own_options(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Told by the names of their flags."""
    line = (*PRUNE, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*line, *LASSO, "--target-compression", 6, "--max-steps", 1)
    for given, told in (
        (("--target-compression", 8), "--target-compression 6.0, this run has 8.0"),
        (("--target-compression", 6, "--act", 5), "--act 4, this run has 5"),
        (("--target-compression", 6, "--lr", 0.2), "--lr 0.1, this run has 0.2"),
    ):
        said = bsq(*line, *LASSO, *given, "--resume", "auto", code=2).stderr
        assert said.startswith("error: --resume auto: the checkpoint was made with") and told in said, said


def test_finetuning_is_resumed_with_its_own_widths(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    line = ("cifar_finetune", *SHORT, "-c", tmp_path / "run", "--max-steps", 1)
    state = state_of(digits_run / "bits8/checkpoint.pth.tar")
    for key in ("pweight", "nweight"):
        state["state_dict"][f"module.conv1.{key}"][..., -2:] = 0
    torch.save(state, tmp_path / "six.pth.tar")
    bsq(*line, "--model", tmp_path / "six.pth.tar")
    said = bsq(*line, "--model", digits_run / "bits8/checkpoint.pth.tar", "--resume", "auto", code=2).stderr
    assert "layer conv1 holds (8, 0) bits" in said and "Nbit_dict says (6, 0)" in said


def test_finetuning_resumed_elsewhere_takes_the_best_along(
    pruned: Path, tuned: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    line = ("cifar_finetune", *SHORT, "--lr", 0.01, "--model", pruned / "checkpoint.pth.tar", "-c")
    bsq(*line, tmp_path / "run", "--max-steps", 4)
    bsq(*line, tmp_path / "new", "--resume", tmp_path / "run/checkpoint.pth.tar")
    assert (tmp_path / "new/best_bin.pth.tar").exists() and result_of(tmp_path / "new")["top1"] == result_of(tuned)[
        "top1"
    ]


def test_finetuning_refuses_what_is_no_bits(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    line = ("cifar_finetune", *SHORT, "-c", tmp_path / "run")
    assert "--model" in bsq(*line, code=2).stderr
    assert "convert" in bsq(*line, "--model", digits_run / "float/checkpoint.pth.tar", code=2).stderr
    assert not (tmp_path / "run").exists()
