"""One checkpoint as many variants (bits, widths), one table: k-NN, a float probe carried along, a probe per variant.

Neutral to the method: a variant is a name and a callable that puts the net into it. Judged are

- weighted k-NN, bank and queries both seen by the variant;
- one probe, trained once on the features of the `reference` (the float or widest net) and carried to every variant;
- on request a probe retrained at each variant (the protocol of the papers);
- on request all of these a second time (`_bn`) with batch norm's statistics estimated anew at the variant, the probe
  that is carried along being trained on the reference with its own estimated anew.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import batchnorm_anew
from lowbit.evaluate.classify import Batches
from lowbit.evaluate.features import Encode, Features, extract, pooled
from lowbit.evaluate.knn import TEMPERATURE, K, check_neighbours, knn
from lowbit.evaluate.probe import ProbeOptions, make_head, score_head, train_head_
from lowbit.files import replace_file

log = logging.getLogger(__name__)

Row = dict[str, Any]
Pairs = dict[str, tuple[Features, Features]]  # training and test set: "" as they are, "_bn" with batch norm anew
FIGURES = {
    "probe_top1": "float probe",
    "probe_top1_retrained": "probe trained at each",
    "knn_top1": "k-NN",
}
ANEW = ("_bn", ", batch norm anew")


class Variant(NamedTuple):
    """One way to run the net.

    Attributes:
        name: what the table calls it; unique in a sweep.
        enter: puts the net into the variant; what it returns is a context manager that takes it out again, or None.
    """

    name: str
    enter: Callable[[], AbstractContextManager[Any] | None]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is judged.

    Attributes:
        probe: how probes are trained.
        retrain: also train one at each variant (`--probe-per-bits`).
        k, temperature: of k-NN.
        seed: of the probes.
    """

    probe: ProbeOptions
    retrain: bool = False
    k: int = K
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
    """Judge a net at every variant; the net is left as it was.

    Args:
        net: the backbone, on the accelerator's device.
        variants: in the table's order.
        train: labelled training pictures under the evaluation recipe: the bank, and what probes learn from.
        test: labelled test pictures.
        accelerator: of the run.
        options: what is judged.
        reference: where the one probe is trained; it need not be among the variants.
        bn_batches: training batches under the *training* recipe, in random order; given, each figure also comes with
            batch norm estimated anew. Every process sees all of them (a loader of one process), so that several
            processes equal one.
        encode: what of the net is asked for.

    Returns:
        A row per variant: `variant`; `top1` and `probe`, which says whose it is ("float": the reference's probe,
        "retrained"); `probe_top1`, `probe_top1_retrained`, `knn_top1`, each also with `_bn` if asked for; `knn_k`,
        `knn_temperature`. The same on every process.

    Raises:
        InputError: two variants of one name, k beyond the bank, a probe that diverges, damaged weights.
        Stopped: a stop signal came (to any process).
    """
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise InputError(f"a sweep over {', '.join(names)}: name each variant once")

    def see(variant: Variant) -> Pairs:
        with _inside(variant):
            found = {"": (extract(net, train, accelerator, encode), extract(net, test, accelerator, encode))}
            if bn_batches is not None:
                with batchnorm_anew(net, bn_batches(), accelerator):
                    found["_bn"] = (extract(net, train, accelerator, encode), extract(net, test, accelerator, encode))
        return found

    first = see(reference)
    check_neighbours(options.k, options.temperature, len(first[""][0].x))
    heads = {suffix: _trained(pair, options, accelerator) for suffix, pair in first.items()}
    rows = []
    for variant in variants:
        figures: dict[str, float] = {}
        for suffix, pair in (first if variant == reference else see(variant)).items():
            judged = _figures(heads[suffix], pair, options, accelerator)
            figures |= {key + suffix: value for key, value in judged.items()}
        log.info("%s: %s", variant.name, ", ".join(f"{key} {value:.2f}" for key, value in figures.items()))
        rows.append(_row(variant.name, figures, options))
    return rows


def _row(name: str, figures: Mapping[str, float], options: SweepOptions) -> Row:
    """A line of the table, its main figure first."""
    whose = "retrained" if options.retrain else "float"
    top1 = figures["probe_top1_retrained" if options.retrain else "probe_top1"]
    settings = {"knn_k": options.k, "knn_temperature": options.temperature}
    return {"variant": name, "top1": top1, "probe": whose, **figures, **settings}


def _inside(variant: Variant) -> AbstractContextManager[Any]:
    return variant.enter() or nullcontext()


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
    head: nn.Linear, pair: tuple[Features, Features], options: SweepOptions, accelerator: Accelerator
) -> dict[str, float]:
    """`probe_top1`, `probe_top1_retrained` if asked for, `knn_top1`."""
    found = {"probe_top1": score_head(head, pair[1])["probe_top1"]}
    if options.retrain:
        own = _trained(pair, options, accelerator)
        found["probe_top1_retrained"] = score_head(own, pair[1])["probe_top1"]
    neighbours = knn(*pair, accelerator, k=options.k, temperature=options.temperature)
    return {**found, "knn_top1": neighbours["knn_top1"]}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The figures of a sweep as a Markdown table, in percent."""
    said = {key + suffix: title + more for key, title in FIGURES.items() for suffix, more in (("", ""), ANEW)}
    shown = [key for key in said if any(key in row for row in rows)]
    yield f"| variant | {' | '.join(said[key] for key in shown)} |"
    yield "|---" * (1 + len(shown)) + "|"
    for row in rows:
        yield f"| {row['variant']} | {' | '.join(f'{row[key]:.2f}' if key in row else '' for key in shown)} |"


def write_sweep(rows: Sequence[Row], folder: Path, label: str) -> None:
    """`sweep.csv` and `sweep.png` in a folder that exists; one process calls it.

    Args:
        rows: of `sweep`; keys that only some rows have leave a gap in the others.
        folder: an earlier sweep there is replaced.
        label: the checkpoint's name in the picture.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_csv(rows, folder / "sweep.csv")
    draw({label: rows}, folder / "sweep.png")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV, its columns in the order in which keys first come.

    Raises:
        InputError: the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def draw(series: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Accuracy by variant: a panel per kind of figure, a line per sweep, dashed with batch norm estimated anew.

    Args:
        series: rows of one or several sweeps, by the name of the checkpoint.
        path: of the PNG.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["variant"] for rows in series.values() for row in rows))
    shown = [key for key in FIGURES if any(key in row for rows in series.values() for row in rows)]
    figure = Figure(figsize=(1 + 4.4 * len(shown), 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for number, (label, rows) in enumerate(series.items()):
            for suffix, style, said in (("", "-", label), (ANEW[0], "--", label + ANEW[1])):
                points = [(names.index(row["variant"]), row[key + suffix]) for row in rows if key + suffix in row]
                if points:
                    axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{number % 10}", label=said)
        axes.set(title=FIGURES[key], ylabel="top-1, %")
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    picture = BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    replace_file(path, picture.getvalue())
