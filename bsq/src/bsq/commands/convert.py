"""`bsq convert`: a float net into bit planes, evaluated before and after.

Deviations from the authors' programs are listed in bsq/README.md.
"""

from collections.abc import Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bsq import checkpoint, load
from bsq.checkpoint import Saved
from bsq.commands import opening, printed
from bsq.commands.evaluating import Evaluator
from bsq.commands.report import summary
from bsq.compression import size
from bsq.network import coverable, requantize_, to_bits_
from bsq.options import HAWQ_RESNET20, ActOptions, NetOptions, WidthOptions
from lowbit.checkpoint.binary import stored_bytes
from lowbit.checkpoint.write import BEST, CHECKPOINT, write_checkpoint
from lowbit.errors import InputError
from lowbit.evaluate.ranges import open_ranges
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder
from lowbit.train.session import Session

MAX_BITS_OF_CONVERT = 10  # the ceiling of convert's re-quantisation, a no-op on fresh bits; training's is 8


def convert(
    options: RunOptions, net: NetOptions, acts: ActOptions, widths: WidthOptions, calibration_batch: int = 128
) -> nn.Module | None:
    """Convert and evaluate. None after a dry run.

    Args:
        options: of every command.
        net: which net and pictures.
        acts: activation quantization.
        widths: which layers get how many bits.
        calibration_batch: pictures per batch that set running activation ranges.

    Returns:
        The net in bit form.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came while evaluating or calibrating.
    """
    with opening.open_session(options, net, widths.scheme) as session:
        opened = opening.open_net(session, net)
        model = opening.quantize_chosen_activations_(opened.model, acts)
        if opened.saved is not None:
            load.load_float_(model, opened.saved)
        evaluator = Evaluator(session, net, opened.recipes[1])
        table = given_widths(widths, net, model, opened.saved)
        exclude = widths.exclude or None
        bits = to_bits_(deepcopy(model), widths.bits, widths=table, include=widths.include, exclude=exclude)
        disk = 2 * stored_bytes(bits.state_dict()) + stored_bytes(model.state_dict())
        if evaluator.planned(model, evaluations=2, disk=disk):
            return None
        open_ranges(model, session)
        with session.open_folder("convert", opening.described(net, acts, widths), evaluator.sizes) as folder:
            session.say(*printed.parameters(model))
            evaluator.calibrate(model, calibration_batch)
            before = evaluator.scores(model)
            session.say(printed.accuracy(before))
            del model
            evaluator.calibrate(bits, calibration_batch)
            session.say(*printed.planes(bits), *printed.widths(bits), *printed.parameters(bits))
            requantize_(bits, MAX_BITS_OF_CONVERT)
            after = evaluator.scores(bits)
            session.say(*printed.planes(bits), printed.accuracy(after), printed.compression(size(bits)))
            header = {**opened.header(bits), "acc": after.top1, "best_acc": after.top1}
            _save(session, folder, bits, header)
            values = {"top1_float": before.top1, **summary(bits), **evaluator.sizes}
            session.write_result(folder, {**after.results(), **values})
    return bits


def given_widths(widths: WidthOptions, net: NetOptions, model: nn.Module, saved: Saved | None) -> Mapping[str, Any]:
    """Each layer's bits by `--dict`, `--preset`, or the float checkpoint's own `Nbit_dict`; {}: `--Nbits` for all.

    Raises:
        InputError: the file has no widths, or the preset is for another net.
    """
    if widths.scheme is not None:
        found = checkpoint.read(widths.scheme).widths
        if not found:
            raise InputError(f"--dict {widths.scheme} holds no Nbit_dict: name a checkpoint in bit representation")
        return found
    if widths.preset is not None:
        if net.arch != "cifar_resnet20_1x1":
            raise InputError(f"--preset {widths.preset} gives the widths of ResNet-20, not of {net.arch}: use --dict")
        names = coverable(model)
        return {name: (bits, 0) for p, bits in HAWQ_RESNET20.items() for name in names if fnmatchcase(name, p)}
    return {} if saved is None else saved.widths


def _save(session: Session, folder: RunFolder | None, model: nn.Module, header: Mapping[str, Any]) -> None:
    """The converted net under both of the authors' names, and its backbone as floats."""
    if folder is None or not session.accelerator.is_main_process:
        return
    state = {**header, "epoch": 1, "step": 0, "optimizer": {}, "state_dict": checkpoint.state_dict(model)}
    for name in (CHECKPOINT, BEST):
        write_checkpoint(folder.path / name, state, keep_previous=False)
    save_backbone(model, folder.path / "backbone.safetensors", str(header["arch"]), header["pretrained_cfg"])
