"""`s2bnn report`: real and binary operations and parameters of a net, by layer and in all.

OPs = real multiply-accumulates + binary ones / 64, a layer being binary where weight and input have one bit each (step
2); convolutions and linear layers are counted. Without a file it is the net of `--student` at `--step`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from lowbit.cost import cost
from lowbit.files import replace_file, write_json
from lowbit.models.create import create_model, picture_settings
from lowbit.options import RunOptions
from lowbit.quant.binary import STEPS, binarize_
from lowbit.train import console
from lowbit.train.folder import RunFolder
from s2bnn.commands import FILES
from s2bnn.load import Student, open_student
from s2bnn.options import FileOptions

CLASSES, STEP = 1000, 2  # of a net without a file
TOTALS = ("real_macs", "binary_macs", "ops", "parameters", "binary_parameters", "bytes")
OF_LAYER = ("name", "kind", "parameters", "bits", "input_bits", "macs", "binary_macs", "bytes")


def describe(model: nn.Module, arch: str, step: int, size: tuple[int, int, int]) -> dict[str, Any]:
    """Everything that the report shows, as plain values.

    Args:
        model: at its step.
        arch: timm name.
        step: of `lowbit.quant.binary.STEPS`.
        size: (C, H, W) of a picture.

    Raises:
        InputError: the net does not take such pictures.
    """
    found = cost(model, size)
    totals = {name: getattr(found, name) for name in TOTALS}
    layers = [{name: getattr(layer, name) for name in OF_LAYER} for layer in found.layers]
    facts = {"student": arch, "step": step, "meaning": STEPS[step], "input_size": list(size)}
    return {**facts, **totals, "bytes_float": 4 * found.parameters, "layers": layers}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """As Markdown: the layers that compute, then the whole net."""
    yield "| layer | parameters | bits | real MACs | binary MACs |"
    yield "|---|---|---|---|---|"
    for layer in report["layers"]:
        if layer["macs"]:
            real, bits = layer["macs"] - layer["binary_macs"], f"{layer['bits']} x {layer['input_bits'] or 32}"
            yield f"| {layer['name']} | {layer['parameters']:,} | {bits} | {real:,} | {layer['binary_macs']:,} |"
    yield ""
    yield "{student}, step {step} ({meaning}), one picture of {input_size}:".format(**report)
    yield "real multiply-accumulates {real_macs:,}, binary {binary_macs:,}, OPs {ops:,}".format(**report)
    yield "parameters {parameters:,}, binary {binary_parameters:,}".format(**report)
    yield "bytes {bytes:,}, as floats {bytes_float:,}".format(**report)


def open_net(own: FileOptions) -> Student:
    """The net of the file, or without one a new net.

    Raises:
        InputError: see `s2bnn.load.open_student`; an unknown net.
    """
    if own.file is not None:
        return open_student(own.file, own.student, own.step, own.classes)
    step, classes = STEP if own.step is None else own.step, CLASSES if own.classes is None else own.classes
    arch = own.student or "reactnet_a"
    return Student(binarize_(create_model(arch, num_classes=classes), step), arch, step, {})


def report(options: RunOptions, own: FileOptions) -> dict[str, Any]:
    """The table on stdout; with `--output` also `report.json` and `table.md`.

    Raises:
        InputError: before anything is written.
    """
    if options.output is not None:
        RunFolder.check(options.output, overwrite=options.overwrite, inputs=(own.file,), files=FILES)
    net = open_net(own)
    stated = net.said.get("input_size") or picture_settings(net.model)["input_size"]
    channels, height, width = stated if own.image_size is None else (stated[0], own.image_size, own.image_size)
    found = describe(net.model, net.arch, net.step, (channels, height, width))
    lines = list(table(found))
    if options.output is not None:
        config = {"command": "report", **asdict(options), **asdict(own)}
        with RunFolder.open(options.output, config, overwrite=options.overwrite, files=FILES) as folder:
            write_json(folder.path / "report.json", found)
            replace_file(folder.path / "table.md", "".join(f"{line}\n" for line in lines).encode())
    console.say(*lines)
    return found
