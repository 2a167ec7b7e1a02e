"""One checkpoint as many variants (bits, widths), one table: k-NN, a float probe carried along, a probe per variant.

Neutral to the method: a variant is a name and a callable that puts the net into it. Evaluated are

- weighted k-NN, bank and queries both seen by the variant;
- one probe, trained once on the features of the `reference` (the float or widest net) and carried to every variant;
- on request a probe retrained at each variant (the protocol of the papers).

All of these are of the net's own batch-norm statistics, of those re-estimated at the variant (`_bn`), or of both; with
re-estimated ones the probe that is carried along is trained on the reference with its own re-estimated, too. A net's
own statistics mean nothing where they are those of another width.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from lowbit.data.batch import Batch
from lowbit.data.fixed import BATCH
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import reestimated_batchnorm
from lowbit.evaluate.classify import Batches
from lowbit.evaluate.features import Encode, Features, extract, pooled
from lowbit.evaluate.knn import TEMPERATURE, K, check_neighbours, knn
from lowbit.evaluate.probe import ProbeOptions, make_head, score_head, train_head_
from lowbit.evaluate.table import REESTIMATED, Row
from lowbit.train import console
from lowbit.train.session import Session

TRIAL_PICTURES = 2 * BATCH  # timed by a dry run

log = logging.getLogger(__name__)

Pairs = dict[str, tuple[Features, Features]]  # training and test set: "" own statistics, "_bn" re-estimated ones


class Variant(NamedTuple):
    """One way to run the net.

    Attributes:
        name: what the table calls it; unique in a sweep.
        enter: puts the net into the variant; what it returns is a context manager that takes it out again, or None.
        macs: multiply-accumulates of a picture, where variants differ in them.
        key: variants of one key are one net, which is evaluated once; None: the name.
    """

    name: str
    enter: Callable[[], AbstractContextManager[Any] | None]
    macs: int | None = None
    key: Hashable = None

    @property
    def net(self) -> Hashable:
        """What tells this variant's net from others."""
        return self.name if self.key is None else self.key


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is evaluated.

    Attributes:
        probe: how probes are trained.
        retrain: also train one at each variant.
        own_statistics: evaluate with the net's own batch-norm statistics; False where only re-estimated ones fit.
        k, temperature: of k-NN; None: as usual, or all pictures of the bank that can be read, where they are fewer.
        seed: of the probes.
    """

    probe: ProbeOptions
    retrain: bool = False
    own_statistics: bool = True
    k: int | None = None
    temperature: float = TEMPERATURE
    seed: int = 0


def sweep(
    net: nn.Module,
    variants: Sequence[Variant],
    train: Batches,
    test: Batches,
    accelerator: Accelerator,
    options: SweepOptions,
    *,
    reference: Variant,
    bn_batches: Callable[[], Iterable[Batch]] | None = None,
    encode: Encode = pooled,
) -> list[Row]:
    """Evaluate a net at every variant; the net is left as it was.

    Args:
        net: the backbone, on the accelerator's device.
        variants: in the table's order.
        train: labelled training pictures under the evaluation recipe: the bank, and what probes learn from.
        test: labelled test pictures.
        accelerator: of the run.
        options: what is evaluated.
        reference: where the one probe is trained; it need not be among the variants.
        bn_batches: training batches under the *training* recipe, in random order; given, each figure also comes with
            batch-norm statistics re-estimated. Every process sees all of them (`lowbit.data.fixed.shuffled`), so that
            several processes equal one.
        encode: what of the net is asked for.

    Returns:
        A row per variant: `variant`; `macs` if it has any; `top1` and `probe`, which says whose it is ("float": the
        reference's probe, "retrained"); `probe_top1`, `probe_top1_retrained`, `knn_top1`, each also (or only) with
        `_bn` if asked for; `knn_k`, `knn_temperature`. The same on every process.

    Raises:
        ValueError: neither statistics are asked for.
        InputError: two variants of one name, k beyond the bank, a probe that diverges, damaged weights.
        Stopped: a stop signal came (to any process).
    """
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise InputError(f"a sweep over {', '.join(names)}: name each variant once")

    def features() -> tuple[Features, Features]:
        return extract(net, train, accelerator, encode), extract(net, test, accelerator, encode)

    def see(variant: Variant) -> Pairs:
        found: Pairs = {}
        with variant.enter() or nullcontext():
            if options.own_statistics:
                found[""] = features()
            if bn_batches is not None:
                with reestimated_batchnorm(net, bn_batches(), accelerator):
                    found[REESTIMATED] = features()
        if not found:
            raise ValueError("a sweep without the net's own statistics needs bn_batches")
        return found

    first = see(reference)
    bank = len(next(iter(first.values()))[0].x)
    k = min(K, bank) if options.k is None else options.k
    check_neighbours(k, options.temperature, bank)
    heads = {suffix: _trained(pair, options, accelerator) for suffix, pair in first.items()}
    figures: dict[Hashable, dict[str, float]] = {}
    for number, variant in enumerate(variants, 1):
        if variant.net in figures:
            continue
        console.show(f"variant {number}/{len(variants)}: {variant.name}")
        own = figures[variant.net] = {}
        for suffix, pair in (first if variant.net == reference.net else see(variant)).items():
            found = _figures(heads[suffix], pair, options, accelerator, k)
            own |= {key + suffix: value for key, value in found.items()}
        log.info(
            "%s: %s",
            variant.name,
            ", ".join(f"{key} {value:.2f}" for key, value in own.items()),
            extra=console.INTERVAL,
        )
    return [_row(variant, figures[variant.net], options, k) for variant in variants]


def plan_sweep(
    net: nn.Module,
    variants: Sequence[Variant],
    pictures: tuple[Pictures, Pictures],
    shown: Recipe,
    session: Session,
    *,
    reference: Variant,
    entering: int = 0,
    looks: int = 2,
) -> dict[str, Any]:
    """What a sweep would be, for a dry run, out of one variant's time on a few pictures; probes are not counted.

    Args:
        net: as in `sweep`.
        variants: likewise; the last one is timed.
        pictures: of training and of the test.
        shown: the recipe of evaluation.
        session: of the command.
        reference: as in `sweep`.
        entering: pictures that a variant looks at when it is entered (calibration).
        looks: at each set in each variant: with own batch-norm statistics, with re-estimated ones.
    """
    some = pictures[0].subset(torch.arange(min(TRIAL_PICTURES, len(pictures[0]))))
    start = time.perf_counter()
    with variants[-1].enter() or nullcontext():
        extract(net, session.eval_loader(some, shown), session.accelerator)
    seconds = (time.perf_counter() - start) / (len(some) + entering)
    passes = looks * len({variant.net for variant in (reference, *variants)})
    return {
        "variants": ", ".join(variant.name for variant in variants),
        "training pictures": len(pictures[0]),
        "test pictures": len(pictures[1]),
        "estimated seconds without probes": seconds * passes * sum(len(one) for one in pictures),
    }


def _row(variant: Variant, figures: Mapping[str, float], options: SweepOptions, k: int) -> Row:
    """A line of the table, its main figure first."""
    whose, key = ("retrained", "probe_top1_retrained") if options.retrain else ("float", "probe_top1")
    top1 = figures[key if options.own_statistics else key + REESTIMATED]
    cost = {} if variant.macs is None else {"macs": variant.macs}
    settings = {"knn_k": k, "knn_temperature": options.temperature}
    return {"variant": variant.name, **cost, "top1": top1, "probe": whose, **figures, **settings}


def _trained(pair: tuple[Features, Features], options: SweepOptions, accelerator: Accelerator) -> nn.Linear:
    """A probe of these features."""
    train, test = pair
    if train.label is None or test.label is None:
        raise InputError("a sweep needs labelled pictures, for training and for the test")
    classes = int(max(train.label.max(), test.label.max())) + 1
    head = make_head(train.x.shape[1], classes, options.seed, dtype=train.x.dtype, device=train.x.device)
    train_head_(head, train, options.probe, accelerator, options.seed)
    return head


def _figures(
    head: nn.Linear, pair: tuple[Features, Features], options: SweepOptions, accelerator: Accelerator, k: int
) -> dict[str, float]:
    """`probe_top1`, `probe_top1_retrained` if asked for, `knn_top1`."""
    found = {"probe_top1": score_head(head, pair[1])["probe_top1"]}
    if options.retrain:
        own = _trained(pair, options, accelerator)
        found["probe_top1_retrained"] = score_head(own, pair[1])["probe_top1"]
    neighbours = knn(*pair, accelerator, k=k, temperature=options.temperature)
    return {**found, "knn_top1": neighbours["knn_top1"]}
