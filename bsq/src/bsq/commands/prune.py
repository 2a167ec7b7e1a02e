"""`bsq cifar_prune_STE`: training in bit form, which finds each layer's precision."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from bsq import checkpoint, load
from bsq.commands import opening, printed, training
from bsq.commands.evaluating import Evaluator
from bsq.commands.opening import Opened
from bsq.commands.report import summary
from bsq.commands.requantised import RequantisedStates, meets
from bsq.compression import size
from bsq.network import bit_layers, nbit_dict, prune_, to_bit_form_, to_bits_
from bsq.objective import BitSparsity
from bsq.options import ActOptions, NetOptions, PruneOptions
from bsq.target import Aim
from lowbit.evaluate.classify import Scores
from lowbit.options import RunOptions, SgdOptions
from lowbit.train.job import read_start
from lowbit.train.loop import Result
from lowbit.train.protocol import Clock, Objective

COMMAND = "cifar_prune_STE"

log = logging.getLogger(__name__)


def prune(
    options: RunOptions, net: NetOptions, acts: ActOptions, sgd: SgdOptions, bits: PruneOptions, evaluate: bool = False
) -> Result | Scores | None:
    """Train in bit form, or only evaluate. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net, acts, required=evaluate)
        model, saved = opened.model, opened.saved
        if saved is None or saved.form == "float":
            if saved is not None:
                load.load_float_(model, saved, new_head=not evaluate)
            to_bits_(model, bits.bits)
        else:
            load.check_activations(saved, model)
            to_bit_form_(load.load_planes_(model, saved))
        evaluator = Evaluator(session, net, opened.recipes[1])
        evaluator.calibrate(model, sgd.train_batch, only_unset=True)
        if evaluate:
            return evaluator.run(COMMAND, model)
        return _train(evaluator, opened, acts, sgd, bits)


def _train(
    evaluator: Evaluator, opened: Opened, acts: ActOptions, sgd: SgdOptions, bits: PruneOptions
) -> Result | None:
    session, names = evaluator.session, list(bit_layers(opened.model))
    ceiling, floor = bits.limits(names)
    net = session.place(prune_(opened.model, at_least=floor), sync_batchnorm=True)
    header = {**opened.header(net), checkpoint.FLOORS: {name: floor(name) for name in names if floor(name) > 1}}
    start = read_start(session) or {"compression_start": size(net).compression}
    first, aim = start.get("compression_start", size(net).compression), None
    if bits.target is not None:
        aim = Aim(bits.decay, first, bits.target)
        aim.check(bit_layers(net), floor)
    states = RequantisedStates(evaluator, header, bits.target)
    strength = bits.decay if bits.lasso or aim is not None else 0.0
    objective = BitSparsity(
        net, sgd, strength=strength, interval=bits.interval, threshold=bits.threshold, ceiling=ceiling, floor=floor,
        evaluate=states, aim=aim,
    )  # fmt: skip
    accuracies = training.Accuracies(session.resumed())
    job = training.training_job(
        evaluator, COMMAND, objective, opened.recipes[0], header, sgd, acts, bits,
        accuracies=accuracies, extra=lambda objective: {**_widths(objective), **states.final}, start=start, best=False,
    )  # fmt: skip
    training.check(job)
    random = opened.saved is None and not session.options.pretrained and not job.resumed
    if job.planned({**evaluator.facts(net), **({"weights": "random, without --model"} if random else {})}):
        return None
    with job.open() as folder:
        session.say(*(["Without --model the weights are random"] if random else []))
        session.say(*printed.parameters(net))
        states.folder = folder
        if not job.resumed:
            scores = evaluator.scores(net)
            start["top1_start"] = scores.top1
            session.say(*printed.planes(net), printed.accuracy(scores))
        validation = training.Validation(evaluator, job, folder, accuracies, compression=first)

        def probe(clock: Clock, _: Objective) -> Mapping[str, float]:
            return validation(clock, objective, reg=objective.reg())

        result = job.fit(folder, [probe])
        values = summary(net)
        if result.finished:
            states.clear()
            session.say(*([] if accuracies.best is None else ["Best acc:", f"{accuracies.best:.2f}"]))
            values |= {**start, "target_compression": bits.target, **_final(evaluator, net, bits.target)}
        training.finish(job, folder, result, values)
    return result


def _final(evaluator: Evaluator, net: nn.Module, target: float | None) -> dict[str, float]:
    """The figures of the re-quantised net that the run ends with."""
    scores, found = evaluator.scores(net), size(net).compression
    if target is not None and not meets(found, target):
        log.warning("--target-compression %g was not met: the net ends at %.2f", target, found)
    return {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}


def _widths(objective: Objective) -> dict[str, Any]:
    """What changes with the widths, in every checkpoint."""
    return {"Nbit_dict": nbit_dict(objective.get_submodule("student"))}
