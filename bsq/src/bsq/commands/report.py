"""What a net in bits looks like: each layer's bits, how many ones each plane holds, and what the net weighs.

Magnitude bits and stored bits (with the sign) are both given; the compressions are those of `bsq.compression`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bsq.bit_layer import BIAS, WEIGHT
from bsq.commands import opening
from bsq.compression import size
from bsq.network import binary, bit_layers, nbit_dict, ones_per_plane, to_bit_form_
from bsq.options import NetOptions
from lowbit.cost import cost
from lowbit.files import save_figure
from lowbit.options import RunOptions
from lowbit.quant.places import quantized_activations
from lowbit.train.report import write_report

COMPRESSIONS = {
    "compression": "bit layers, sign not counted (the authors')",
    "compression_signed": "bit layers with their signs",
    "compression_all": "the whole net: signs, shortcuts, batch norm, scales",
}


def summary(model: nn.Module) -> dict[str, Any]:
    """The whole net in numbers, as in `result.json`: bits by layer, their sum, the compressions, its activations."""
    found, (rounded, activations) = size(model), quantized_activations(model)
    numbers = {name: getattr(found, name) for name in ("weights", "float_values", "scales", *COMPRESSIONS)}
    return {"bits": nbit_dict(model), "total_bits": found.bits, "total_bits_signed": found.bits_signed, **numbers,
            "activations_quantized": rounded, "activations": activations}  # fmt: skip


def describe(model: nn.Module, input_size: Sequence[int]) -> dict[str, Any]:
    """Everything that the report shows, as plain values; a net in finetune form is brought into bit form.

    Args:
        model: with layers in bits.
        input_size: (C, H, W) of a picture, for the work per picture.

    Returns:
        `summary`; `layers`: {name: numbers of weights and biases, their magnitude bits, stored bits of a weight,
        percent of ones per plane (most significant first), whether all planes are binary (re-quantised), MACs, BOPs,
        bytes}; and `cost`: MACs, BOPs and bytes of the whole net (`lowbit.cost`).
    """
    to_bit_form_(model)
    channels, height, width = input_size
    costs = cost(model, (channels, height, width))
    work = {
        row.name: {key: getattr(row, key) for key in ("macs", "bops", "bytes", "input_bits")} for row in costs.layers
    }
    layers, ones = {}, ones_per_plane(model)
    for name, layer in bit_layers(model).items():
        bits = layer.bits(WEIGHT)
        layers[name] = {
            "weights": layer.numel(WEIGHT), "bits": bits, "stored_bits": bits + 1 if bits else 0,
            "biases": layer.numel(BIAS), "bias_bits": layer.bits(BIAS),
            "ones_percent": ones[name], "binary": binary(layer), **work[name],
        }  # fmt: skip
    totals = {"macs": costs.macs, "bops": costs.bops, "bytes": costs.bytes, "input_size": list(input_size)}
    floats = {row.name: row.parameters for row in costs.layers if row.name not in layers and row.parameters}
    return {**summary(model), "cost": totals, "layers": layers, "float_layers": floats}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as text: a row for each layer, then the whole net."""
    longest = max(len(name) for name in (*report["layers"], *report["float_layers"]))
    columns = f"{'layer':{longest}} {'weights':>10} {'bits':>5} {'stored':>6} {'input':>5}"
    yield f"{columns}  % of ones per plane, most significant first"
    for name, layer in report["layers"].items():
        ones = " ".join(f"{percent:6.2f}" for percent in layer["ones_percent"]["weight"])
        note = "" if layer["binary"] else "  (not re-quantised: planes are not binary)"
        widths = f"{layer['bits']:>5} {layer['stored_bits']:>6} {layer['input_bits'] or 'float':>5}"
        yield f"{name:{longest}} {layer['weights']:>10,} {widths}  {ones}{note}"
        if layer["biases"]:
            ones = " ".join(f"{percent:6.2f}" for percent in layer["ones_percent"]["bias"])
            stored = layer["bias_bits"] + 1 if layer["bias_bits"] else 0
            yield f"{'  bias':{longest}} {layer['biases']:>10,} {layer['bias_bits']:>5} {stored:>6} {'':>5}  {ones}"
    for name, count in report["float_layers"].items():
        yield f"{name:{longest}} {count:>10,} {'float':>5}"
    yield f"weights {report['weights']:,}, bits {report['total_bits']:,} ({report['total_bits_signed']:,} with signs)"
    yield "activations quantized: {activations_quantized} of {activations}".format(**report)
    if report.get("top1") is not None:
        yield "top-1 {top1:.2f} %, as the file says".format(**report)
    yield "one picture of {input_size}: {macs:,} MACs, {bops:,} BOPs; {bytes:,} bytes".format(**report["cost"])
    for name, meaning in COMPRESSIONS.items():
        yield f"{name} {report[name]:.2f}x  {meaning}"


def figure_of(report: Mapping[str, Any]) -> Any:
    """Bits of weights and inputs by layer, and ones per plane as a map (rows: layers; columns: planes)."""
    from matplotlib.figure import Figure

    names = list(report["layers"])
    bits = [report["layers"][name]["bits"] for name in names]
    ones = [report["layers"][name]["ones_percent"]["weight"] for name in names]
    deepest = max(len(row) for row in ones)  # a dead layer has 0 bits, but may hold empty planes
    rows = [[float("nan")] * (deepest - len(row)) + list(row) for row in ones]
    figure = Figure(figsize=(9, 1.8 + 0.25 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(range(len(names)), bits, label="weights, without sign")
    inputs = [report["layers"][name]["input_bits"] or float("nan") for name in names]
    left.scatter(inputs, range(len(names)), color="C1", zorder=2, label="quantized inputs")
    left.set(xlabel="bits", yticks=range(len(names)), yticklabels=names)
    left.invert_yaxis()
    ratios = "smaller {compression:.2f}x, with signs {compression_signed:.2f}x, whole net {compression_all:.2f}x"
    top1 = "" if report.get("top1") is None else "top-1 {top1:.2f} %; "
    figure.suptitle((top1 + ratios).format(**report), fontsize="medium")
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    image = right.imshow(rows, aspect="auto", vmin=0, vmax=50, cmap="viridis")
    right.set(xlabel="plane", xticks=range(deepest), xticklabels=[f"$2^{{{i}}}$" for i in reversed(range(deepest))])
    right.set_title("% of weights whose bit is set", fontsize="medium")
    figure.colorbar(image, ax=right)
    return figure


def report(options: RunOptions, net: NetOptions) -> dict[str, Any]:
    """`bsq report`: the table on stdout; with `--output` also `report.json` and `report.png`.

    Raises:
        InputError: not a checkpoint of bits, or a folder that holds a run.
    """

    def made() -> tuple[dict[str, Any], Iterator[str]]:
        model, saved, recipe = opening.read_bits(net)
        found = {**describe(model, recipe["input_size"]), "top1": saved.top1}
        return found, table(found)

    def more(folder: Path, found: Mapping[str, Any], lines: Sequence[str]) -> None:
        save_figure(figure_of(found), folder / "report.png")

    return write_report(options, net, net.model, opening.FILES, made, more)
