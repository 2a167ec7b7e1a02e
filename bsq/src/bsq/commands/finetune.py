"""`bsq cifar_finetune`: evaluate a net in bits, and train it on at the widths that were found."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bsq import checkpoint, load
from bsq.commands import opening, printed, training
from bsq.commands.evaluating import Evaluator
from bsq.commands.report import summary
from bsq.compression import size
from bsq.network import Width, nbit_dict, prune_, to_bit_form_, to_finetune_
from bsq.objective import FineTune
from bsq.options import ActOptions, NetOptions
from lowbit.checkpoint.read import read_checkpoint
from lowbit.checkpoint.write import BEST, write_checkpoint
from lowbit.evaluate.classify import Scores
from lowbit.evaluate.ranges import open_ranges
from lowbit.options import RunOptions, SgdOptions
from lowbit.quant.layers import to_plain_
from lowbit.train.job import read_start
from lowbit.train.loop import Result


def finetune(
    options: RunOptions, net: NetOptions, acts: ActOptions, sgd: SgdOptions, evaluate: bool = False
) -> Result | Scores | None:
    """Evaluate as loaded, pruned and in finetune form; then, without `evaluate`, train. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came while evaluating or calibrating, or training; a training is saved.
    """
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net, acts, required=True)
        model, saved = opened.model, opened.saved
        assert saved is not None
        load.need_bits(saved)
        load.check_activations(saved, model)
        to_bit_form_(load.load_planes_(model, saved))
        evaluator = Evaluator(session, net, opened.recipes[1])

        def floor(name: str) -> int:
            return saved.floors.get(name, 1)

        if evaluate:
            return _evaluate(evaluator, model, acts, sgd.train_batch, floor)
        loaded = deepcopy(model)  # for the record: fine-tuning form rounds no plane, and the way back would
        model = session.place(to_finetune_(prune_(model, at_least=floor)), sync_batchnorm=True)
        header = {**opened.header(model), checkpoint.FLOORS: saved.floors}
        start, accuracies = read_start(session), training.Accuracies(session.resumed())
        job = training.training_job(
            evaluator, "cifar_finetune", FineTune(model, sgd), opened.recipes[0], header, sgd, acts, start=start,
            accuracies=accuracies,
        )  # fmt: skip
        training.check(job)
        if job.planned(evaluator.facts(model)):
            return None
        with job.open() as folder:
            session.say(*printed.parameters(model))
            if not job.resumed:
                loaded = session.place(loaded, sync_batchnorm=True)
                start["top1_start"] = _to_widths(evaluator, loaded, sgd.train_batch, floor).top1
                model.load_state_dict(loaded.state_dict())  # the ranges of activations that were set
            del loaded
            result = job.fit(folder, [training.Validation(evaluator, job, folder, accuracies)])
            if result.best:
                job.export(folder, result, partial(_save_best, deepcopy(model), header, result.best))
            training.finish(job, folder, result, {**start, **summary(model)})
    return result


def _to_widths(evaluator: Evaluator, model: nn.Module, calibration_batch: int, floor: Width) -> Scores:
    """Bit form into finetune form, evaluated on the way; the record of the authors' program."""
    session = evaluator.session
    evaluator.calibrate(model, calibration_batch, only_unset=True)
    session.say(printed.accuracy(evaluator.scores(model)))
    prune_(model, at_least=floor)
    session.say(*printed.planes(model), printed.accuracy(evaluator.scores(model)))
    scores = evaluator.scores(to_finetune_(model))
    session.say(printed.accuracy(scores), *printed.widths(model), printed.compression(size(model)))
    return scores


def _evaluate(
    evaluator: Evaluator, model: nn.Module, acts: ActOptions, calibration_batch: int, floor: Width
) -> Scores | None:
    if evaluator.planned(model):
        return None
    session = evaluator.session
    open_ranges(model, session)
    with session.open_folder("cifar_finetune", opening.described(evaluator.net, acts), evaluator.sizes) as folder:
        session.say(*printed.parameters(model))
        scores = _to_widths(evaluator, model, calibration_batch, floor)
        session.say(*printed.alphas(model))
        session.write_result(folder, {**scores.results(), **summary(model), **evaluator.sizes})
    return scores


def _save_best(net: nn.Module, head: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """The best epoch in bit form (`best_bin.pth.tar`) and with its weights as floats (`best_float.pth.tar`)."""
    best = read_checkpoint(folder / BEST)
    net.load_state_dict({key.removeprefix(checkpoint.PREFIX): value for key, value in best["state_dict"].items()})
    common = {**head, **{key: best[key] for key in ("epoch", "step")}, "optimizer": {}}
    common |= dict.fromkeys(("acc", "best_acc"), found["top1"])
    to_bit_form_(net)
    bits = {**common, "Nbit_dict": nbit_dict(net), "state_dict": checkpoint.state_dict(net)}
    write_checkpoint(folder / "best_bin.pth.tar", bits, keep_previous=False)
    floats = {**bits, "state_dict": checkpoint.state_dict(to_plain_(net))}  # with the widths, for `convert`
    write_checkpoint(folder / "best_float.pth.tar", floats, keep_previous=False)
