"""`bsq cifar_finetune`: evaluate a net in bits, and train it on at the widths that were found."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from bsq import checkpoint, load
from bsq.commands import opening, printed
from bsq.commands.evaluating import Session, figures
from bsq.commands.report import summary
from bsq.commands.training import Phase, run_phase, student
from bsq.network import Width, nbit_dict, prune_, to_bit_form_, to_finetune_
from bsq.objective import FineTune
from bsq.options import ActOptions, NetOptions, SgdOptions
from bsq.size import size
from lowbit.checkpoint.read import read_checkpoint
from lowbit.checkpoint.write import BEST, write_checkpoint
from lowbit.data.recipe import Recipe
from lowbit.evaluate.classify import Scores
from lowbit.options import RunOptions
from lowbit.quant.calibrate import uncalibrated
from lowbit.quant.layers import to_plain_
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result


def finetune(
    options: RunOptions, net: NetOptions, acts: ActOptions, sgd: SgdOptions, evaluate: bool = False
) -> Result | Scores | None:
    """Evaluate as loaded, pruned and in finetune form; then, without `evaluate`, train. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came while evaluating or calibrating, or training; a training is saved.
    """
    with Session(options, net) as session:
        model, saved, recipes, head = opening.open_net(session, net, acts, required=True)
        assert saved is not None
        load.need_bits(saved)
        load.check_activations(saved, model)
        to_bit_form_(load.load_planes_(model, saved))
        floors = saved.floors

        def floor(name: str) -> int:
            return floors.get(name, 1)

        if evaluate:
            return _evaluate(session, model, recipes[1], acts, sgd.train_batch, floor)
        return _train(session, model, acts, sgd, recipes, {**head, checkpoint.FLOORS: floors}, floor)


def _to_widths(session: Session, model: nn.Module, recipe: Recipe, calibration_batch: int, floor: Width) -> Scores:
    """Bit form into finetune form, evaluated on the way; the record of the authors' program."""
    if uncalibrated(model):
        session.calibrate(model, recipe, calibration_batch)
    session.say(printed.accuracy(session.scores(model, recipe)))
    prune_(model, at_least=floor)
    session.say(*printed.planes(model), printed.accuracy(session.scores(model, recipe)))
    scores = session.scores(to_finetune_(model), recipe)
    session.say(printed.accuracy(scores), *printed.widths(model), printed.compression(size(model)))
    return scores


def _evaluate(
    session: Session, model: nn.Module, recipe: Recipe, acts: ActOptions, calibration_batch: int, floor: Width
) -> Scores | None:
    if session.planned(model, recipe):
        return None
    batch = session.batch_sizes()
    session.open_calibration(model)
    with session.folder("cifar_finetune", acts, **batch) as folder:
        session.say(*printed.parameters(model))
        scores = _to_widths(session, model, recipe, calibration_batch, floor)
        session.say(*printed.alphas(model))
        session.write_result(folder, {**figures(scores), **summary(model), **batch})
    return scores


def _train(
    session: Session,
    model: nn.Module,
    acts: ActOptions,
    sgd: SgdOptions,
    recipes: tuple[Recipe, Recipe],
    head: dict[str, Any],
    floor: Width,
) -> Result | None:
    net = student(session, to_finetune_(prune_(model, at_least=floor)))
    at_start: dict[str, float] = {}

    def start() -> None:
        at_start["top1_start"] = _to_widths(session, to_bit_form_(net), recipes[1], sgd.train_batch, floor).top1

    def end(folder: RunFolder | None, result: Result) -> Mapping[str, Any]:
        if folder is not None and result.best and result.finished and session.accelerator.is_main_process:
            _save_best(folder, deepcopy(net), head, result.best)
        return {**at_start, **summary(net)}

    objective = FineTune(net, sgd)
    phase = Phase(
        command="cifar_finetune",
        objective=objective,
        recipes=recipes,
        header={**head, "Nbit_dict": nbit_dict(net)},
        at_start=at_start,
        groups=(acts,),
        start=start,
        end=end,
    )
    return run_phase(session, sgd, phase)


def _save_best(folder: RunFolder, net: nn.Module, head: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The best epoch in bit form (`best_bin.pth.tar`) and with its weights as floats (`best_float.pth.tar`)."""
    best = read_checkpoint(folder.path / BEST)
    net.load_state_dict({key.removeprefix(checkpoint.PREFIX): value for key, value in best["state_dict"].items()})
    common = {**head, "epoch": best["epoch"], "step": best["step"], "acc": found["top1"], "best_acc": found["top1"]}
    common["optimizer"] = {}
    to_bit_form_(net)
    bits = {**common, "Nbit_dict": nbit_dict(net), "state_dict": checkpoint.state_dict(net)}
    write_checkpoint(folder.path / "best_bin.pth.tar", bits, keep_previous=False)
    floats = {key: value for key, value in common.items() if key != "Nbit_dict"}
    floats["state_dict"] = checkpoint.state_dict(to_plain_(net))
    write_checkpoint(folder.path / "best_float.pth.tar", floats, keep_previous=False)
