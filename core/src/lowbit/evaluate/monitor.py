"""What a pretraining without labels is monitored by: k-NN accuracy and collapse of its encoder, after chosen epochs."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import Pictures
from lowbit.errors import InputError
from lowbit.evaluate.collapse import HEALTHY, Spread, collapse_probe
from lowbit.evaluate.knn import K, knn_probe
from lowbit.train.compile import uncompiled
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.session import Session

log = logging.getLogger(__name__)


def monitored_pictures(session: Session, labels: bool) -> Pictures:
    """The test set, on which a net is evaluated during pretraining.

    Raises:
        InputError: there is none; names the option that does without.
    """
    try:
        return session.pictures("test", labels=labels)
    except InputError as error:
        raise InputError(f"{error} (--probe-every 0 does without)") from error


def monitor_pretraining(
    net: str,
    bank: EvalLoader,
    test: EvalLoader,
    session: Session,
    *,
    every: int,
    variant: str = "",
    context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> Probe:
    """For `Run.probes`: the figures of `knn_probe` and `collapse_probe`, and a line of the record.

    Of pictures without classes there are no figures of k-NN.

    Args:
        net: name of the objective's submodule that is monitored: the encoder with its projector.
        bank: training pictures under the evaluation recipe.
        test: test pictures likewise; the only place where labels are read.
        session: of the command.
        every: epochs between two evaluations; the last epoch always has one.
        variant: of the net, which the names of the figures and the line carry.
        context: given the net, a context manager around its forwards.
    """

    def net_of(objective: Objective) -> nn.Module:
        return objective.get_submodule(net)

    k, accelerator = min(K, len(bank.pictures)), session.accelerator
    probes = [collapse_probe(net_of, test, accelerator, every=every, context=context)]
    if bank.pictures.classes:
        probes.insert(0, knn_probe(net_of, bank, test, accelerator, k=k, every=every, context=context))

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        values: dict[str, float] = {}
        with uncompiled(objective):
            for one in probes:
                values |= one(clock, objective)
        if values:
            top1 = f"k-NN Acc@1 {values['knn_top1']:.3f} " if "knn_top1" in values else ""
            std, rank = values["z_std_relative"], values["effective_rank"]
            session.say(f" * {top1}z_std*sqrt(D) {std:.3f} effective rank {rank:.1f}" + (variant and f" at {variant}"))
        return {f"{key}_{variant}" if variant else key: value for key, value in values.items()}

    return probe


def report_collapse(values: Mapping[str, float], dim: int, session: Session) -> dict[str, bool]:
    """`collapsed`, with a warning where it is so; {} without collapse figures.

    Args:
        values: the last ones of the probe above.
        dim: entries of the encoder's output.
        session: of the command.
    """
    if "z_std_relative" not in values:
        return {}
    found = Spread(*(values[key] for key in Spread._fields))
    if found.collapsed and session.accelerator.is_main_process:
        log.warning(
            "the outputs' standard deviation is %.2f of a healthy 1/sqrt(%d), below %g: the net has collapsed, or has "
            "hardly been trained", found.z_std_relative, dim, HEALTHY,
        )  # fmt: skip
    return {"collapsed": found.collapsed}
