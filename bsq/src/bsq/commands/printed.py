"""What the authors' programs printed, line by line; all of it goes to stdout."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bsq.bit_layer import BitLayer
from bsq.checkpoint import PREFIX
from bsq.compression import Size
from bsq.network import nbit_dict, ones_per_plane
from lowbit.evaluate.classify import Scores
from lowbit.models.surgery import of_kind
from lowbit.quant.activations import QuantActivation
from lowbit.quant.places import quantized_activations
from lowbit.train import console


def parameters(model: nn.Module) -> Iterator[str]:
    """Trainable parameters (in bit form: planes) with shape and size, and their sum; on a terminal the sum alone."""
    listed, total = not console.record_on_terminal(), 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if listed:
            yield f"{PREFIX + name:40} {tuple(parameter.shape)!s:28} {parameter.numel():>12,}"
    yield f"    Total params: {total / 1e6:.2f}M ({total:,})"
    if any(isinstance(module, QuantActivation | BitLayer) for module in model.modules()):
        yield "    Activations quantized: {} of {}".format(*quantized_activations(model))


def accuracy(scores: Scores) -> str:
    """One evaluation."""
    return f"Accuracy: {scores.top1:.2f}%"


def test_line(scores: Scores) -> str:
    """One evaluation with its loss."""
    return f" Test Loss:  {scores.loss:.8f}, Test Acc:  {scores.top1:.2f}"


def planes(model: nn.Module) -> Iterator[str]:
    """Percent of the weights whose bit is set, per plane of each layer, most significant first."""
    for name, table in ones_per_plane(model).items():
        yield PREFIX + name
        for key, percents in table.items():
            yield f"{key.capitalize()}:" + ", ".join(f"{percent:6.2f}%" for percent in percents)


def widths(model: nn.Module) -> Iterator[str]:
    """Each layer's bits of weight and bias."""
    for name, pair in nbit_dict(model).items():
        yield name
        yield str(list(pair))


def after_pruning(scores: Scores) -> str:
    """The evaluation that follows a re-quantisation."""
    return f" Test Loss after pruning:  {scores.loss:.8f}, Test Acc:  {scores.top1:.2f}"


def compression(size: Size, final: bool = False) -> str:
    """The authors' rate: bit layers alone, the sign not counted."""
    title = "Final compression rate" if final else "Compression rate after pruning"
    return f" {title} [{size.weights}*32 / {size.bits}]: {size.compression:.2f} X"


def alphas(model: nn.Module) -> Iterator[str]:
    """PACT's learned clips."""
    for name, quantizer in of_kind(model, QuantActivation).items():
        if quantizer.alpha is not None:
            yield f"{PREFIX}{name}.alpha {quantizer.alpha.item():.6f}"


COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.")
PRUNE_COLUMNS = (*COLUMNS, "Reg Loss", "Comp")


def log_text(lines: Sequence[Mapping[str, Any]], compression: float | None = None) -> str:
    """The authors' `log.txt` out of `metrics.jsonl`: one row for each epoch that was also evaluated.

    Args:
        lines: of the metrics; the training loss is the cross-entropy alone.
        compression: of the net that a bit training starts from, which has two columns more: the regulariser after the
            epoch, and the compression of the last re-quantisation.
    """
    evaluated = {line["epoch"]: line for line in lines if line["event"] == "eval"}
    in_bits, columns = compression is not None, COLUMNS if compression is None else PRUNE_COLUMNS
    rows = ["\t".join(columns) + "\t"]
    for line in lines:
        if line["event"] == "requantize":
            compression = line["compression"]
        if line["event"] == "epoch" and line["epoch"] in evaluated:
            valid = evaluated[line["epoch"]]
            values = [line["lr"], line.get("ce", line["loss"]), valid["loss"], line["top1"], valid["top1"]]
            values += [valid["reg"], compression] if in_bits else []
            rows.append("".join(f"{math.inf if value is None else value:.6f}\t" for value in values))  # JSON has no inf
    return "\n".join(rows) + "\n"
