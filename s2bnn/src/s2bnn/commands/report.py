"""`s2bnn report`: real and binary operations and parameters of a net, by layer and in all.

OPs = real multiply-accumulates + binary ones / 64, a layer being binary where weight and input have one bit each (step
2); convolutions and linear layers are counted. Without a file it is the net of `--student` at `--step`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.checkpoint.header import PictureSize, picture_size
from lowbit.cost import cost
from lowbit.errors import naming
from lowbit.files import replace_file
from lowbit.models.create import create_model, picture_settings
from lowbit.options import RunOptions
from lowbit.quant.binary import STEPS, binarize_
from lowbit.train.report import write_report
from s2bnn.commands import FILES
from s2bnn.load import Student, open_student
from s2bnn.options import FileOptions

CLASSES, STEP = 1000, 2  # of a net without a file
TOTALS = ("real_macs", "binary_macs", "ops", "parameters", "binary_parameters", "bytes")
OF_LAYER = ("name", "kind", "parameters", "bits", "input_bits", "macs", "binary_macs", "bytes")


def describe(net: Student, size: PictureSize) -> dict[str, Any]:
    """Everything that the report shows, as plain values, of a picture of `size` (C, H, W).

    Raises:
        InputError: the net does not take such pictures.
    """
    found = cost(net.model, size)
    facts = {"student": net.arch, "step": net.step, "meaning": STEPS[net.step], "input_size": list(size)}
    totals = {**{name: getattr(found, name) for name in TOTALS}, "bytes_float": 4 * found.parameters}
    return {**facts, **totals, "layers": [{name: getattr(layer, name) for name in OF_LAYER} for layer in found.layers]}


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
    """The net of the file (`s2bnn.load.open_student`), or without one a new net."""
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

    def made() -> tuple[dict[str, Any], Iterator[str]]:
        net = open_net(own)
        with naming(own.file):
            stated = picture_size(net.said.get("input_size") or picture_settings(net.model)["input_size"])
        channels, height, width = stated if own.image_size is None else (stated[0], own.image_size, own.image_size)
        found = describe(net, (channels, height, width))
        return found, table(found)

    def more(folder: Path, found: Mapping[str, Any], lines: Sequence[str]) -> None:
        replace_file(folder / "table.md", "".join(f"{line}\n" for line in lines).encode())

    return write_report(options, own, own.file, FILES, made, more)
