"""`convert`, `cifar_finetune --evaluate`, `export`: records, counts, widths, activations, files of other layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import lowbit
from bsq.network import nbit_dict, to_bit_form_, to_finetune_
from lowbit.checkpoint.read import read_checkpoint
from lowbit.train import signals

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1")
ZEROS = "  0.00%"


def state_of(path: Path) -> dict[str, Any]:
    return read_checkpoint(path)


def changed(source: Path, target: Path, **entries: Any) -> Path:
    """A copy of a checkpoint with other entries; None removes one."""
    state = {**state_of(source), **entries}
    torch.save({key: value for key, value in state.items() if value is not None}, target)
    return target


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_counts_of_resnet20(bsq: Bsq, tmp_path: Path) -> None:
    """Gate 4: section 13's counts, printed (they do not depend on weights or pictures)."""
    said = bsq("convert", "-a", "resnet", "--depth", 20, "-d", "digits", "--Nbits", 8, "-c", tmp_path / "c").stdout
    assert "Total params: 0.27M (272,474)" in said
    assert "Total params: 4.30M (4,297,685)" in said
    assert "[268346*32 / 2146768]: 4.00 X" in said
    result = json.loads((tmp_path / "c/result.json").read_text())
    assert (result["weights"], result["total_bits"], result["compression"]) == (268346, 2146768, 4.0)
    assert len(result["bits"]) == 20 and result["bits"]["fc"] == [8, 8]


def test_record_and_files_of_convert(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    model = digits_run / "float/checkpoint.pth.tar"
    said = bsq("convert", *NET, "--Nbits", 4, "--model", model, "-c", tmp_path / "c").stdout.splitlines()
    assert [line.split(":")[0] for line in said if line.startswith("Accuracy")] == ["Accuracy"] * 2
    at = said.index("module.conv1")
    assert said[at + 1].startswith("Weight:") and said[at + 1].count("%") == 4
    at = said.index("module.fc")
    assert said[at + 2].startswith("Bias:") and said[at + 2].count("%") == 4
    assert said[said.index("fc") + 1] == "[4, 4]"
    names = {"checkpoint.pth.tar", "model_best.pth.tar", "config.json", "result.json", "backbone.safetensors"}
    assert names | {"train.log"} == {path.name for path in (tmp_path / "c").iterdir()} - {".lock"}
    state = state_of(tmp_path / "c/checkpoint.pth.tar")
    assert state["Nbit_dict"]["fc"] == [4, 4] and state["epoch"] == 1 and state["acc"] == state["best_acc"]
    assert state["state_dict"]["module.conv1.pweight"].shape == (16, 3, 3, 3, 4)


def test_evaluation_repeats_what_convert_found(digits_run: Path, bsq: Bsq) -> None:
    result = json.loads((digits_run / "bits8/result.json").read_text())
    said = bsq("cifar_finetune", *NET, "--model", digits_run / "bits8/checkpoint.pth.tar", "--bin", "--evaluate").stdout
    assert said.count(f"Accuracy: {result['top1']:.2f}%") == 3
    lines = said.splitlines()
    assert lines[lines.index("layer1.0.conv1") + 1] == "[8, 0]"
    assert f"]: {result['compression']:.2f} X" in said


def test_float_weights_behind_quantized_activations_come_first(digits_run: Path) -> None:
    plain, bits = (json.loads((digits_run / name / "result.json").read_text()) for name in ("float", "bits8"))
    assert abs(bits["top1_float"] - plain["top1"]) < 15 and abs(bits["top1"] - bits["top1_float"]) < 5


def test_widths_from_another_checkpoint(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    table = {name: [3, 0] for name in nbit_dict(lowbit.load(digits_run / "bits8/checkpoint.pth.tar"))}
    table |= {"conv1": [8, 0], "layer2.0.conv1": [0, 0], "fc": [5, 2]}
    scheme = changed(digits_run / "bits8/checkpoint.pth.tar", tmp_path / "scheme.pth.tar", Nbit_dict=table)
    # the file's own planes have 8 bits: only its Nbit_dict is read
    model = digits_run / "float/checkpoint.pth.tar"
    said = bsq("convert", *NET, "--model", model, "--dict", scheme, "--Nbits", 6, "-c", tmp_path / "c").stdout
    found = json.loads((tmp_path / "c/result.json").read_text())["bits"]
    assert found == {**table, "layer2.0.conv1": [0, 0]}
    assert f"module.layer2.0.conv1\nWeight:{ZEROS}\n" in said
    loaded = lowbit.load(tmp_path / "c/checkpoint.pth.tar")
    assert nbit_dict(loaded) == found


def test_a_bias_of_width_0_keeps_nbits(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """`--preset hawq` and the authors' lists give biases no width: theirs is --Nbits."""
    bsq("convert", "-d", "digits", "-a", "resnet20", "--preset", "hawq", "--Nbits", 7, "-c", tmp_path / "c")
    bits = json.loads((tmp_path / "c/result.json").read_text())["bits"]
    assert bits["fc"] == [3, 7] and bits["conv1"] == [8, 0]
    assert {bits[f"layer1.{b}.conv2"][0] for b in (0, 1)} == {6} and bits["layer1.2.conv1"] == [8, 0]
    assert {bits[f"layer{s}.{b}.conv{c}"][0] for s in (2,) for b in range(3) for c in (1, 2)} == {3}
    assert {bits[f"layer3.{b}.conv{c}"][0] for b in range(3) for c in (1, 2)} == {2}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("widths", [False, True])
def test_files_are_read_by_content(digits_run: Path, bsq: Bsq, tmp_path: Path, bare: bool, widths: bool) -> None:
    """The authors' files: with and without `module.`, with and without Nbit_dict, and nothing else of ours."""
    state = state_of(digits_run / "bits8/checkpoint.pth.tar")
    tensors = {key.removeprefix("module.") if bare else key: value for key, value in state["state_dict"].items()}
    torch.save({"state_dict": tensors, **({"Nbit_dict": state["Nbit_dict"]} if widths else {})}, tmp_path / "old.tar")
    result = json.loads((digits_run / "bits8/result.json").read_text())
    said = bsq("cifar_finetune", *NET, "--model", tmp_path / "old.tar", "--evaluate", "--bin").stdout
    assert said.count(f"Accuracy: {result['top1']:.2f}%") == 3
    ours, theirs = lowbit.load(digits_run / "bits8/checkpoint.pth.tar"), lowbit.load(tmp_path / "old.tar")
    assert torch.equal(ours(pictures()), theirs(pictures()))


def test_finetune_form_is_read_too(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    model = to_finetune_(lowbit.load(digits_run / "bits8/checkpoint.pth.tar"))
    path = changed(digits_run / "bits8/checkpoint.pth.tar", tmp_path / "ft.tar", state_dict=model.state_dict())
    result = json.loads((digits_run / "bits8/result.json").read_text())
    said = bsq("cifar_finetune", *NET, "--model", path, "--evaluate", "--bin").stdout
    assert said.count(f"Accuracy: {result['top1']:.2f}%") == 3
    assert torch.equal(to_bit_form_(lowbit.load(path))(pictures()), model(pictures()))


def test_pact(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Spec 5 and 7: convert merges into the net's own state, evaluation wants the activations of the conversion."""
    model, out = digits_run / "float/checkpoint.pth.tar", tmp_path / "c"
    bsq("convert", *NET, "--Nbits", 8, "--act", 3, "--model", model, "-c", out)
    state = state_of(out / "checkpoint.pth.tar")["state_dict"]
    assert sum(key.endswith(".alpha") for key in state) == 6 and state["module.layer1.0.relu1.alpha"] == 10
    evaluate = ("cifar_finetune", *NET, "--evaluate", "--bin", "--model")
    assert "module.layer1.0.relu1.alpha 10.000000" in bsq(*evaluate, out / "checkpoint.pth.tar", "--act", 2).stdout
    wrong = bsq(*evaluate, out / "checkpoint.pth.tar", "--act", 4, code=2).stderr
    assert "PACT" in wrong and "--act" in wrong
    wrong = bsq(*evaluate, digits_run / "bits8/checkpoint.pth.tar", "--act", 3, code=2).stderr
    assert "PACT" in wrong and "convert" in wrong


def test_running_ranges_are_calibrated_and_kept(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    out, model = tmp_path / "c", digits_run / "float/checkpoint.pth.tar"
    line = ("--act-range", "running", "--limit-train", 200, "--train-batch", 50)
    bsq("convert", *NET, "--Nbits", 8, *line, "--model", model, "-c", out)
    state = state_of(out / "checkpoint.pth.tar")["state_dict"]
    ranges = [value for key, value in state.items() if key.endswith(".largest")]
    assert len(ranges) == 6 and all(0 < value <= 6 for value in ranges)
    result = json.loads((out / "result.json").read_text())
    evaluate = ("cifar_finetune", *NET, "--model", out / "checkpoint.pth.tar", "--evaluate", "--bin")
    for batch in (100, 7):  # no longer a function of what else is in the batch
        said = bsq(*evaluate, "--act-range", "running", "--test-batch", batch).stdout
        assert said.count(f"Accuracy: {result['top1']:.2f}%") == 3
    bsq(*evaluate, "--act-range", "batch")


def test_a_stop_in_calibration_and_evaluation(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    for extra in ((), ("--act-range", "running")):
        signals.request_stop()
        try:
            bsq("convert", *NET, *extra, "-c", tmp_path / f"c{len(extra)}", code=75)
        finally:
            signals.clear()
        assert not (tmp_path / f"c{len(extra)}" / "checkpoint.pth.tar").exists()


def test_packed_export(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    model = digits_run / "bits8/checkpoint.pth.tar"
    bsq("export", "--model", model, "--format", "packed", "--keep-batch-ranges", "-c", tmp_path / "p")
    packed, made = lowbit.load(tmp_path / "p/packed.safetensors"), lowbit.load(model)
    assert torch.allclose(packed(pictures()), made(pictures()), atol=1e-5)
    floats = (digits_run / "bits8/backbone.safetensors").stat().st_size
    assert (tmp_path / "p/packed.safetensors").stat().st_size < floats / 2
    assert model.stat().st_size < floats  # planes as bits, no optimizer


def test_dry_run_writes_nothing(bsq: Bsq, tmp_path: Path) -> None:
    plan = bsq("convert", *NET, "-c", tmp_path / "c", "--dry-run").stdout
    assert "pictures: 360\n" in plan and "evaluations: 2\n" in plan and "activations quantized: 6 of 7\n" in plan
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes of noise."""
    root, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in "abcd":
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_any_timm_classifier_on_an_image_folder(image_folder: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Depthwise convolutions, biases, batch norm with activations inside, other activation functions."""
    common = ("-d", "folder", "--data", image_folder, "-a", "test_efficientnet", "-j", 0, "--test-batch", 4)
    out = tmp_path / "c"
    bsq("convert", *common, "--Nbits", 8, "--act", 6, "--exclude", "conv_stem", "--act-include", "*.act", "-c", out)
    result = json.loads((out / "result.json").read_text())
    assert "conv_stem" not in result["bits"] and result["bits"]["classifier"] == [8, 0]  # its bias is zero
    again = bsq("cifar_finetune", *common, "--act", 6, "--model", out / "checkpoint.pth.tar", "--evaluate").stdout
    assert again.count(f"Accuracy: {result['top1']:.2f}%") == 3
    assert state_of(out / "checkpoint.pth.tar")["activations"]
    assert lowbit.load(out / "checkpoint.pth.tar")(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    kept = bsq("cifar_finetune", *common, "--model", out / "checkpoint.pth.tar", "--evaluate").stdout
    assert f"Activations quantized: {result['activations_quantized']} of 11\n" in kept, "as its file says"
    state = state_of(out / "checkpoint.pth.tar")
    torch.save({**state, "activations": {}}, tmp_path / "float.tar")  # as releases before made of such nets
    assert "quantized: 0 of 11\n" in bsq("cifar_finetune", *common, "--model", tmp_path / "float.tar", "-e").stdout


def test_how_many_activations_are_quantized_is_said(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    model = digits_run / "bits8/checkpoint.pth.tar"
    said = bsq("report", "--model", model, "--output", tmp_path / "r").stdout
    report = json.loads((tmp_path / "r/report.json").read_text())
    assert "activations quantized: 6 of 7\n" in said
    assert (report["activations_quantized"], report["activations"]) == (6, 7)
    assert "Activations quantized: 6 of 7\n" in bsq("cifar_finetune", *NET, "--model", model, "--evaluate").stdout


def test_act_32_is_float_and_said_once(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    start = digits_run / "float/checkpoint.pth.tar"
    done = bsq("convert", *NET, "--Nbits", 8, "--act", 32, "--model", start, "-c", tmp_path / "c")
    assert done.stderr.count("activations stay float") == 1
    assert done.stdout.count("Activations quantized: 0 of 7\n") == 2  # of the net before and after
    configs = state_of(tmp_path / "c/checkpoint.pth.tar")["activations"].values()
    assert {(config["bits"], config["function"]) for config in configs} == {(0, "relu6")}
    again = ("cifar_finetune", *NET, "--act", 17, "--model", tmp_path / "c/checkpoint.pth.tar", "--evaluate")
    assert (
        bsq(*again).stdout.count(f"Accuracy: {json.loads((tmp_path / 'c/result.json').read_text())['top1']:.2f}%") == 3
    )
    assert "--act" in bsq("convert", *NET, "--act", 33, code=2).stderr


def test_two_processes_evaluate_what_one_does(digits_run: Path, processes: Any, tmp_path: Path) -> None:
    """Whole batches go to processes, so ranges of batches and figures are those of one process; one of them writes."""
    model = digits_run / "bits8/checkpoint.pth.tar"
    args = ("cifar_finetune", *NET, "--model", model, "--evaluate", "--bin", "-c", tmp_path / "e")
    done = processes.start(args, world=2).wait(0, 0)
    one, two = (json.loads((f / "result.json").read_text()) for f in (digits_run / "bits8", tmp_path / "e"))
    assert one["top1"] == two["top1"] and one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    assert done.said(0).count("Accuracy") == 3 and done.said(1) == ""
