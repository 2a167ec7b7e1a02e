"""`bsq convert`: a float net into bit planes, evaluated before and after.

Deviations from the authors' programs are listed in bsq/README.md.
"""

import logging
from copy import deepcopy
from typing import Any

from torch import nn

from bsq import checkpoint, load
from bsq.commands import opening, printed
from bsq.commands.evaluating import Session, figures
from bsq.commands.report import summary
from bsq.network import requantize_, to_bits_
from bsq.options import ActOptions, NetOptions, WidthOptions
from bsq.size import size
from lowbit.checkpoint.write import BEST, CHECKPOINT, write_checkpoint
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder

log = logging.getLogger(__name__)

MAX_BITS_OF_CONVERT = 10  # the ceiling of convert's re-quantisation, a no-op on fresh bits; training's is 8


def convert(
    options: RunOptions, net: NetOptions, acts: ActOptions, widths: WidthOptions, calibration_batch: int = 128
) -> nn.Module | None:
    """`bsq convert`: a float net into bit planes, evaluated before and after. None after a dry run.

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
    with Session(options, net, widths.scheme) as session:
        return _convert(session, net, acts, widths, calibration_batch)


def _convert(
    session: Session, net: NetOptions, acts: ActOptions, widths: WidthOptions, calibration_batch: int
) -> nn.Module | None:
    saved = opening.read_model(net)
    session.open_data()
    model = opening.create(session, saved)
    pictures = opening.pictures_of(model, session, saved)
    recipe = session.recipes(model, pictures)[1]
    opening.quantize_activations_(model, acts)
    if saved is not None:
        load.load_float_(model, saved)
    table = opening.given_widths(widths, net, model, saved)
    exclude = widths.exclude or None
    bits = to_bits_(deepcopy(model), widths.bits, widths=table, include=widths.include, exclude=exclude)
    if session.planned(model, recipe, evaluations=2):
        return None
    batch = session.batch_sizes()
    session.open_calibration(model)
    with session.folder("convert", acts, widths, **batch) as folder:
        session.say(*printed.parameters(model))
        session.calibrate(model, recipe, calibration_batch)
        before = session.scores(model, recipe)
        session.say(printed.accuracy(before))
        del model
        session.calibrate(bits, recipe, calibration_batch)
        session.say(*printed.planes(bits), *printed.widths(bits), *printed.parameters(bits))
        requantize_(bits, MAX_BITS_OF_CONVERT)
        after = session.scores(bits, recipe)
        session.say(*printed.planes(bits), printed.accuracy(after), printed.compression(size(bits)))
        head = session.head(bits, pictures, recipe)
        _save(session, folder, bits, {**head, "acc": after.top1, "best_acc": after.top1})
        values = {**figures(after), "top1_float": before.top1, **summary(bits), **batch}
        session.write_result(folder, values)
    return bits


def _save(session: Session, folder: RunFolder | None, model: nn.Module, head: dict[str, Any]) -> None:
    """The converted net under both of the authors' names, and its backbone as floats."""
    if folder is None or not session.accelerator.is_main_process:
        return
    state = {**head, "epoch": 1, "step": 0, "optimizer": {}, "state_dict": checkpoint.state_dict(model)}
    for name in (CHECKPOINT, BEST):
        write_checkpoint(folder.path / name, state, keep_previous=False)
    save_backbone(model, folder.path / "backbone.safetensors", str(session.net.arch))
